from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.parallel.forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    if sys.platform != "linux":
        pytest.skip("forks processes that have threads, and asks /proc")
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()
