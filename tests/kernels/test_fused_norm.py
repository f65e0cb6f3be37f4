"""The fused norms, beyond `test_kernels.py`: what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from minillm.kernels.fused_norm import add_rms_norm, qk_norm_rope_cache


def given_(**changes: Any) -> dict[str, Any]:
    made = {
        "qkv": torch.ones(1, 2, 4 * 6),
        "num_heads": 2,
        "k_cache": torch.ones(1, 1, 5, 6),
        "v_cache": torch.ones(1, 1, 5, 6),
        "slots": torch.tensor([[0, 1]]),
        "cos": torch.ones(1, 2, 3),
        "sin": torch.ones(1, 2, 3),
    }
    return {**made, **changes}


ROW, W, WIDE = torch.ones(2, 8), torch.ones(8), torch.ones(1, 2, 4)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "residual": (lambda: add_rms_norm(ROW, torch.ones(2, 7), W, 1e-5), r"residual \[2, 7\]"),
    "weight": (lambda: add_rms_norm(ROW, ROW, torch.ones(7), 1e-5), r"weight \[7\]"),
    "type": (lambda: add_rms_norm(ROW, ROW.half(), W, 1e-5), "residual is torch.float16"),
    "stride": (lambda: add_rms_norm(torch.ones(8, 2).t(), ROW, W, 1e-5), "last dimension of x has stride 2"),
    "cast": (lambda: add_rms_norm(ROW, ROW, W, 1e-5, 0.0, "never"), "cast is 'never'"),
    "wide": (lambda: add_rms_norm(torch.ones(1, 70000), torch.ones(1, 70000), torch.ones(70000), 1e-5), "70000 values"),
    "gradient": (lambda: add_rms_norm(ROW.clone().requires_grad_(), ROW, W, 1e-5), "has no gradients"),
    "heads": (lambda: qk_norm_rope_cache(**given_(num_heads=3)), r"is not of 3 \+ 2 \* 1 heads of 6"),
    "angles": (lambda: qk_norm_rope_cache(**given_(cos=WIDE, sin=WIDE)), r"cos \[1, 2, 4\]"),
    "slots": (lambda: qk_norm_rope_cache(**given_(slots=torch.tensor([[0]]))), r"slots are torch.int64 \[1, 1\]"),
    "one norm": (lambda: qk_norm_rope_cache(**given_(q_weight=torch.ones(6))), "both norms' weights"),
    "layout": (lambda: qk_norm_rope_cache(**given_(layout="odd")), "layout is 'odd'"),
    "cache": (lambda: qk_norm_rope_cache(**given_(k_cache=torch.ones(1, 1, 5, 6).half())), "k_cache is torch.float16"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing() -> None:
    assert add_rms_norm(ROW[:0], ROW[:0], W, 1e-5)[0].shape == (0, 8)
    angles = torch.ones(1, 0, 3)
    nothing = {"qkv": torch.ones(1, 0, 24), "slots": torch.zeros(1, 0, dtype=torch.int64), "cos": angles, "sin": angles}
    assert qk_norm_rope_cache(**given_(**nothing)).shape == (1, 2, 0, 6)
