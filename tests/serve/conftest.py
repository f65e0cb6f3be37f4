"""A server for each module that asks for one, with the demo model in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import minillm
from minillm.serve.models import Served
from tests.helpers.server import TOOLS_TEMPLATE, Running, Script, serve


@pytest.fixture(scope="session")
def llm() -> minillm.LLM:
    return minillm.load(dtype="float32")


@pytest.fixture(scope="session")
def tools_llm() -> minillm.LLM:
    """The demo with a template that knows of tools and reasoning."""
    made = minillm.load(dtype="float32")
    made.use_chat_template(TOOLS_TEMPLATE)
    return made


@pytest.fixture(scope="module")
def server(llm: minillm.LLM) -> Iterator[Running]:
    made = Running(serve(llm), fold_system=True)
    yield made
    made.stop()
    made.service.close()


@pytest.fixture(scope="module")
def tools_server() -> Iterator[Running]:
    """One whose template knows of tools, and not of reasoning."""
    llm = minillm.load(dtype="float32")
    llm.use_chat_template(TOOLS_TEMPLATE.replace("<think>", ""))
    made = Running(serve(llm))
    yield made
    made.stop()
    made.service.close()


@pytest.fixture
def scripted(tools_llm: minillm.LLM, request: pytest.FixtureRequest) -> Callable[..., Running]:
    """A server whose answers are the given texts, one after the other."""

    def start(*texts: str, wait: float = 0.0, **settings: Any) -> Running:
        made = Running(Served(tools_llm, Script(tools_llm, texts, wait), ["demo"]), **settings)  # type: ignore[arg-type]
        request.addfinalizer(made.stop)
        return made

    return start
