"""What stands before the tensors: read as it is written, and refused in one line where it cannot be."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.weights.checkpoint import Checkpoint
from minillm.weights.gguf import reader, tensors
from tests.weights.gguf import made

FLOATS = np.arange(12, dtype="<f4")
PLAIN: made.Tensor = ([4, 3], 0, FLOATS.tobytes())
Q8_0 = np.float16(0.5).tobytes() + bytes(range(32))


def written(folder: Path, data: bytes, name: str = "model.gguf") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_values_of_all_types(tmp_path: Path) -> None:
    pairs: dict[str, Any] = {"a": 7, "b": -7, "c": 0.5, "d": True, "e": "ä", "f": ["x", "", "zz"], "g": [1.5, 2.5]}
    pairs["h"] = struct.pack("<Iq", 11, -(2**40))
    pairs["i"] = struct.pack("<IIQ???", 9, 7, 3, True, False, True)
    found = reader.read(written(tmp_path, made.file(pairs, {"t": PLAIN, "q": ([32, 1], 8, Q8_0)})))
    numbers = found.metadata.pop("g"), found.metadata.pop("i")  # type: ignore[attr-defined]
    assert [each.tolist() for each in numbers] == [[1.5, 2.5], [True, False, True]]
    del pairs["g"], pairs["i"]
    assert found.metadata == {**pairs, "h": -(2**40)}
    entry = found.entries["t"]
    assert (entry.shape, entry.kind.name, entry.nbytes) == ((3, 4), "F32", 48)
    assert tensors.stored(entry).values().tolist() == FLOATS.tolist()
    assert tensors.stored(found.entries["q"]).values().tolist() == [i / 2 for i in range(32)]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 64])
def test_versions_and_alignments(version: int, alignment: int, tmp_path: Path) -> None:
    pairs = {"general.alignment": alignment} if alignment != 32 else {}
    data = made.file(pairs, {"s": ([1], 0, bytes(4)), "t": PLAIN}, version, alignment=alignment)
    found = reader.read(written(tmp_path, data))
    assert tensors.stored(found.entries["t"]).values().tolist() == FLOATS.tolist()


NAMED = {"t": PLAIN}
BAD: dict[str, tuple[bytes, str]] = {
    "another format": (b"PK\x03\x04" + bytes(60), "begins with"),
    "version 1": (made.file({}, NAMED, version=1), "version 1"),
    "version 4": (made.file({}, NAMED, version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(40), "big-endian"),
    "many tensors": (made.file({}, NAMED, counts=(2**60, 0)), "tensors"),
    "many pairs": (made.file({}, NAMED, counts=(1, 2**60)), "pairs"),
    "more tensors than there are": (made.file({}, NAMED, counts=(3, 0)), "damaged"),
    "a key twice": (made.file([("a", 1), ("a", 2)]), "'a' stands there twice"),
    "an empty key": (made.file([("", 1)]), "empty"),
    "a long key": (made.file([("a" * 5000, 1)]), "5,000 bytes"),
    "a key that is no text": (made.file([(b"\xff\xfe", 1)]), "UTF-8"),
    "a text that is none": (made.file({"a": struct.pack("<I", 8) + made.text(b"\xc3(")}), "UTF-8"),
    "a text without an end": (made.file({"a": struct.pack("<IQ", 8, 2**63)}), "bytes"),
    "texts without an end": (made.file({"a": struct.pack("<IIQQ", 9, 8, 1, 2**63)}), "bytes"),
    "an unknown type": (made.file({"a": struct.pack("<II", 13, 0)}), "type 13"),
    "a list of an unknown type": (made.file({"a": struct.pack("<IIQ", 9, 99, 1)}), "type 99"),
    "a list in a list": (made.file({"a": struct.pack("<IIQ", 9, 9, 1)}), "list of lists"),
    "a long list": (made.file({"a": struct.pack("<IIQ", 9, 4, 2**61)}), "values"),
    "a list cut short": (made.file({"a": struct.pack("<IIQ", 9, 4, 4000)}), "damaged"),
    "a flag of 2": (made.file({"a": struct.pack("<IB", 7, 2)}), "flag"),
    "alignment 0": (made.file({"general.alignment": 0}, NAMED), "power of two"),
    "alignment 24": (made.file({"general.alignment": 24}, NAMED), "power of two"),
    "alignment 2^31": (made.file({"general.alignment": 2**31}, NAMED), "power of two"),
    "a tensor twice": (made.file({}, [("t", PLAIN), ("t", PLAIN)]), "'t' is there twice"),
    "no name": (made.file({}, {"": PLAIN}), "no name"),
    "no axes": (made.file({}, {"t": ([], 0, bytes(4))}), "0 axes"),
    "many axes": (made.file({}, {"t": ([1] * 5, 0, bytes(4))}), "5 axes"),
    "a size of 0": (made.file({}, {"t": ([4, 0], 0, b"")}), "sizes"),
    "sizes that overflow": (made.file({}, {"t": ([2**32, 2**32], 0, bytes(4))}), "sizes"),
    "a removed kind": (made.file({}, {"t": ([32], 4, bytes(20))}), "type 4, which llama.cpp has removed"),
    "an unknown kind": (made.file({}, {"t": ([32], 99, bytes(20))}), "type 99"),
    "half a block": (made.file({}, {"t": ([48], 8, bytes(51))}), "rows of 48 values"),
    "an offset between": (made.file({}, NAMED, offsets={"t": 4}), "no multiple"),
    "behind the end": (made.file({}, NAMED, offsets={"t": 2**62}), "the file has"),
    "over another": (made.file({}, {"s": ([16], 0, bytes(64)), "t": PLAIN}, offsets={"t": 32}), "lies over"),
    "cut short": (made.file({}, NAMED)[:-20], "the file has"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    data, words = BAD[kind]
    with pytest.raises(ValueError, match=words) as refused:
        reader.read(written(tmp_path, data))
    assert "\n" not in str(refused.value)
    assert "model.gguf" in str(refused.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_changed_at_random(data: st.DataObject, tmp_path: Path) -> None:
    """Read or refused, whatever the bytes."""
    whole = bytearray(made.file({"a": ["x", "yy"], "b": 7, "c": "text"}, {"s": PLAIN, "t": ([32], 8, Q8_0)}))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    stop = data.draw(st.integers(0, len(whole)))
    path = written(tmp_path, bytes(whole[: stop or None]))
    try:
        found = reader.read(path)
    except ValueError as error:
        refusal = str(error)
        assert "\n" not in refusal
        return
    for entry in found.entries.values():
        tensors.stored(entry).values()


def test_a_long_beginning_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than what is read at first; and no more than the limit."""
    pairs = {"tokens": [f"token {i}" for i in range(1000)]}
    path = written(tmp_path, made.file(pairs, NAMED))
    monkeypatch.setattr(reader, "FIRST_BYTES", 64)
    assert reader.read(path).metadata == pairs
    monkeypatch.setattr(reader, "MAX_BYTES", 1024)
    with pytest.raises(ValueError, match="before the tensors"):
        reader.read(written(tmp_path, made.file(pairs, NAMED), "other.gguf"))


