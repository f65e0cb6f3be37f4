"""What all tests share. Triton runs in its interpreter: this must be set before anything imports triton."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # given material beside the checkout; a user's clone has none

hypothesis.settings.register_profile("project", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)  # as many workers as cores: each takes one


def shared(relative: str) -> Path:
    """A path in the shared material; the test is skipped where there is none."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"shared material is absent: {relative}")
    return path


@pytest.fixture(scope="session")
def stories() -> Path:
    return shared("checkpoints/stories260K")
