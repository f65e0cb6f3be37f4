"""The device and the dtype that a model is loaded to."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | torch.device) -> torch.device:
    """The device a name means; "auto" is the first GPU, or the CPU. Raises ValueError for one that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if target.type not in ("cpu", "cuda") or (target.type == "cpu" and target.index):
        raise ValueError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not here: {torch.cuda.device_count()} GPUs found; use --device cpu")
    return target


def stored_dtype(asked: str | torch.dtype, stated: str | None, stored: torch.dtype | None) -> torch.dtype:
    """What was asked for; for "auto" what config.json states, else what the tensors are stored in."""
    name = str(asked).removeprefix("torch.")
    if name not in ("auto", *DTYPES):
        raise ValueError(f"dtype {name!r} is not supported; use auto, {', '.join(DTYPES)}")
    if name != "auto":
        return DTYPES[name]
    if stated not in (None, "auto", *DTYPES):
        raise ValueError(f"config.json: dtype {stated!r} is not supported; choose one of {', '.join(DTYPES)} yourself")
    if stated in DTYPES:
        return DTYPES[stated]
    return stored if stored in DTYPES.values() and stored is not None else torch.float32


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine has fast arithmetic for a dtype: any GPU, and a CPU as far as oneDNN has kernels for it."""
    if device.type != "cpu" or dtype == torch.float32:
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    bf16, fp16 = torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.ops.mkldnn._is_mkldnn_fp16_supported
    return bool(bf16() if dtype == torch.bfloat16 else fp16())
