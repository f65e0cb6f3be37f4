"""The kernels on a real GPU, in bf16 and fp16: the problems of `test_kernels.py` with the blocks that users get.

    make gpu        (that is, TRITON_INTERPRET=0 python -m pytest tests/test_gpu.py)

Triton's interpreter is on for all other tests, and cannot be turned off within a process: so this file has its own.
"""

from __future__ import annotations

import os

import kernel_cases
import pytest
import torch
import triton
from attention_problems import BESIDE
from conftest import shared
from kernel_cases import Awkward, Case
from kernel_problems import BUDGETS, PROBLEMS
from safetensors.torch import load_file
from torch import Tensor

import minillm
from minillm.cache import Cache
from minillm.kernels import attention as prefill
from minillm.kernels import decode_attention, mla_decode, moe, tuning
from minillm.kernels.tuning import Config
from minillm.ops import REFERENCE, select

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


@pytest.mark.usefixtures("poison")
@DTYPES
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", PROBLEMS)
def test_op(op: str, seed: int, dtype: torch.dtype) -> None:
    for name, error in PROBLEMS[op](Case(Awkward(seed), dtype, GPU), select("triton", GPU, dtype)).items():
        kind = "gradient" if name.startswith("gradient") else "result"
        assert error <= BUDGETS[op][kind][1], (name, error)


@pytest.mark.usefixtures("poison")
@DTYPES
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kernel", BESIDE)
def test_kernel_beside_the_seam(kernel: str, seed: int, dtype: torch.dtype) -> None:
    for name, error in BESIDE[kernel](Case(Awkward(seed), dtype, GPU)).items():
        assert error <= BUDGETS["attention"]["result"][1], (name, error)


TABLES = {
    **{f"attention {size}": ("attention", prefill.CONFIGS, size, table) for size, table in prefill.CONFIGS.items()},
    "decode": ("decode", decode_attention, "CONFIGS", decode_attention.CONFIGS),
    "latent": ("latent_attention", mla_decode, "CONFIGS", mla_decode.CONFIGS),
    "experts": ("experts", moe, "CONFIGS", moe.CONFIGS),
    "few experts": ("experts", moe, "FEW_CONFIGS", moe.FEW_CONFIGS),
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("table", "config"), [(name, c) for name, each in TABLES.items() for c in each[-1]], ids=str)
def test_every_configuration(table: str, config: Config, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning takes one of several: each gives the same."""
    op, where, key, _ = TABLES[table]
    if tuning.prepare(GPU).kind not in config.on:
        pytest.skip(f"{config.name} is for {', '.join(config.on)}")
    set_one = monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr
    set_one(where, key, (config,))
    case = Case(Awkward(seed), torch.bfloat16, GPU)
    errors = PROBLEMS[op](case, select("triton", GPU, torch.bfloat16)) if op in PROBLEMS else BESIDE[op](case)
    for name, error in errors.items():
        kind = "gradient" if name.startswith("gradient") else "result"
        assert error <= BUDGETS[op if op in PROBLEMS else "attention"][kind][1], (name, error)


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
    q, k = torch.randn(1, 2, 300, 112, device=GPU, dtype=torch.float16), torch.randn(1, 1, 300, 112, device=GPU).half()
    expected, _ = prefill.attention(q, k, k)
    assert capsys.readouterr().err.count("tuned attention") == 1
    for forget in (False, True):
        if forget:
            tuning._gpus.clear()
        assert torch.equal(prefill.attention(q, k, k)[0], expected)
        assert "tuned" not in capsys.readouterr().err
