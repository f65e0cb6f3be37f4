"""What bitsandbytes stores and computes of FP4 matrices, recorded once, so that a test needs no bitsandbytes: the
tensors that go into a file, and what it makes of them, for each type of a matrix, with factors in fp32 or quantised
again, and with the bytes seen as another type. It dequantises a matrix as one row: of rows that are no whole blocks the
loop for CPUs of 0.50.2 begins each with a new block, which is not how it quantised them (errors up to six times as
large).

    python -m tests.helpers.record_fp4

It was recorded with bitsandbytes 0.50.2, on a CPU.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import ROOT

RECORDED = ROOT / "tests/weights/formats/recorded/fp4.safetensors"
CASES = {  # type of the matrix, whether factors are quantised, type of the bytes, values of a block
    "fp32": (torch.float32, False, torch.uint8, 64),
    "fp32-double": (torch.float32, True, torch.uint8, 64),
    "bf16": (torch.bfloat16, False, torch.bfloat16, 128),
    "bf16-double": (torch.bfloat16, True, torch.bfloat16, 64),
    "fp16-double": (torch.float16, True, torch.float32, 64),
    "blocks-over-rows": (torch.bfloat16, False, torch.uint8, 64),
}


def main() -> None:
    from bitsandbytes import functional  # type: ignore[import-not-found, unused-ignore]

    draw, found = torch.Generator().manual_seed(4), dict[str, Tensor]()
    for name, (dtype, double, storage, block) in CASES.items():
        matrix = (torch.randn(6, 96 if name == "blocks-over-rows" else 128, generator=draw) / 20).to(dtype)
        stored, state = functional.quantize_4bit(
            matrix, blocksize=block, compress_statistics=double, quant_type="fp4", quant_storage=storage
        )
        parts = {"weight": stored, **{f"weight.{part}": each for part, each in state.as_dict(packed=True).items()}}
        found |= {f"{name}/{part}": each.contiguous() for part, each in parts.items()}
        state.shape = torch.Size([matrix.numel()])
        found[f"{name}/dequantised"] = functional.dequantize_4bit(stored, state).view(matrix.shape)
    RECORDED.parent.mkdir(exist_ok=True)
    save_file(found, RECORDED)


if __name__ == "__main__":
    main()
