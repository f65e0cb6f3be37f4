"""Block-scaled FP8: dequantised as the formula says, on load or at each use, with the same logits.

The checkpoints are written here as they are published: every projection of attention, of the feed-forwards and of all
experts in e4m3 with a factor for each block of 128 x 128, everything else as it was. What they must mean is computed in
fp64 from the definition of the format.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import minillm
from minillm.llm import LLM
from minillm.model import held as quantised
from minillm.model.cache import Cache
from minillm.model.linear import Linear
from minillm.weights import fp8
from minillm.weights.formats import fp8_blocks
from minillm.weights.grouped import Fields
from tests.helpers import tiny
from tests.helpers.blocks import BLOCK, SCALE, SCHEME, formula, quantise, read, write
from tests.helpers.oracles import Routes, played

QUANTISED = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\..*proj(_with_mqa)?\.weight")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ODD = "model.layers.1.self_attn.q_proj.weight"
EXACT = 2e-5  # as in test_laws.py: fp32, the same sums in another order

# Several blocks, the last ones ragged, and fused parts that begin inside a block.
SIZES = {
    "deepseek_v3": {"hidden_size": 272, "intermediate_size": 300, "moe_intermediate_size": 136}
    | {"q_lora_rank": 140, "kv_lora_rank": 130},
    "qwen3_moe": {"hidden_size": 200, "moe_intermediate_size": 136},
}
FACTORS = {"deepseek_v3": torch.float32, "qwen3_moe": torch.bfloat16}  # what the two store their factors in


@pytest.fixture(scope="module", params=SIZES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in FP8, and one with the same weights dequantised by the formula; not to be changed."""
    folder, (family, overrides) = tmp_path_factory.mktemp("fp8"), tiny.ROWS[request.param]
    tiny.save(folder, family, {**overrides, **SIZES[request.param]})
    named, config = read(folder)
    stored, plain = {}, {}
    for name, tensor in named.items():
        if QUANTISED.fullmatch(name):
            stored[name], stored[name + SCALE] = quantise(tensor, FACTORS[request.param])
            plain[name] = formula(stored[name], stored[name + SCALE]).float()
        else:
            stored[name] = plain[name] = tensor
    write(folder / "fp8", stored, {**config, "quantization_config": SCHEME})
    write(folder / "plain", plain, config)
    return folder / "fp8", folder / "plain"


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return tiny.tokens(tiny.BASE["vocab_size"], *shape, seed=seed)


@torch.no_grad()
def token_by_token(llm: LLM, tokens_BT: Tensor, dtype: str) -> Tensor:
    """A prompt of seven, then one by one: latent attention takes its absorbed form."""
    cache = Cache(llm.spec, *tokens_BT.shape, DTYPES[dtype])
    pieces = [tokens_BT[:, :7], *tokens_BT[:, 7:].split(1, dim=1)]
    return torch.cat([llm.model(piece, cache) for piece in pieces], dim=1)


def held(llm: LLM) -> set[str]:
    """The parameters that are fp8 in memory."""
    return {name for name, parameter in llm.model.named_parameters() if parameter.dtype == fp8.DTYPE}


def check_formula(rows: int, columns: int, seed: int) -> None:
    """To the bit. In fp32 the one rounding of the product is that of the exact one; bf16 is that rounded again."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(256, (rows, columns), generator=generator, dtype=torch.uint8).view(fp8.DTYPE)
    shape = -(-rows // BLOCK), -(-columns // BLOCK)
    scale = torch.rand(shape, generator=generator) + 0.01
    parts = {"": weight, SCALE: scale * 2.0 ** torch.randint(-20, 20, shape, generator=generator)}
    expected = formula(weight, parts[SCALE]).float()
    for made in (fp8_blocks.dequantise(parts, "x"), fp8.Fp8().values(fp8_blocks.fields(parts, "x"))):
        for dtype in DTYPES.values():
            torch.testing.assert_close(made.to(dtype), expected.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (128, 128), (130, 257), (1025, 64), (2049, 3)])
def test_dequantised_is_the_formula(shape: tuple[int, int]) -> None:
    check_formula(*shape, seed=0)


@settings(max_examples=40)
@given(st.integers(1, 1200), st.integers(1, 300), st.integers(0, 2**32))
def test_dequantised_is_the_formula_for_any_shape(rows: int, columns: int, seed: int) -> None:
    check_formula(rows, columns, seed)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_load_dequantises(pair: tuple[Path, Path], dtype: str, kernels: str) -> None:
    """The very parameters of the checkpoint dequantised beforehand, and so the very logits."""
    ours, theirs = (minillm.load(folder, dtype, kernels=kernels, keep_quantized=False).model for folder in pair)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(parameter, expected[name]) for name, parameter in ours.state_dict().items())
    assert torch.equal(ours(tokens(2, 20)), theirs(tokens(2, 20)))


@pytest.mark.parametrize(
    ("dtype", "kernels"), [("float32", "auto"), ("float32", "reference"), ("bfloat16", "reference")]
)
@torch.no_grad()
def test_held_fp8_computes_the_same(pair: tuple[Path, Path], dtype: str, kernels: str) -> None:
    """To the bit where the arithmetic is the same: a prompt, and token by token through the cache. In loops an expert's
    few rows of a prompt are summed in another order than oneDNN's."""
    kept = minillm.load(pair[0], dtype, kernels=kernels, keep_quantized=True)
    plain = minillm.load(pair[1], dtype, kernels=kernels)
    given = tokens(2, 20, seed=1)
    whole, steps = kept.model(given), token_by_token(kept, given, dtype)
    expected = plain.model(given)
    if kernels == "auto" and dtype == "float32":
        assert (whole - expected).abs().max() <= EXACT
    else:
        assert torch.equal(whole, expected)
    if kernels == "reference":  # else a plain row goes through the loops, and a held one is dequantised
        assert torch.equal(steps, token_by_token(plain, given, dtype))
    if dtype == "float32":
        assert (steps - whole).abs().max() <= EXACT


