"""Whole models whose matrices are random numbers in the form of a published format: of any size, made as fast as a disk
writes, for what time and memory they take.

    python -m tests.helpers.packed_models gptq qwen2.5-0.5b FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillm import families
from minillm.families.shared.shapes import SHAPES
from minillm.model.decoder import skeleton
from minillm.report import saving
from minillm.weights.gguf import kinds, writer
from minillm.weights.save import published

GROUP, SMALL = 128, 2**-9
NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)  # fmt: skip


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


def raw(*shape: int, below: int = 256) -> Tensor:
    return torch.randint(below, shape, dtype=torch.uint8)


def e4m3(*shape: int) -> Tensor:
    return raw(*shape, below=0x7F).view(torch.float8_e4m3fn)


def factors(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, SMALL, dtype=dtype)


def gptq(o: int, i: int) -> dict[str, Tensor]:
    zeros = torch.full((i // GROUP, o // 8), 0x77777777, dtype=torch.int32)
    scales, group = factors(i // GROUP, o, dtype=torch.float16), torch.arange(i, dtype=torch.int32) // GROUP
    return {"qweight": words(i // 8, o), "qzeros": zeros, "scales": scales, "g_idx": group}


def awq(o: int, i: int) -> dict[str, Tensor]:
    scales = factors(i // GROUP, o, dtype=torch.float16)
    return {"qweight": words(i, o // 8), "qzeros": words(i // GROUP, o // 8), "scales": scales}


def nf4(o: int, i: int) -> dict[str, Tensor]:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [o, i], "nested_blocksize": 256,
             "nested_dtype": "float32", "nested_offset": SMALL}  # fmt: skip
    blocks = o * i // 64
    return {
        "weight": raw(o * i // 2, 1),
        "weight.absmax": raw(blocks),
        "weight.quant_map": torch.tensor(NF4),
        "weight.nested_absmax": factors(-(-blocks // 256)),
        "weight.nested_quant_map": torch.linspace(-1, 1, 256),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def int8(o: int, i: int) -> dict[str, Tensor]:
    return {"weight": raw(o, i).view(torch.int8), "SCB": factors(o)}


def pack_quantized(o: int, i: int) -> dict[str, Tensor]:
    scale = factors(o, i // GROUP, dtype=torch.bfloat16)
    return {"weight_packed": words(o, i // 8), "weight_scale": scale, "weight_shape": torch.tensor([o, i])}


def fp8_blocks(o: int, i: int) -> dict[str, Tensor]:
    return {"weight": e4m3(o, i), "weight_scale_inv": factors(-(-o // 128), -(-i // 128))}


def fp8_channel(o: int, i: int) -> dict[str, Tensor]:
    return {"weight": e4m3(o, i), "weight_scale": factors(o, 1, dtype=torch.bfloat16)}


def mxfp4(o: int, i: int) -> dict[str, Tensor]:
    return {"weight_packed": raw(o, i // 2), "weight_scale": torch.full((o, i // 32), 118, dtype=torch.uint8)}


def mxfp8(o: int, i: int) -> dict[str, Tensor]:
    return {"weight": e4m3(o, i), "weight_scale": torch.full((o, i // 32), 118, dtype=torch.uint8)}


def nvfp4(o: int, i: int) -> dict[str, Tensor]:
    return {"weight": raw(o, i // 2), "weight_scale": e4m3(o, i // 16), "weight_scale_2": torch.tensor(SMALL / 64)}


def mlx(o: int, i: int) -> dict[str, Tensor]:
    scales, biases = (factors(o, i // 64, dtype=torch.bfloat16) for _ in range(2))
    return {"weight": words(o, i // 8).view(torch.uint32), "scales": scales, "biases": biases}


OF_GROUPS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
Make = Callable[[int, int], dict[str, Tensor]]
FORMS: dict[str, tuple[Make, Mapping[str, Any]]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "pack-quantized": (pack_quantized, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": OF_GROUPS}},
    }),
    "fp8-blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8-channel": (fp8_channel, {"quant_method": "fbgemm_fp8"}),
    "mxfp4": (mxfp4, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}),
    "mxfp8": (mxfp8, {"quant_method": "compressed-tensors", "format": "mxfp8-quantized"}),
    "nvfp4": (nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "mlx": (mlx, {"bits": 4, "group_size": 64}),
}  # fmt: skip
BLOCKS = sorted(kind.name for kind in kinds.KINDS.values() if kind.form)


def write(folder: Path, config: Mapping[str, Any], form: str) -> Path:
    """A checkpoint with its matrices in a form of `FORMS`, embedding and head in bf16; what to load is returned. Of
    `BLOCKS` it is a file of llama.cpp's with all matrices in blocks of a kind."""
    torch.manual_seed(0)
    if form in BLOCKS:
        return _write_file(folder / "model.gguf", config, form)
    make, section = FORMS[form]
    spec, rules, _ = families.resolve(config)
    tensors = dict[str, Tensor]()
    for name, to in published(rules, skeleton(spec, torch.bfloat16).destinations()).items():
        *_, wide = shape = to.stored_shape
        if len(shape) == 2 and not name.startswith(("model.embed", "lm_head")):
            tensors |= {f"{name.removesuffix('weight')}{part}": each for part, each in make(shape[0], wide).items()}
        else:
            tensors[name] = torch.full(shape, SMALL if len(shape) == 2 else 1.0, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    return folder


def _write_file(path: Path, config: Mapping[str, Any], kind: str) -> Path:
    file = saving.described(skeleton(families.resolve(config)[0], torch.float32), config, "q8_0", pure=True)
    entries = [
        writer.Entry(each.name, each.shape, kind if blocks != "F32" else "F32", []) for each, blocks in file.tensors
    ]
    with path.open("wb") as out:
        out.write(writer._head(file.metadata, entries))
        for each in entries:
            plain = each.kind == "F32"  # bytes below 0x38 are numbers below a half, two of them in fp16
            values = torch.ones(each.shape).view(torch.uint8) if plain else raw(each.nbytes, below=0x38)
            out.write(values.numpy().tobytes() + bytes(-each.nbytes % 32))
    return path


if __name__ == "__main__":
    form, shape, place = sys.argv[1:]
    Path(place).mkdir(parents=True)
    print(write(Path(place), SHAPES[shape], form))
