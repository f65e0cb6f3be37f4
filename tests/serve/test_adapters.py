"""Adapters as models: OpenAI's client asks for two of them and for their base at once, and each writes its own text."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

import minillm
from minillm.adapters.attach import attach
from minillm.adapters.config import AdapterConfig
from minillm.serve.__main__ import _catalog, _parse, main
from minillm.serve.keys import Entry, Keys
from tests.conftest import exit_code
from tests.helpers import adapters
from tests.helpers.server import Running

PROMPT = "Once upon a time there was a cat"
KEYS = Keys([Entry(name="free", key="free-secret"), Entry(name="bound", key="bound-secret", requests_per_minute=2)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the demo, of other ranks and matrices."""
    made = {}
    for rank, (name, targets) in enumerate({"law": "all-linear", "poems": ["q_proj", "down_proj"]}.items()):
        made[name] = tmp_path_factory.mktemp(name)
        adapter = attach(minillm.load(dtype="float32"), AdapterConfig(r=4 + rank, target_modules=targets))
        adapters.randomise_ours(adapter)
        adapter.write(made[name])
    return made


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Running]:
    given = [flag for name, folder in folders.items() for flag in ("--adapter", f"{name}={folder}")]
    options = ["--dtype", "float32", "--cache-memory", "20000000", "--served-model-name", "base", "also"]
    made = Running(_catalog(_parse([*options, *given])), KEYS, fold_system=True)
    yield made
    made.stop()
    made.service.close()


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="free-secret", max_retries=0)


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, str]:
    """What each writes in a process of its own, without any other."""
    made = {"base": minillm.load(dtype="float32")}
    made |= {name: minillm.load(dtype="float32", adapter=folder) for name, folder in folders.items()}
    return {
        name: llm.generate(PROMPT, max_new_tokens=24, temperature=0, ignore_eos=True).text for name, llm in made.items()
    }


def written(client: OpenAI, model: str, **options: Any) -> str:
    extra = {"ignore_eos": True, **options.pop("extra", {})}
    made = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=24, temperature=0, extra_body=extra, **options
    )
    assert made.model == model.replace("also", "base")
    return made.choices[0].text


def test_each_writes_its_own_in_one_batch(client: OpenAI, alone: dict[str, str]) -> None:
    names = ["law", "base", "poems", "also", "law", "poems"]
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor(len(names)) as pool:
        texts = [*pool.map(lambda name: written(client, name), names)]
    assert texts == [alone["base" if name == "also" else name] for name in names]


def test_what_lists_say(client: OpenAI, server: Running, alone: dict[str, str]) -> None:
    found = {each.id: each.model_dump() for each in client.models.list()}
    assert list(found) == ["base", "also", "law", "poems"]
    assert [each["parent"] for each in found.values()] == [None, None, "base", "base"]
    head = {"authorization": "Bearer free-secret"}
    asked = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    answer = server.post("/v1/completions", asked, headers=head).json()  # no model is named
    assert (answer["model"], answer["choices"][0]["text"]) == ("base", alone["base"])
    with pytest.raises(openai.NotFoundError, match="'verse' does not exist; there are base, also, law, poems"):
        written(client, "verse")


def test_chats_and_vectors(client: OpenAI, folders: dict[str, Path]) -> None:
    """The other APIs go through the same adapters."""
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    said, vectors = {}, {}
    for name in ("base", *folders):
        made = client.chat.completions.create(model=name, messages=messages, max_tokens=12, temperature=0)
        llm = minillm.load(dtype="float32", adapter=folders.get(name))
        assert made.choices[0].message.content == llm.generate(messages=messages, max_new_tokens=12, temperature=0).text
        said[name] = made.choices[0].message.content
        vectors[name] = client.embeddings.create(model=name, input=PROMPT).data[0].embedding
    assert len(set(said.values())) == 3
    assert len({tuple(each) for each in vectors.values()}) == 3


def test_what_is_cached_is_of_one_adapter(client: OpenAI) -> None:
    cached = []
    for name in ("base", "law", "poems", "law"):
        made = client.completions.create(model=name, prompt=f"{PROMPT}. " * 12, max_tokens=1)
        assert made.usage is not None
        assert made.usage.prompt_tokens_details is not None
        cached.append(made.usage.prompt_tokens_details.cached_tokens)
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 0


def test_limits_of_a_key_hold_for_all_of_them(server: Running) -> None:
    bound = OpenAI(base_url=f"{server.url}/v1", api_key="bound-secret", max_retries=0)
    assert [len(written(bound, name)) > 0 for name in ("base", "law")] == [True, True]
    with pytest.raises(openai.RateLimitError, match="2 requests a minute"):
        written(bound, "poems")
    stranger = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        written(stranger, "law")


def test_metrics_count_each_by_its_name(client: OpenAI, server: Running) -> None:
    """And the engine that they share once."""
    written(client, "poems")
    text = server.service.metrics.text().decode()
    assert 'minillm:generation_tokens_total{model_name="poems"}' in text
    assert 'minillm:model_loaded{model_name="law"} 1.0' in text
    states = [line.split()[0] for line in text.splitlines() if line.startswith("minillm:num_requests_running{")]
    assert states == ['minillm:num_requests_running{model_name="base"}']


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["law={law}", "law={poems}"], "--adapter law is given twice"),
        (["{law}", "poems={poems}"], "of several each needs a name, as in --adapter NAME=FOLDER"),
        (["a b={law}"], "of several each needs a name"),
        (["law="], "of several each needs a name"),
        (["demo={law}"], "--adapter demo has the name of the model itself"),
        (["law={law}/nowhere"], "no adapter_config.json; give the folder of a PEFT adapter"),
    ],
)
def test_mistakes_are_one_line(
    given: list[str], words: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag for each in given for flag in ("--adapter", each.format(**folders))]
    assert exit_code(main, ["--port", "0", *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_one_without_a_name_is_for_all(folders: dict[str, Path]) -> None:
    """As before there were names; also where its path has an = in it."""
    odd = folders["law"].rename(folders["law"].with_name("a=b"))
    try:
        catalog = _catalog(_parse(["--adapter", str(odd), "--dtype", "float32", "--cache-memory", "20000000"]))
        assert list(catalog.named) == ["demo"]
        llm = catalog.all[0].load(lambda done, total: None).llm
        expected = minillm.load(dtype="float32", adapter=odd)
        texts = [each.generate(PROMPT, max_new_tokens=12, temperature=0).text for each in (llm, expected)]
        assert texts[0] == texts[1]
        catalog.close()
    finally:
        odd.rename(folders["law"])