def split(folder: Path, count: int = 2, no: tuple[int, ...] = (0, 1), total: int = 2) -> Path:
    parts = [{"s": PLAIN}, {"t": PLAIN}]
    for i in range(count):
        own = {"split.no": no[i], "split.count": 2}
        pairs = {"general.name": "x", "split.tensors.count": total, **own} if i == 0 else own
        written(folder, made.file(pairs, parts[i]), f"x-{i + 1:05}-of-00002.gguf")
    return folder / "x-00001-of-00002.gguf"


def test_a_model_in_parts(tmp_path: Path) -> None:
    found = reader.read(split(tmp_path))
    assert list(found.entries) == ["s", "t"]
    assert found.metadata["general.name"] == "x"
    checkpoint = Checkpoint(tmp_path / "x-00001-of-00002.gguf")
    assert checkpoint.files == ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]
    assert checkpoint.info["t"].file == "x-00002-of-00002.gguf"
    assert checkpoint.stored["t"].values().tolist() == FLOATS.tolist()


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    for count, no, total, words in ((1, (0,), 2, "missing"), (2, (0, 0), 2, "part 0"), (2, (0, 1), 3, "says 3")):
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=words):
            reader.read(split(tmp_path, count, no, total))
    with pytest.raises(ValueError, match="give the first"):
        reader.read(tmp_path / "x-00002-of-00002.gguf")
    written(tmp_path, made.file({"split.no": 1, "split.count": 2}, {"s": PLAIN}), "x-00002-of-00002.gguf")
    split(tmp_path, 1, total=1)
    with pytest.raises(ValueError, match="another part"):
        reader.read(tmp_path / "x-00001-of-00002.gguf")


