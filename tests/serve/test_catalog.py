"""Several checkpoints in one server: loaded on demand, within a bound, and never taken from a request under way."""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import minillm
from minillm.hub import DEMO
from minillm.plan.budget import Question, budget
from minillm.serve.errors import Refusal
from minillm.serve.models import Card, sources
from minillm.serve.models.catalog import Catalog, Model
from minillm.serve.models.sources import Source
from tests.helpers.server import Running

CACHE = 600_000  # which have room for fewer positions than the model
BASE = Source(("",), {"path": None, "dtype": "float32"}, CACHE, max_batch=4)
BODY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo three times, and what is no checkpoint."""
    made = tmp_path_factory.mktemp("models")
    for name in "abc":
        shutil.copytree(DEMO, made / name)
    (made / "notes").mkdir()
    (made / "readme.txt").write_text("x")
    return made


@pytest.fixture
def start(folder: Path, request: pytest.FixtureRequest) -> Callable[..., Running]:
    """A server with room for so many of them."""

    def begin(count: int = 2, models: Path = folder, **settings: Any) -> Running:
        needed = BASE.model(10**9).needed
        made = Running(Catalog(*sources.models(models, BASE, needed * count), needed * count), **settings)
        request.addfinalizer(made.service.close)
        request.addfinalizer(made.stop)
        return made

    return begin


def ask(server: Running, name: str | None, **more: Any) -> httpx.Response:
    return server.post("/v1/completions", {**BODY, "model": name, **more})


def there(server: Running) -> list[str]:
    return sorted(each["name"] for each in httpx.get(f"{server.url}/api/ps").json()["models"])


def test_lists_need_no_weights_and_say_what_a_load_shows(start: Callable[..., Running], folder: Path) -> None:
    server = start()
    before = httpx.get(f"{server.url}/v1/models").json()["data"], httpx.get(f"{server.url}/api/tags").json()["models"]
    assert [each["id"] for each in before[0]] == [each["name"] for each in before[1]] == ["a", "b", "c"]
    shown = server.post("/api/show", {"model": "a"}).json()
    assert there(server) == []
    assert ask(server, "a").status_code == 200
    assert there(server) == ["a"]
    (served,) = server.service.models.loaded
    assert before[0][0]["max_model_len"] == served.room < served.llm.spec.context
    parameters = list(served.llm.model.parameters())
    assert before[1][0]["size"] == sum(each.nbytes for each in parameters)
    assert shown["model_info"]["general.parameter_count"] == sum(each.numel() for each in parameters)
    assert shown["template"] == served.template
    assert before[1][0]["size"] == budget(folder / "a", Question(dtype="float32"))["weight_bytes"]


def test_the_one_not_used_for_longest_goes(start: Callable[..., Running], llm: minillm.LLM) -> None:
    server = start()
    text = llm.generate(BODY["prompt"], max_new_tokens=8, temperature=0).text  # type: ignore[union-attr]
    gone = None
    for name in "abac":
        assert ask(server, name).json()["choices"][0]["text"] == text
        if name == "b":
            gone = weakref.ref(next(x for x in server.service.models.loaded if x.name == "b").llm.model)
    assert there(server) == ["a", "c"]
    gc.collect()
    assert gone is not None
    assert gone() is None  # nothing holds its weights
    metrics = httpx.get(f"{server.url}/metrics").text
    for name, count in (("a", 2), ("b", 1), ("c", 1)):
        assert f'minillm:generation_tokens_total{{model_name="{name}"}} {8.0 * count}' in metrics
        assert f'minillm:model_loaded{{model_name="{name}"}} {float(name != "b")}' in metrics
    assert 'minillm:num_requests_running{model_name="b"}' not in metrics


def test_a_model_in_use_stays_until_its_requests_have_ended(start: Callable[..., Running]) -> None:
    server = start(1)
    long = {**BODY, "model": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    alone = ask(server, "a", max_tokens=200, ignore_eos=True).json()["choices"][0]["text"]
    with httpx.stream("POST", f"{server.url}/v1/completions", json=long, timeout=60) as answer:
        lines = answer.iter_lines()
        text = next(lines)
        with ThreadPoolExecutor(2) as others:
            late = [others.submit(ask, server, name) for name in "ba"]
            text += "".join(lines)
            assert [each.result().status_code for each in late] == [200, 200]
    assert "data: [DONE]" in text
    pieces = [line for line in text.replace("data: ", "\n").splitlines() if line.startswith("{")]
    assert "".join(httpx.Response(200, text=each).json()["choices"][0]["text"] for each in pieces) == alone


def test_requests_wait_for_one_load(start: Callable[..., Running]) -> None:
    server = start()
    loads: list[str] = []
    model = server.service.models.find("b")
    load = model.load
    model.load = lambda progress: (loads.append("b"), load(progress))[1]  # type: ignore[assignment]
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(ask, server, "b") for _ in range(8)]
        assert {each.result().status_code for each in asked} == {200}
    assert loads == ["b"]


def test_every_route_that_needs_a_model_loads_it(start: Callable[..., Running]) -> None:
    server = start(1)
    messages = [{"role": "user", "content": "Hi"}]
    for name, (path, body) in zip(
        "abcabc",
        {
            "/tokenize": {"prompt": "Hi"},
            "/detokenize": {"tokens": [5]},
            "/v1/embeddings": {"input": "Hi"},
            "/v1/messages/count_tokens": {"messages": messages},
            "/api/generate": {},
            "/api/chat": {"messages": messages, "stream": False, "options": {"num_predict": 1}},
        }.items(),
        strict=True,
    ):
        found = server.post(path, {"model": name, **body})
        assert found.status_code == 200, found.text
        assert there(server) == [name]


def test_without_a_name_and_by_a_wrong_one(start: Callable[..., Running]) -> None:
    server = start()
    missing, unknown = ask(server, None), ask(server, "d")
    assert (missing.status_code, unknown.status_code) == (400, 404)
    assert "a, b, c" in missing.json()["error"]["message"]
    assert "a, b, c" in unknown.json()["error"]["message"]


def test_a_load_that_fails_is_told_and_tried_again(
    start: Callable[..., Running], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "models")
    server, file = start(2, tmp_path / "models"), tmp_path / "models" / "a" / "model.safetensors"
    file.rename(tmp_path / "aside")
    found = ask(server, "a")
    assert (found.status_code, found.json()["error"]["code"]) == (503, "model_not_loaded")
    assert str(tmp_path) not in found.text
    assert "a could not be loaded" in capsys.readouterr().err
    assert ask(server, "b").status_code == 200
    (tmp_path / "aside").rename(file)
    assert ask(server, "a").status_code == 200
    assert there(server) == ["a", "b"]


def test_what_can_never_fit_is_refused_with_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], start: Callable[..., Running]
) -> None:
    file = tmp_path / "models.yaml"
    entry = "- {name: %s, weights: %s, dtype: float32, cache_memory: %d}\n"
    file.write_text(entry % ("small", folder / "a", 10**6) + entry % ("[big, huge]", folder / "b", 3 * 10**9))
    said = r"big: it takes 0\.00 GB of weights and 3\.00 GB of cache, --model-memory is 1\.00 GB"
    with pytest.raises(ValueError, match=said):
        sources.models(file, BASE, 10**9)
    (tmp_path / "models").mkdir()
    for name in ("a", "b"):
        shutil.copytree(folder / "a", tmp_path / "models" / name)
    config = (tmp_path / "models" / "b" / "config.json").read_text()
    (tmp_path / "models" / "b" / "config.json").write_text(config.replace('"llama"', '"none-such"'))
    server = start(1, tmp_path / "models")
    assert "b is left out" in capsys.readouterr().err
    found = ask(server, "b")
    assert found.status_code == 404
    assert "none-such" in found.json()["error"]["message"]
    assert str(tmp_path) not in found.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: a}", "weights"),
        ("- {name: a, weights: x, dtpe: float32}", "dtpe"),
        ("[]", "no checkpoint"),
        ("x: [", "expected a list of entries"),
        ("- {name: a, weights: DEMO}\n- {name: [b, a], weights: DEMO}", "two models have the name 'a'"),
        ("- {name: a, weights: DEMO, quantize: int3}", "int3"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.yaml").write_text(text.replace("DEMO", str(DEMO)))
    with pytest.raises(ValueError, match=said):
        sources.models(tmp_path / "m.yaml", BASE, 10**9)


class Engine:
    """Of a model that is not there."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("seed", range(20))
