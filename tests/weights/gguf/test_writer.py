"""GGUF files: read back by a reader of its own, block formats by their published formulas, and by llama.cpp itself
where an interpreter has it (this one, or the one that LLAMA_PYTHON names)."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from minillm import config
from minillm.bench import engines
from minillm.bench.weights import gguf_bytes_per_step, write_gguf
from minillm.loading import load
from minillm.model.costs import bytes_per_step
from minillm.weights.gguf import writer as gguf
from minillm.weights.gguf.quantise import QUANTISERS
from tests.helpers import tiny

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {"head_dim": None, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": []}),
}
TYPE = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0", 30: "BF16"}


def made(folder: Path, name: str) -> None:
    family, changes = VARIANTS[name]
    values = {key: value for key, value in {**SIZES, **changes}.items() if value is not None}
    tiny.save(folder, family, values)


def read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """Metadata, and tensors with their type, dequantised to fp32."""
    data = path.read_bytes()
    at = 24
    magic, version, tensors, keys = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)

    def take(form: str) -> Any:
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0]

    def text() -> str:
        return take(f"{take('Q')}s").decode()

    kinds = {4: lambda: take("I"), 6: lambda: take("f"), 7: lambda: take("?"), 8: text}
    metadata = {text(): kinds[take("I")]() for _ in range(keys)}
    infos = [(text(), [take("Q") for _ in range(take("I"))][::-1], TYPE[take("I")], take("Q")) for _ in range(tensors)]
    start, found, ends = -(-at // 32) * 32, {}, []
    for name, shape, kind, offset in infos:
        assert offset % 32 == 0
        raw = VALUES[kind](data[start + offset :], int(np.prod(shape)))
        found[name] = (kind, raw.astype(np.float32).reshape(shape))
        ends.append((offset, int(np.prod(shape)) // BLOCKS[kind][0] * BLOCKS[kind][1]))
    for (offset, size), (following, _) in itertools.pairwise(ends):
        assert following == -(-(offset + size) // 32) * 32  # one behind the other
    assert len(data) == start + -(-sum(ends[-1]) // 32) * 32
    return metadata, found


def q8_0(data: bytes, count: int) -> np.ndarray:
    blocks = np.frombuffer(data, dtype=np.dtype([("d", "<f2"), ("q", "i1", 32)]), count=count // 32)
    return blocks["d"].astype(np.float32)[:, None] * blocks["q"]


def q4_0(data: bytes, count: int) -> np.ndarray:
    blocks = np.frombuffer(data, dtype=np.dtype([("d", "<f2"), ("q", "u1", 16)]), count=count // 32)
    halves = np.concatenate((blocks["q"] % 16, blocks["q"] // 16), axis=1).astype(np.float32)
    return blocks["d"].astype(np.float32)[:, None] * (halves - 8)


VALUES = {
    "F32": lambda data, count: np.frombuffer(data, "<f4", count),
    "F16": lambda data, count: np.frombuffer(data, "<f2", count),
    "BF16": lambda data, count: (np.frombuffer(data, "<u2", count).astype(np.uint32) << 16).view(np.float32),
    "Q8_0": q8_0,
    "Q4_0": q4_0,
}
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18)}  # values and bytes


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variant") / request.param.replace(" ", "-")
    made(folder, request.param)
    return folder


def turned(matrix: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of Llama."""
    return matrix.reshape(heads, 2, -1, matrix.shape[-1]).swapaxes(1, 2).reshape(matrix.shape)


