"""Common GPUs by name: memory, bandwidth, and the fastest dense products that their makers state."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

GB, TERA = 10**9, 10**12
UNITS = {"GB": 10**9, "MB": 10**6, "TB": 10**12, "GIB": 2**30, "MIB": 2**20, "TIB": 2**40}
MAX_BYTES = 10**15


class Device(NamedTuple):
    """Bytes, bytes per second, and operations per second, two for a multiplication with its addition, without sparsity;
    None where the maker states none."""

    name: str
    memory: int
    bandwidth: float | None = None
    bf16: float | None = None
    fp8: float | None = None


# GB and GB/s as their makers state them (decimal: 80 GB may be 80 GiB on the board, of which error correction and the
# driver take a share), TFLOP/s dense with fp32 accumulation: half of what the sheets print "with sparsity". Sources:
# NVIDIA's data sheets of A10, L4, L40S, A100, H100, H200, DGX B200 and its whitepapers of GA102, AD102 and Blackwell;
# AMD's data sheets of MI300X and MI325X; Apple's technical specifications, which state no operations.
FIGURES: tuple[tuple[str, float, float, float | None, float | None], ...] = (
    ("RTX 3090", 24, 936, 71, None),
    ("RTX 4090", 24, 1008, 165.2, 330.3),
    ("RTX 5090", 32, 1792, 209.5, 419),
    ("RTX 6000 Ada", 48, 960, 364.2, 728.5),
    ("RTX PRO 6000", 96, 1792, 503.8, 1007.6),
    ("A10", 24, 600, 125, None),
    ("L4", 24, 300, 121, 242.5),
    ("L40S", 48, 864, 362, 733),
    ("A100 40GB", 40, 1555, 312, None),
    ("A100 80GB", 80, 2039, 312, None),
    ("H100 PCIe", 80, 2000, 756, 1513),
    ("H100 SXM", 80, 3350, 989.4, 1978.9),
    ("H200", 141, 4800, 989.4, 1978.9),
    ("B200", 180, 8000, 2250, 4500),
    ("MI300X", 192, 5300, 1307.4, 2614.9),
    ("MI325X", 256, 6000, 1307.4, 2614.9),
    ("M4 Max 128GB", 128, 546, None, None),
    ("M3 Ultra 512GB", 512, 819, None, None),
)


def _device(name: str, memory: float, bandwidth: float, bf16: float | None, fp8: float | None) -> Device:
    rates = (None if each is None else each * TERA for each in (bf16, fp8))
    return Device(name, round(memory * GB), bandwidth * GB, *rates)


DEVICES: Mapping[str, Device] = MappingProxyType({figures[0]: _device(*figures) for figures in FIGURES})


def device(text: str) -> Device:
    """What "24GB", "80GiB", or a name of the table or a part that only one has means; a device given by its memory has
    no speeds. Raises ValueError for anything else."""
    if match := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT]i?B)", text.strip(), re.IGNORECASE):
        number, unit = float(match[1]), match[2].upper()
        nbytes = number * UNITS.get(unit, math.nan)
        if not 0 < nbytes <= MAX_BYTES:
            raise ValueError(f"--gpu {text}: give between 1MB and 1000TB")
        return Device(text.strip(), round(nbytes))
    plain = {_plain(name): name for name in DEVICES}
    within = [name for each, name in plain.items() if _plain(text) in each]
    found = [plain[_plain(text)]] if _plain(text) in plain else within
    if len(found) == 1:
        return DEVICES[found[0]]
    if 1 < len(found) < len(plain):
        raise ValueError(f"--gpu {text[:40]!r} may be {', '.join(found)}; say which")
    names = ", ".join(DEVICES)
    raise ValueError(f"--gpu {text[:40]!r} is neither a memory such as 24GB or 80GiB nor a name; names are {names}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def table() -> list[list[str]]:
    """All devices as rows of a table, the first of them its head."""
    rows = [["device", "memory", "bandwidth", "bf16", "fp8"]]
    for each in DEVICES.values():
        rates = ("-" if rate is None else f"{rate / TERA:,.0f} TFLOP/s" for rate in (each.bf16, each.fp8))
        rows.append([each.name, f"{each.memory / GB:.0f} GB", f"{(each.bandwidth or 0) / GB:,.0f} GB/s", *rates])
    return rows
