"""The kernels on a real GPU, in bf16 and fp16: the problems of `test_kernels.py` with the blocks that users get.

    make gpu        (that is, TRITON_INTERPRET=0 python -m pytest tests/kernels/test_gpu.py)

Triton's interpreter is on for all other tests, and cannot be turned off within a process: so this file has its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import triton
from safetensors.torch import load_file
from torch import Tensor

import minillm
from minillm.kernels import attention as prefill
from minillm.kernels import attention_backward, decode_attention, fp8_linear, grouped_linear, mla_decode, moe, tuning
from minillm.kernels.tuning import Config
from minillm.model.cache import Cache
from minillm.ops import REFERENCE, select
from tests.conftest import shared
from tests.helpers import kernel_cases
from tests.helpers.attention_problems import BESIDE
from tests.helpers.kernel_cases import Aligned, Awkward, Case
from tests.helpers.kernel_problems import PROBLEMS, hold

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.skipif(
        triton.knobs.runtime.interpret, reason="Triton's interpreter is on: run this file by `make gpu`"
    ),
]
GPU = torch.device("cuda", 0)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
STORIES = ["stories260K", "stories-mixtral", "stories-qwen3-moe", "stories-deepseek-v3", "stories-gemma2"]
TF32_FREE = 1e-4  # what is asked for end to end in fp32


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_cases.poison(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What these tests tune is theirs: problems are small, and say nothing about real ones."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def check(op: str, case: Case) -> None:
    """An op of the seam or beside it, within its budget in half precision."""
    if op in BESIDE:
        hold("attention", BESIDE[op](case), case.dtype)
    else:
        hold(op, PROBLEMS[op](case, select("triton", GPU, case.dtype)), case.dtype)


@pytest.mark.usefixtures("poison")
@DTYPES
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", [*PROBLEMS, *BESIDE])
def test_op(op: str, seed: int, dtype: torch.dtype) -> None:
    check(op, Case(Awkward(seed), dtype, GPU))


@DTYPES
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("op", PROBLEMS)
def test_op_at_aligned_sizes(op: str, times: int, dtype: torch.dtype) -> None:
    for seed in range(3):
        check(op, Case(Aligned(seed, times), dtype, GPU))


# Each table of configurations: an op, how large its sizes must be to come to that table (`Aligned`), where it is.
TABLES: dict[str, tuple[str, float, Any, Any]] = {
    "attention of 64": ("attention", 0.5, prefill.CONFIGS, (64, 64)),
    "attention of 128": ("attention", 1, prefill.CONFIGS, (128, 128)),
    "attention of 256": ("attention", 2, prefill.CONFIGS, (256, 256)),
    "backward of 64": ("attention", 0.5, attention_backward.CONFIGS, (64, 64)),
    "backward of 128": ("attention", 1, attention_backward.CONFIGS, (128, 128)),
    "backward of 256": ("attention", 2, attention_backward.CONFIGS, (256, 256)),
    "decode": ("decode", 1, decode_attention, "CONFIGS"),
    "decode of 256": ("decode", 2, decode_attention, "CONFIGS"),
    "latents of 512": ("latent_decode", 4, mla_decode, "CONFIGS"),
    "experts": ("experts", 2, moe, "CONFIGS"),
    "few experts": ("experts", 2, moe, "FEW_CONFIGS"),
    "fp8, one row": ("fp8_linear", 2, fp8_linear, "FEW"),
    "groups, one row": ("grouped_linear", 2, grouped_linear, "ONE"),
    "groups, few rows": ("grouped_linear", 2, grouped_linear, "FEW"),
    "groups": ("grouped_linear", 2, grouped_linear, "MANY"),
    "fp8": ("fp8_linear", 2, fp8_linear, "MANY"),
}


def configurations(where: Any, key: Any) -> tuple[Config, ...]:
    return where[key] if isinstance(where, dict) else getattr(where, key)


EACH = [(name, c) for name, (_, _, where, key) in TABLES.items() for c in configurations(where, key)]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("table", "config"), EACH, ids=[f"{name}: {c.name}, {c.on[0]}" for name, c in EACH])
def test_every_configuration(table: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning takes one of several: each gives the same, at the sizes it is for."""
    op, times, where, key = TABLES[table]
    if tuning.prepare(GPU).kind not in config.on:
        pytest.skip(f"{config.name} is for {', '.join(config.on)}")
    (monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr)(where, key, (config,))
    if key == "FEW_CONFIGS":
        monkeypatch.setattr(moe, "FEW", 10**6)
    if table.endswith(("one row", "few rows")):
        monkeypatch.setattr(where, "MANY", (config,))
    used = list[str]()
    for module in (prefill, attention_backward, decode_attention, grouped_linear, mla_decode, moe, fp8_linear):
        spied = partial(spy, used, module.run)
        monkeypatch.setattr(module, "run", spied)
    for seed in range(3):
        check(op, Case(Aligned(seed, times), torch.bfloat16, GPU))
    assert config.name in used


