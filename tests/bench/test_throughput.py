"""The throughput of many sequences: what is asked for is what runs, and is what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm.bench import __main__ as bench
from minillm.bench.throughput import drawn, measure
from minillm.hub import DEMO
from minillm.loading import load
from tests.conftest import exit_code


def test_requests_are_the_same_for_the_same_seed_and_within_their_bounds() -> None:
    llm = load()
    rows, again, other = (drawn(llm, 40, 3, 9, seed) for seed in (1, 1, 2))
    assert [(row.prompt, row.max_new_tokens, row.seed) for row in rows] == [
        (row.prompt, row.max_new_tokens, row.seed) for row in again
    ]
    assert [row.prompt for row in rows] != [row.prompt for row in other]
    assert {len(row.prompt) for row in rows} == {row.max_new_tokens for row in rows} == set(range(3, 10))


def test_every_sequence_runs_to_its_end() -> None:
    llm = load()
    rows = drawn(llm, 9, 2, 7, 0)
    report = measure(llm, rows, 4)
    assert [len(row.token_ids) for row in rows] == [row.max_new_tokens for row in rows]
    assert report["new_tokens"] == sum(row.max_new_tokens for row in rows)
    assert report["prompt_tokens"] == sum(len(row.prompt) for row in rows)
    assert report["new_tok_s"] == pytest.approx(report["new_tokens"] / report["seconds"])
    assert 1 < report["rows_per_step"] <= 4


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["throughput", "--weights", str(DEMO), "--sequences", "5", "--least", "2", "--most", "6"]
    assert bench.main(given) == 0
    line, _, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert (report["shape"], report["sequences"], report["max_batch"]) == ("demo", 5, 5)
    assert f"{report['new_tok_s']:.0f} new tok/s" in line
    assert bench.main([*given[:-1], "9999"]) == 2
    assert "--most 9999" in capsys.readouterr().err


VLLM = '''
class EngineArgs:
    def __init__(self, model, **options):
        print("what a library prints")
        assert options.pop("max_model_len") == 16
        assert options == {"skip_tokenizer_init": True, "dtype": "float32", "max_num_seqs": 2}

class SamplingParams:
    def __init__(self, **options):
        self.left = options.pop("max_tokens")
        assert options == {"temperature": 0.6, "ignore_eos": True, "detokenize": False}

class Output:
    def __init__(self, number):
        self.request_id, self.token_ids, self.outputs = number, [], [self]

class LLMEngine:
    from_engine_args = classmethod(lambda cls, args: cls())

    def __init__(self):
        self.going = {}

    def add_request(self, number, prompt, wanted):
        assert len(prompt["prompt_token_ids"]) + wanted.left <= 16
        assert all(type(id) is int for id in prompt["prompt_token_ids"])
        self.going[number] = Output(number), wanted

    def has_unfinished_requests(self):
        return bool(self.going)

    def step(self):
        """Two requests at a time, two tokens of each."""
        found = [*self.going.items()][:2]
        for number, (output, wanted) in found:
            count = min(2, wanted.left - len(output.token_ids))
            output.token_ids += [7] * count
            if len(output.token_ids) == wanted.left:
                del self.going[number]
        return [output for _, (output, _) in found]
'''
LLAMA = """
import ctypes
from types import SimpleNamespace

held = {}  # of each sequence the tokens, in order
logits = []
llama_log_callback = lambda call: call
llama_log_set = lambda *_: None
llama_backend_init = llama_model_default_params = lambda: None
llama_model_load_from_file = lambda path, params: path.endswith(b"model.gguf")
llama_context_default_params = SimpleNamespace
llama_init_from_model = lambda model, params: params
llama_model_get_vocab = lambda model: model
llama_vocab_n_tokens = lambda vocab: 5
llama_get_memory = lambda room: room

def llama_batch_init(count, _, most):
    return SimpleNamespace(token=[0] * count, pos=[0] * count, n_seq_id=[0] * count, logits=[0] * count,
                           seq_id=[[0] for _ in range(count)])

def llama_decode(room, batch):
    logits.clear()
    for i in range(batch.n_tokens):
        text = held.setdefault(batch.seq_id[i][0], [])
        if batch.pos[i] != len(text):
            return 1
        text.append(batch.token[i])
        logits.append((ctypes.c_float * 5)(*[float(id == len(text) % 5) for id in range(5)]))
    return 0 if len(held) <= room.n_seq_max and sum(map(len, held.values())) <= room.n_ctx else 2

llama_get_logits_ith = lambda room, i: ctypes.cast(logits[i], ctypes.POINTER(ctypes.c_float))

def llama_memory_seq_rm(memory, place, first, last):
    del held[place]
"""


def test_peers_have_the_same_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stand-ins for the packages check what they are given: each sequence in order, and no more than have room."""
    (tmp_path / "vllm.py").write_text(VLLM)
    (tmp_path / "llama_cpp.py").write_text(LLAMA)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    given = "throughput --sequences 7 --least 2 --most 6 --max-batch 2 --dtype float32".split()
    assert bench.main([*given, "--weights", str(DEMO), "--against", "vllm,llama.cpp"]) == 0
    line, _, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    for peer, found in report["peers"].items():
        assert found["new_tok_s"] == pytest.approx(report["new_tokens"] / found["seconds"])
        assert f"{report['new_tok_s'] / found['new_tok_s']:.2f} times {peer}" in line
        assert found["first_token_s"]["p50"] <= found["seconds"]
    assert [*report["peers"]] == ["vllm", "llama.cpp"]


def test_peers_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["throughput", "--weights", str(DEMO), "--sequences", "2", "--against"]
    for flags, message in (
        (["vllm"], "--against vllm needs vllm, which "),
        (["llama.cpp", "--llama-python", str(tmp_path / "none")], "No such file or directory; name a Python"),
        (["sglang"], "'sglang' is none of vllm, llama.cpp"),
        (["vllm", "--quantize", "int8"], "leave out --quantize"),
    ):
        assert exit_code(bench.main, [*given, *flags]) == 2
        assert message in capsys.readouterr().err