def test_any_order_keeps_within_the_bound_and_serves_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients take models at random, some leave while they wait and some loads fail."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes longer than all else here
    draw = random.Random(seed)
    failing = {draw.randrange(4)}
    lock = threading.Lock()

    def model(index: int) -> Model:
        card = Card((str(index),), 8, "x", 1, 1, "float32", None)

        def load(progress: Any) -> Any:
            with lock:
                bad = index in failing and draw.random() < 0.5
            if bad:
                raise ValueError("damaged")
            return SimpleNamespace(engine=Engine(), name=str(index))

        return Model(card, draw.randint(1, 5), load)

    async def client(catalog: Catalog) -> int:
        served = 0
        for _ in range(6):
            name = str(draw.randrange(4))
            taking = asyncio.create_task(catalog.take(name))
            if draw.random() < 0.2:
                await asyncio.sleep(0)
                taking.cancel()
            try:
                copy = await taking
            except (Refusal, asyncio.CancelledError):
                continue
            assert copy.served.name == name
            await asyncio.sleep(draw.random() * 0.002)
            assert not copy.served.engine.closed  # type: ignore[attr-defined]
            assert sum(each.needed for each in catalog.copies) <= catalog.memory  # type: ignore[operator]
            copy.give()
            served += 1
        return served

    async def run() -> None:
        catalog = Catalog([model(index) for index in range(4)], memory=7)
        done = await asyncio.wait_for(asyncio.gather(*(client(catalog) for _ in range(12))), 60)
        assert sum(done) > 20
        await asyncio.sleep(0.05)
        assert all(each.users == 0 for each in catalog.copies)
        catalog.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    left = [each.name for each in threading.enumerate() if each.name == "minillm engine"]
    assert len(left) <= 1, left  # that of the module's own model, perhaps