def checkpoint(folder: Path, named: dict[str, made.Tensor], **section: Any) -> Checkpoint:
    return Checkpoint(written(folder, made.file({}, named)), section)


def floats(*shape: int) -> made.Tensor:
    values = torch.randn(shape[::-1], generator=torch.Generator().manual_seed(sum(shape)))
    return list(shape), 0, values.numpy().tobytes()


def values(tensor: made.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(tensor[2], "<f4").copy()).view(tuple(tensor[0][::-1]))


def test_experts_factors_and_norms(tmp_path: Path) -> None:
    experts, nv = floats(4, 3, 2), ([64, 2], 40, bytes(range(72)))
    scale = np.array([0.25], "<f4").tobytes()
    named: dict[str, made.Tensor] = {
        "blk.0.ffn_up_exps.weight": experts,
        "blk.0.ffn_up_exps.scale": ([2], 0, np.array([2.0, 3.0], "<f4").tobytes()),
        "blk.0.ffn_down.weight": nv,
        "blk.0.attn_norm.weight": floats(5),
        "blk.0.ffn_down.input_scale": ([1], 0, scale),
    }
    plain = checkpoint(tmp_path, named).stored["blk.0.ffn_down.weight"].values()
    named["blk.0.ffn_down.scale"] = ([1], 0, scale)
    found = checkpoint(tmp_path, named, norm_offset=1.0)
    for e, factor in enumerate((2.0, 3.0)):
        stored = found.stored[f"blk.0.ffn_up.{e}.weight"]
        assert torch.equal(stored.values().view(stored.shape), values(experts)[e] * factor)
    kept: Any = found.stored["blk.0.ffn_down.weight"]
    for made_of in (kept.values(), kept.form.values(kept.fields(0, 2)).flatten()):  # and as it stays in memory
        assert torch.equal(made_of, plain * 0.25)
    assert plain.abs().sum() > 0
    assert torch.equal(found.stored["blk.0.attn_norm.weight"].values(), values(floats(5)) - 1)
    assert found.idle == ["blk.0.ffn_down.input_scale"]
    assert len(found.info) == 4
    assert found.info["blk.0.ffn_down.weight"].format == "NVFP4"
    named["blk.0.ffn_down.scale"] = ([2], 0, 2 * scale)
    with pytest.raises(ValueError, match=r"ffn_down.scale is F32 \[2\]"):
        checkpoint(tmp_path, named)


def test_keys_and_values_of_latent_attention(tmp_path: Path) -> None:
    """A head's rows are those of its keys, which lie transposed, then those of its values."""
    keys, inner = floats(3, 4, 2), floats(4, 5, 2)
    named = {"blk.0.attn_k_b.weight": keys, "blk.0.attn_v_b.weight": inner}
    found = checkpoint(tmp_path, named).stored
    joined = found["blk.0.attn_kv_b.weight"].values().view(2, 8, 4)
    assert list(found) == ["blk.0.attn_kv_b.weight"]
    for head in range(2):
        assert torch.equal(joined[head, :3], values(keys)[head].T)
        assert torch.equal(joined[head, 3:], values(inner)[head])
    with pytest.raises(ValueError, match=r"attn_v_b\.weight is missing"):
        checkpoint(tmp_path, {"blk.0.attn_k_b.weight": keys})
    with pytest.raises(ValueError, match="do not fit"):
        checkpoint(tmp_path, {**named, "blk.0.attn_v_b.weight": floats(5, 5, 2)})


@given(start=st.integers(0, 511), count=st.integers(0, 511))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stretch_of_values(start: int, count: int, tmp_path: Path) -> None:
    """Wherever it begins and ends in its blocks, and in the pieces that are dequantised at a time."""
    stop = min(start + count, 512)
    raw = np.random.default_rng(0).integers(0, 120, 16 * 34, dtype=np.uint8)
    raw.reshape(16, 34)[:, :2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    path = tmp_path / "blocks.gguf"
    if not path.exists():
        path.write_bytes(made.file({}, {"t": ([32, 16], 8, raw.tobytes())}))
    stored = tensors.stored(reader.read(path).entries["t"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PIECE", 64)
        assert torch.equal(stored.values(start, stop), stored.values()[start:stop])
    exact = raw.reshape(16, 34)[:, 2:].astype(np.float32) / 2
    assert np.array_equal(stored.values().numpy(), exact.reshape(-1))
