"""What runs in an engine's process: rounds, timed, as they are asked for; and llama.cpp as such an engine.

Imports nothing but the standard library at first, for llama.cpp may live in an interpreter without PyTorch: this file
is also a program, `python worker.py SETTINGS`, with `weights` (a GGUF file), `threads` and `device` as JSON. It
needs the packages llama-cpp-python and numpy, and uses llama.cpp's own interface so that nothing of the package is
timed.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

BAD_INPUT = 2


class Engine(Protocol):
    """`facts` has `load_s`, the seconds it took to load, and what the report needs."""

    facts: dict[str, Any]

    def start(self, batch: int, prompt: int, context: int, steps: int) -> None:
        """Make room for `steps` tokens behind a prompt in each of `batch` rows. Where `context` is more than the
        prompt, also a state that holds so many positions already, untimed."""

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """Read prompts into an empty state; the likeliest next token of each."""

    def rewind(self) -> None:
        """Back to what decoding starts from: `context` positions, or just behind the prompts."""

    def decode(self, tokens: list[int]) -> list[int]:
        """One token more in each row; the likeliest to follow."""

    def now(self) -> float:
        """Seconds, once all that was asked for is done."""


def timed(engine: Engine, prompts: list[list[int]], steps: int) -> dict[str, Any]:
    """The seconds of one prefill and of each of `steps` decode steps, greedy, and the first row's tokens."""
    started = engine.now()
    tokens = engine.prefill(prompts)
    prefill = engine.now() - started
    engine.rewind()
    times, found = [engine.now()], [tokens[0]]
    for _ in range(steps):
        tokens = engine.decode(tokens)
        times.append(engine.now())
        found.append(tokens[0])
    return {"prefill": prefill, "decode": [b - a for a, b in itertools.pairwise(times)], "tokens": found}


def serve(make: Any, settings: dict[str, Any]) -> None:
    """Answer stdin line by line with JSON on stdout: first the facts, then to {"start": …} and {"round": …}."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    engine: Engine = make(settings)
    answer(engine.facts)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            engine.start(**request["start"])
            answer({})
        else:
            answer(timed(engine, **request["round"]))


class LlamaCpp:
    """llama.cpp with its own defaults (flash attention where it has it, an fp16 cache), each row a sequence of its own.

    A context longer than the prompt is really read, once, in one row; the others are given copies of it.
    """

    def __init__(self, settings: dict[str, Any]):
        import llama_cpp as api
        import numpy

        self.api, self.numpy, said = api, numpy, list[str]()
        self._log = api.llama_log_callback(lambda level, text, _: said.append(text.decode(errors="replace")))
        api.llama_log_set(self._log, None)
        api.llama_backend_init()
        on_gpu = settings["device"] != "cpu"
        if on_gpu and not api.llama_supports_gpu_offload():
            raise ValueError("this build of llama-cpp-python has no GPU support; install one that has, or --device cpu")
        params = api.llama_model_default_params()
        params.n_gpu_layers = 999 if on_gpu else 0
        started = time.perf_counter()
        self.model = api.llama_model_load_from_file(settings["weights"].encode(), params)
        seconds = time.perf_counter() - started
        if not self.model:
            raise ValueError(f"llama.cpp does not load {settings['weights']}: {' '.join(''.join(said).split())[-300:]}")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.threads = settings["threads"]
        self.short = self.deep = self.current = None
        self.facts = {"load_s": seconds, "cache_bytes_per_value": 2}

    def start(self, batch: int, prompt: int, context: int, steps: int) -> None:
        for old in (self.short, self.deep):
            if old is not None:
                self.api.llama_free(old)
        self.batch, self.context, self.deep = batch, context, None
        self.short = self._room(batch, prompt + steps)
        if context > prompt:
            self.deep = self._room(batch, context + steps)
            self._feed(self.deep, [[1 + i % (self.vocabulary - 1) for i in range(context)]], 0)
            memory = self.api.llama_get_memory(self.deep)
            for row in range(1, batch):
                self.api.llama_memory_seq_cp(memory, 0, row, -1, -1)

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        self.current, self.length = self.short, len(prompts[0])
        self.api.llama_memory_clear(self.api.llama_get_memory(self.short), False)
        return self._feed(self.short, prompts, 0)

    def rewind(self) -> None:
        if self.deep is not None:
            self.current, self.length = self.deep, self.context
            for row in range(self.batch):
                self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.deep), row, self.context, -1)

    def decode(self, tokens: list[int]) -> list[int]:
        found = self._feed(self.current, [[token] for token in tokens], self.length)
        self.length += 1
        return found

    def now(self) -> float:
        return time.perf_counter()  # the logits have been read

    def _room(self, batch: int, positions: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = batch * (-(-positions // 256) * 256)  # llama.cpp rounds a row up to 256
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = self.threads
        room = self.api.llama_init_from_model(self.model, params)
        if not room:
            raise ValueError(f"llama.cpp has no room for {batch} x {positions} positions; try less context or batch")
        return room

    def _feed(self, room: Any, rows: list[list[int]], start: int) -> list[int]:
        """The likeliest token behind each row, whose tokens stand at positions start, start + 1, …"""
        api, found = self.api, list[int]()
        items = [
            (token, start + i, seq, i == len(row) - 1) for seq, row in enumerate(rows) for i, token in enumerate(row)
        ]
        size = api.llama_n_batch(room)
        batch = api.llama_batch_init(min(size, len(items)), 0, 1)
        for first in range(0, len(items), size):
            part = items[first : first + size]
            batch.n_tokens = len(part)
            for i, (token, position, seq, last) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, last
                batch.seq_id[i][0] = seq
            if code := api.llama_decode(room, batch):
                raise ValueError(f"llama.cpp could not decode: code {code}")
            for i, item in enumerate(part):
                if item[-1]:
                    logits = self.numpy.ctypeslib.as_array(api.llama_get_logits_ith(room, i), (self.vocabulary,))
                    found.append(int(logits.argmax()))
        api.llama_batch_free(batch)
        return found


def main(argv: Sequence[str]) -> int:
    sys.path.pop(0)  # this folder, whose modules have names that packages could mean
    try:
        serve(LlamaCpp, json.loads(argv[0]))
    except ImportError as error:
        print(f"minillm: error: {error}; install llama-cpp-python for {sys.executable}", file=sys.stderr)
        return BAD_INPUT
    except ValueError as error:
        print(f"minillm: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