def spy(used: list[str], run: Callable[..., None], kernel: str, key: Any, table: Any, *rest: Any) -> None:
    used += [config.name for config in table if len(table) == 1]
    run(kernel, key, table, *rest)


@pytest.mark.parametrize("name", STORIES)
@torch.no_grad()
def test_recorded_logits(name: str) -> None:
    """Real trained models in fp32: a prompt at once, and in pieces and token by token through the cache."""
    folder = shared(f"checkpoints/{name}")
    llm, expected = minillm.load(folder, "float32", GPU, "triton"), load_file(folder / "expected/outputs.safetensors")
    tokens, logits = expected["input_ids"][None].to(GPU), expected["logits"].to(GPU)
    assert (llm.model(tokens)[0] - logits).abs().max() <= TF32_FREE
    cache = Cache(llm.spec, 1, tokens.shape[1], torch.float32, GPU)
    pieces = tokens.split([20, 9, *[1] * (tokens.shape[1] - 29)], dim=1)
    found = torch.cat([llm.model(piece, cache) for piece in pieces], dim=1)[0]
    assert (found - logits).abs().max() <= TF32_FREE


@pytest.mark.parametrize("name", STORIES)
@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_the_plain_ops_are(name: str) -> None:
    folder = shared(f"checkpoints/{name}")
    expected = load_file(folder / "expected/outputs.safetensors")
    tokens, logits = expected["input_ids"][None].to(GPU), expected["logits"].to(GPU)

    def error(kernels: str) -> float:
        return float((minillm.load(folder, "bfloat16", GPU, kernels).model(tokens)[0] - logits).square().mean().sqrt())

    assert error("triton") <= 1.5 * error("reference")


@torch.no_grad()
def test_a_compiled_decode_step_is_the_eager_one() -> None:
    llm = minillm.load(None, "float32", GPU, "triton")
    prompt, token = torch.arange(3, 40, device=GPU)[None], torch.tensor([[7]], device=GPU)

    def after(step: object) -> Tensor:
        cache = Cache(llm.spec, 1, 64, torch.float32, GPU)
        llm.model(prompt, cache)
        return step(token, cache)  # type: ignore[operator]

    eager = after(llm.model)
    assert (after(torch.compile(llm.model, fullgraph=True)) - eager).abs().max() <= 1e-4
    plain = minillm.load(None, "float32", GPU, "reference")
    assert plain.model.ops is REFERENCE
    assert (after(plain.model) - eager).abs().max() <= 1e-4


def test_tuning_is_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    """A size that nothing else here has is timed once, in this process and after it."""
    if len(tuning.candidates(prefill.CONFIGS[128, 128], tuning.prepare(GPU).kind)) == 1:
        pytest.skip("on this class of GPU there is nothing to choose from")
    q, k = torch.randn(1, 2, 300, 112, device=GPU, dtype=torch.float16), torch.randn(1, 1, 300, 112, device=GPU).half()
    expected, _ = prefill.attention(q, k, k)
    assert capsys.readouterr().err.count("tuned attention") == 1
    for forget in (False, True):
        if forget:
            tuning._gpus.clear()
        assert torch.equal(prefill.attention(q, k, k)[0], expected)
        assert "tuned" not in capsys.readouterr().err
