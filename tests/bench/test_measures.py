"""What the machine can do, and what a process holds, are measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from minillm.report import measure
from minillm.report.measure import copy_bandwidth, forget_peak_rss, matrix_peak, peak_memory, peak_rss


def test_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COPY_BYTES", 2**16)
    monkeypatch.setattr(measure, "MATRIX_SIZES", (64,))
    cpu = torch.device("cpu")
    assert 1e5 < copy_bandwidth(cpu) < 1e13
    assert 1e5 < matrix_peak(cpu, torch.float32) < 1e15
    assert 5e7 < peak_memory(cpu) < 1e12


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells and forgets a peak")
def test_a_peak_is_that_since_it_was_forgotten() -> None:
    torch.ones(2**26)  # 256 MB, given back at once
    before = peak_rss(os.getpid())
    forget_peak_rss(os.getpid())
    assert before - peak_rss(os.getpid()) > 2e8
