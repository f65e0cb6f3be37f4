"""Formats that are not read: how their tensors and configs call them, and what to give instead.

They are rare, or layouts for one kind of GPU, or need a transform of the activations too. What they are is said before
anything else is, as their tensors would look like those of some other format, or like none.
"""

from __future__ import annotations

from collections.abc import Mapping

from minillm.weights.formats.packed import Infos, Packed, Section

TITLE = "refused"
SPELLINGS, OPTIONAL = tuple[tuple[str, ...], ...](), tuple[str, ...]()
OTHERS = "use a GPTQ, AWQ, bitsandbytes, MLX or unquantised checkpoint of the model"
NAMES: Mapping[str, str] = {  # quant_method -> what it is
    "exl2": "EXL2 of ExLlamaV2",
    "exl3": "EXL3 of ExLlamaV3, trellises",
    "quark": "AMD Quark",
    "aqlm": "AQLM, sums of vectors from codebooks",
    "vptq": "VPTQ, vectors from codebooks",
    "higgs": "HIGGS, vectors from a grid behind a Hadamard transform",
    "quip": "QuIP#, vectors from a lattice behind a Hadamard transform",
    "spqr": "SpQR, with a sparse matrix of outliers",
    "eetq": "EETQ, int8 in a layout for GPUs",
    "bitnet": "BitNet, which quantises activations as well",
    "hqq": "HQQ",
    "marlin": "Marlin, a layout of GPTQ for GPUs",
    "bitblas": "BitBLAS, a layout for GPUs",
    "fp_quant": "FP-Quant, behind a Hadamard transform",
}
ENDINGS: Mapping[str, str] = {  # of a name -> the method
    "q_invperm": "exl2",
    "q_scale_max": "exl2",
    "trellis": "exl3",
    "weight_quantizer.scale": "quark",
    "codebooks": "aqlm",
    "centroids.weight": "vptq",
    "tables2": "higgs",
    "Qidxs": "quip",
    "dense_weights": "spqr",
    "weight_scales": "eetq",
    "W_q": "hqq",
    "B": "marlin",
}


def matrices(infos: Infos, section: Section) -> dict[str, Packed]:
    """None. Raises ValueError for a tensor that only a format not read has."""
    for name in infos:
        for ending, method in ENDINGS.items():
            if name.endswith("." + ending):
                raise ValueError(f"{name}: quantised with {method} ({NAMES[method]}), which is not read; {OTHERS}")
    return {}


def remedy(method: str) -> str:
    """What to say of a method that is not read."""
    known = f" ({NAMES[method]})" if method in NAMES else ""
    return f"quantised with {method}{known}, which is not supported yet; {OTHERS}"