def test_every_tensor_is_there_under_its_name(variant: Path, tmp_path: Path) -> None:
    """In fp32, value by value as the checkpoint has it, but for the order of q and k; and the numbers of the config."""
    llm = load(variant, "float32", "cpu", "reference")
    write_gguf(tmp_path / "model.gguf", variant, "float32")
    metadata, found = read(tmp_path / "model.gguf")
    stored, spec, attention = load_file(variant / "model.safetensors"), llm.spec, llm.spec.layers[0].attention
    architecture = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}.get(variant.name, variant.name.removesuffix("-tied"))
    assert metadata["general.architecture"] == architecture
    numbers = {
        "embedding_length": spec.hidden_size, "block_count": 3, "vocab_size": 96, "attention.head_count": 4,
        "attention.head_count_kv": 2, "rope.dimension_count": attention.head_dim, "context_length": 128,
    }  # fmt: skip
    assert {key: metadata[f"{architecture}.{key}"] for key in numbers} == numbers
    assert metadata[f"{architecture}.attention.layer_norm_rms_epsilon"] == np.float32(spec.final_norm.eps)

    def same(name: str, tensor: np.ndarray) -> None:
        kind, values = found.pop(name)
        assert kind == "F32"
        assert np.array_equal(values, tensor), name

    same("token_embd.weight", stored["model.embed_tokens.weight"])
    same("output_norm.weight", stored["model.norm.weight"])
    if not spec.tied:
        same("output.weight", stored["lm_head.weight"])
    for i in range(3):
        ours = {name.removeprefix(f"model.layers.{i}."): each for name, each in stored.items()}
        for part, heads in (("q", 4), ("k", 2)):
            matrix = ours[f"self_attn.{part}_proj.weight"]
            same(f"blk.{i}.attn_{part}.weight", turned(matrix, heads) if architecture == "llama" else matrix)
        same(f"blk.{i}.attn_v.weight", ours["self_attn.v_proj.weight"])
        same(f"blk.{i}.attn_output.weight", ours["self_attn.o_proj.weight"])
        same(f"blk.{i}.attn_norm.weight", ours["input_layernorm.weight"])
        same(f"blk.{i}.ffn_norm.weight", ours["post_attention_layernorm.weight"])
        for part in "qkv" if architecture == "qwen2" else "":
            same(f"blk.{i}.attn_{part}.bias", ours[f"self_attn.{part}_proj.bias"])
        for part in "qk" if architecture.startswith("qwen3") else "":
            same(f"blk.{i}.attn_{part}_norm.weight", ours[f"self_attn.{part}_norm.weight"])
        stem, *words = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2")}.get(
            variant.name, ("mlp", "gate_proj", "up_proj", "down_proj")
        )
        routed = f"{stem}.gate.weight" in ours
        if routed:
            same(f"blk.{i}.ffn_gate_inp.weight", ours[f"{stem}.gate.weight"])
        for part, word in zip(("gate", "up", "down"), words, strict=True):
            if routed:
                count = len(ours[f"{stem}.gate.weight"])
                experts = [ours[f"{stem}.experts.{e}.{word}.weight"] for e in range(count)]
                same(f"blk.{i}.ffn_{part}_exps.weight", np.stack(experts))
            else:
                same(f"blk.{i}.ffn_{part}.weight", ours[f"{stem}.{word}.weight"])
    if variant.name == "llama":
        _, factors = found.pop("rope_freqs.weight")
        assert len(factors) == attention.head_dim // 2
        assert (factors[0], factors[-1]) == (1, 8)  # short waves stay, long ones are stretched
    assert not found


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "int8", "int4"])
def test_matrices_and_vectors_have_their_types(variant: Path, tmp_path: Path, kind: str) -> None:
    encoding = {"bfloat16": "BF16", "float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}[kind]
    llm = load(variant, "float32", "cpu", "reference")
    write_gguf(tmp_path / "whole.gguf", variant, "float32")
    write_gguf(tmp_path / "model.gguf", variant, kind)
    whole, found = read(tmp_path / "whole.gguf")[1], read(tmp_path / "model.gguf")[1]
    step = {"bfloat16": 2**-8, "float16": 2**-10, "int8": 1 / 127 / 2 + 2**-10, "int4": 1 / 8}[kind]
    total = 0
    for name, (stored, values) in found.items():
        plain = values.ndim == 1 or "gate_inp" in name
        assert stored == ("F32" if plain else encoding)
        exact = whole[name][1].reshape(-1, values.shape[-1])
        limit = np.abs(exact).max() * (0 if plain else step)
        assert np.abs(values.reshape(exact.shape) - exact).max() <= limit, name
        share = 1.0
        if "_exps" in name:
            share = llm.spec.layers[0].ffn.router.top_k / len(values)
        if name != "rope_freqs.weight" and (name != "token_embd.weight" or llm.spec.tied):
            per, nbytes = BLOCKS[stored]
            total += round(values.size * share) // per * nbytes
    values = config.read(variant)
    assert gguf_bytes_per_step(llm.model, values, kind) == total
    assert gguf_bytes_per_step(llm.model, values, "float32") == bytes_per_step(llm.model)


def test_data_is_aligned(tmp_path: Path) -> None:
    """Whatever the sizes of the tensors before; and pieces lie one behind the other."""
    values = torch.randn(7, 3)
    entries = [
        gguf.Entry("odd", (5, 3), "F16", [values[:2], values[2:5]]),
        gguf.Entry("other", (1, 3), "F32", [values[5]]),
        gguf.Entry("last", (3,), "BF16", [values[6]]),
    ]
    gguf.write(tmp_path / "odd.gguf", {"a": "text", "b": 7, "c": 0.5}, entries)
    metadata, found = read(tmp_path / "odd.gguf")
    assert metadata == {"a": "text", "b": 7, "c": 0.5}
    assert np.array_equal(found["odd"][1], values[:5].half().float().numpy())
    assert np.array_equal(found["other"][1], values[5:6].numpy())
    assert np.array_equal(found["last"][1], values[6].bfloat16().float().numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["odd.gguf"]


@pytest.mark.parametrize(("kind", "levels"), [("Q8_0", 127), ("Q4_0", 8)])
def test_blocks_by_their_formula(kind: str, levels: int) -> None:
    """Each value within half a step of its block, the farthest from zero met but for the rounding of the scale; a block
    of zeros, of one value, and of values that differ by many orders of magnitude."""
    values = torch.randn(300, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 3, 300)[:, None]
    values[0], values[1], values[2, 1:] = 0, -3.25, 0
    exact = values.numpy()
    encoded = QUANTISERS[kind](values).numpy()
    found = VALUES[kind](encoded.tobytes(), values.numel()).reshape(exact.shape)
    farthest = np.abs(exact).max(1, keepdims=True)
    step, rounding = farthest / levels, farthest * 2**-11 + 2**-25
    at = np.abs(exact).argmax(1)[:, None]
    met = np.take_along_axis(exact, at, 1)
    assert (np.abs(np.take_along_axis(found, at, 1) - met) <= rounding).all()
    reached = np.ones_like(exact, bool)
    if kind == "Q4_0":  # -8 to 7: on the other side of zero the last step is cut off
        reached = exact / np.where(met == 0, 1, met) > -7.5 / 8
        assert (np.abs(found - exact) <= step * 1.0001 + rounding).all()
    assert (np.abs(found - exact) <= step * 0.5001 + rounding)[reached].all()
    assert (found[0] == 0).all()


def test_a_disk_without_room_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.weights.gguf.writer.shutil.disk_usage", lambda path: SimpleNamespace(free=95))
    with pytest.raises(ValueError, match=r"96 bytes are needed, the disk has 95 left"):
        gguf.write(tmp_path / "a.gguf", {}, [gguf.Entry("a", (2,), "F32", [torch.zeros(2)])])
    assert not list(tmp_path.iterdir())


def test_values_beyond_fp16_are_refused(tmp_path: Path) -> None:
    """What is half written by then goes."""
    values = torch.zeros(64)
    values[40] = -65600.0
    for kind in ("F16", "Q8_0", "Q4_0"):
        with pytest.raises(
            ValueError, match=rf"b has a value of magnitude 6.56e\+04; {kind} holds 65504 at most; take bf"
        ):
            gguf.write(tmp_path / "a.gguf", {}, [gguf.Entry("b", (2, 32), kind, [values])])
    assert not list(tmp_path.iterdir())
    gguf.write(tmp_path / "a.gguf", {}, [gguf.Entry("b", (2, 32), "BF16", [values])])


def llama_python() -> str:
    python = os.environ.get("LLAMA_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip("no llama-cpp-python here; LLAMA_PYTHON may name an interpreter that has it")
    return python


def test_llama_cpp_says_the_same(variant: Path, tmp_path: Path) -> None:
    """Greedy tokens of llama.cpp from the file are those of minillm from the checkpoint, for a batch too; and decoding
    behind a longer context starts from the same state each time."""
    python = llama_python()
    llm = load(variant, "float32", "cpu", "reference")
    write_gguf(tmp_path / "model.gguf", variant, "float32")
    settings = {"weights": str(tmp_path / "model.gguf"), "threads": 1, "device": "cpu"}
    worker = engines.Worker("llama.cpp", settings, python)
    try:
        prompts = tiny.tokens(96, 2, 20).tolist()
        worker.start(batch=2, prompt=20, context=20, steps=8)
        for rows in (prompts, prompts[::-1]):
            own = llm.generate(prompt_ids=rows[0], max_new_tokens=9, temperature=0, ignore_eos=True).token_ids
            assert worker.round(rows, 8)["tokens"] == own
        worker.start(batch=2, prompt=20, context=60, steps=8)
        first, second = (worker.round(prompts, 8)["tokens"] for _ in range(2))
        assert first == second
    finally:
        worker.kill()
