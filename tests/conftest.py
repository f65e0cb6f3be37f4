"""What all tests share. Triton runs in its interpreter, but for `make gpu`: this must be set before anything imports
triton."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # given material beside the checkout; a user's clone has none

hypothesis.settings.register_profile("project", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("project")

# The interpreter is too slow to shrink a failure.
FAST = {"phases": [hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate]}


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what runs in the background, and it would
        signal.signal(signal.SIGINT, signal.default_int_handler)  # start programs so that tests interrupt
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)  # as many workers as cores: each takes one
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so does each process that it starts
    if os.environ["TRITON_INTERPRET"] == "1":
        from tests.helpers import interpreter

        interpreter.quicken()


def pytest_collection_finish() -> None:
    """What is imported by now stays: each collection of garbage would look through a million objects of it."""
    gc.collect()
    gc.freeze()


def shared(relative: str) -> Path:
    """A path in the shared material; the test is skipped where there is none."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"shared material is absent: {relative}")
    return path


def exit_code(main: Callable[[list[str]], int], arguments: list[str]) -> object:
    """Of a command, which argparse may leave on its own."""
    try:
        return main(arguments)
    except SystemExit as left:
        return left.code


@pytest.fixture(scope="session")
def stories() -> Path:
    return shared("checkpoints/stories260K")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in published layout; not to be changed."""
    from tests.helpers import tiny

    folder = tmp_path_factory.mktemp("saved")
    tiny.save(folder, "llama", {})
    return folder


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family, with 5 experts and with 8 in 4 groups; not to be changed."""
    from tests.helpers import tiny

    folder = tmp_path_factory.mktemp("mixtures")
    for family in ("mixtral", "deepseek_v2", "deepseek_v3"):
        tiny.save(folder / family, *tiny.ROWS[family])
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A fresh copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture
def small_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with blocks that Triton's interpreter can bear, and NaN in all that they have to fill."""
    from tests.helpers import kernel_cases

    kernel_cases.shrink(monkeypatch)
    kernel_cases.poison(monkeypatch)