@torch.no_grad()
def test_held_fp8_through_the_kernels(pair: tuple[Path, Path]) -> None:
    """Every product with a single matrix is the kernel's."""
    kept = minillm.load(pair[0], "float32", kernels="triton", keep_quantized=True)
    plain, given = minillm.load(pair[1], "float32", kernels="reference"), tokens(1, 9, seed=6)
    held = [m for m in kept.model.modules() if isinstance(m, Linear) and quantised.held_in(m)]
    assert {module.ops for module in held} == {kept.model.ops}
    assert (kept.model(given) - plain.model(given)).abs().max() <= EXACT


@torch.no_grad()
def test_held_fp8_beside_packed_weights(pair: tuple[Path, Path]) -> None:
    """In bf16 the fast path stores its weights in layouts of its own and sums one token's products in another order:
    the error against fp32, root mean square over 6,000 logits, is the same but for chance. Its ratio over 18 draws was
    0.97 to 1.01."""
    given, cuts = tokens(1, 64, seed=2), [7] + [1] * 57
    exact, routing = minillm.load(pair[1], "float32", kernels="reference").model(given, collect_routing=True)
    layers = [list(zip(r.experts.split(cuts), r.weights.split(cuts), strict=True)) for r in routing if r is not None]
    errors = []
    for folder, keep in zip(pair, (True, False), strict=True):
        llm = minillm.load(folder, "bfloat16", keep_quantized=keep)
        with played(llm.model, Routes([call for calls in zip(*layers, strict=True) for call in calls])):
            errors.append((token_by_token(llm, given, "bfloat16").float() - exact).square().mean().sqrt())
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_text(pair: tuple[Path, Path], dtype: str) -> None:
    kept, plain = (
        minillm.load(folder, dtype, kernels="reference", keep_quantized=keep)
        for folder, keep in zip(pair, (True, False), strict=True)
    )
    for prompt in (tokens(9, seed=3), tokens(4, seed=4)):
        expected = plain.generate(prompt_ids=prompt, max_new_tokens=24, temperature=0).token_ids
        assert kept.generate(prompt_ids=prompt, max_new_tokens=24, temperature=0).token_ids == expected


def test_what_is_held_is_fp8_in_memory(pair: tuple[Path, Path]) -> None:
    """All matrices but embedding, head, routers and what latent attention needs plain, in the bytes of fp8 and one fp32
    factor per row and block."""
    kept, plain = (
        dict(minillm.load(folder, "bfloat16", kernels="reference", keep_quantized=keep).model.named_parameters())
        for folder, keep in zip(pair, (True, False), strict=True)
    )
    others = ("embedding.weight", "head.weight", "router.weight", "kv_up")
    matrices = {name for name, parameter in plain.items() if parameter.dim() > 1 and not name.endswith(others)}
    assert kept.keys() == plain.keys() | {f"{name}_scale" for name in matrices}
    for name in plain:
        assert kept[name].dtype == (fp8.DTYPE if name in matrices else plain[name].dtype)
        if name in matrices:
            factors = kept[f"{name}_scale"]
            assert factors.dtype == torch.float32
            assert factors.shape == (*plain[name].shape[:-1], -(-plain[name].shape[-1] // BLOCK))
    quantised = sum(kept[name].nbytes + kept[f"{name}_scale"].nbytes for name in matrices)
    # Factors are 4 bytes for 128 of fp8 in large matrices, and 8 for 130 in the narrowest ones here.
    assert quantised <= 0.54 * sum(plain[name].nbytes for name in matrices)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@torch.no_grad()
def test_only_chosen_experts_are_dequantised(
    pair: tuple[Path, Path], kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each matrix of a chosen one once, however many tokens choose it, and none where loops take it as it lies; the
    others' values, NaN here, reach nothing."""
    model = minillm.load(pair[0], "float32", kernels=kernels, keep_quantized=True).model
    given = tokens(1, 2, seed=5)
    expected, routing = model(given, collect_routing=True)
    plain = kernels == "reference"  # loops multiply with the matrices as they lie
    wanted = [each.numel() for each in model.parameters() if plain and each.dtype == fp8.DTYPE and each.dim() == 2]
    for layer, routed in zip(model.layers, routing, strict=True):
        if routed is not None:
            chosen = routed.experts.unique().tolist()
            for parameter in (layer.ffn.experts.gate_up, layer.ffn.experts.down):
                wanted += [parameter[0].numel()] * len(chosen) if plain else []
                parameter.view(torch.uint8)[[e for e in range(len(parameter)) if e not in chosen]] = 0x7F
    made, values = [], fp8.Fp8.values

    def counted(form: fp8.Fp8, fields: Fields) -> Tensor:
        made.append(fields.q.numel())
        return values(form, fields)

    monkeypatch.setattr(fp8.Fp8, "values", counted)
    assert torch.equal(model(given), expected)
    assert sorted(made) == sorted(wanted)
