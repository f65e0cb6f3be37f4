"""A server for each module that asks for one, with the demo model in fp32."""

from __future__ import annotations

import functools
import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import minillm
from minillm.hub import DEMO
from minillm.serve.models import Served
from minillm.text.tokenizer import Tokenizer
from tests.helpers.grammars import marks
from tests.helpers.server import TOOLS_TEMPLATE, Running, Script, serve
from tests.helpers.stub_server import Stub
from tests.helpers.visit import Visit


@pytest.fixture(scope="session", autouse=True)
def _certificates_once() -> Iterator[None]:
    """httpx reads all certificates anew for each client: 24 ms of CPU for each request of a test, none of which is
    encrypted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


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


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """The demo's, for which marks are text, and the same with special tokens for all marks."""
    folder = tmp_path_factory.mktemp("special")
    shutil.copy(DEMO / "tokenizer_config.json", folder)
    content = json.loads((DEMO / "tokenizer.json").read_text())
    plain = Tokenizer(DEMO)
    for at, mark in enumerate(marks()):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": plain.backend.size + at, "content": mark, "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return {"text": plain, "special": Tokenizer(folder)}


@pytest.fixture(scope="module")  # it leaves an event loop running until it is closed
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[Visit] = []

    def start(deltas: Any = None, key: str = "", **how: Any) -> Visit:
        stub = Stub(deltas, key)
        request.addfinalizer(stub.close)
        made.append(Visit(browser, stub, **how))
        return made[-1]

    yield start
    for each in made:
        each.context.close()
        assert each.faults == []
