"""Other engines with the requests of `bench throughput`, each in a process of its own:

    vllm        its engine, step by step: continuous batching, as its server runs it
    llama.cpp   through the package llama-cpp-python: sequences in one unified cache. Each pass has the next token of
                every sequence and whole prompts of those that wait, greedy, as that package has no such loop of its own

Imports nothing but the standard library at first, as an engine may live in an interpreter of its own: this file is also
a program that reads JSON from stdin: `engine`, `weights`, `dtype`, `rows` (pairs of a prompt's ids and how many new
tokens), `most` (sequences at a time), `threads`, `bytes` (of keys and values). Its last line is what `Clock.report`
gives, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BAD_INPUT = 2
PEERS = ("vllm", "llama.cpp")
NEEDS = {"vllm": "vllm", "llama.cpp": "llama_cpp, numpy"}
WARM = [[[5] * 8, 8]] * 4  # requests before the clock starts
LONGEST = 2048  # tokens of a pass


class Clock:
    """When each request had each of its tokens."""

    def __init__(self, count: int):
        self.began = time.perf_counter()
        self.times: list[list[float]] = [[] for _ in range(count)]

    def saw(self, number: int) -> None:
        """One more token of a request."""
        self.times[number].append(time.perf_counter() - self.began)

    def report(self) -> dict[str, Any]:
        """`seconds` of all, and of each request when its tokens came."""
        return {"seconds": time.perf_counter() - self.began, "times": self.times}


def vllm(settings: dict[str, Any]) -> dict[str, Any]:
    """Draws at temperature 0.6, as minillm does."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": f"0-{settings['threads'] - 1}",
        "VLLM_CPU_KVCACHE_SPACE": str(-(-settings["bytes"] // 2**30)),
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    from vllm import EngineArgs, LLMEngine, SamplingParams

    longest = max(len(prompt) + most for prompt, most in [*WARM, *settings["rows"]])
    limits = {"max_model_len": longest, "max_num_seqs": settings["most"]}
    wanted = EngineArgs(settings["weights"], skip_tokenizer_init=True, dtype=settings["dtype"], **limits)
    engine = LLMEngine.from_engine_args(wanted)

    def run(rows: Sequence[Any]) -> Clock:
        clock, had = Clock(len(rows)), [0] * len(rows)
        for number, (prompt, most) in enumerate(rows):
            wanted = SamplingParams(temperature=0.6, max_tokens=most, ignore_eos=True, detokenize=False)
            engine.add_request(str(number), {"prompt_token_ids": prompt}, wanted)
        while engine.has_unfinished_requests():
            for output in engine.step():
                number, count = int(output.request_id), len(output.outputs[0].token_ids)
                for _ in range(count - had[number]):
                    clock.saw(number)
                had[number] = count
        return clock

    run(WARM)
    return run(settings["rows"]).report()


def llama_cpp(settings: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError where llama.cpp does."""
    engine = LlamaCpp(settings)
    engine.run(WARM)
    return engine.run(settings["rows"]).report()


class LlamaCpp:
    """`most` sequences at a time, in one cache for the longest of them."""

    def __init__(self, settings: dict[str, Any]):
        import llama_cpp as api
        import numpy

        self.api, self.numpy, self.most = api, numpy, settings["most"]
        self.quiet = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self.quiet, None)
        api.llama_backend_init()
        model = api.llama_model_load_from_file(settings["weights"].encode(), api.llama_model_default_params())
        if not model:
            raise ValueError(f"llama.cpp does not load {settings['weights']}")
        sizes = sorted((len(prompt) + most for prompt, most in [*WARM, *settings["rows"]]), reverse=True)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = sum(sizes[: self.most]), self.most, True
        params.n_batch, params.n_threads, params.n_threads_batch = LONGEST, settings["threads"], settings["threads"]
        self.room = api.llama_init_from_model(model, params)
        if not self.room:
            raise ValueError(f"llama.cpp has no room for {params.n_ctx} positions of {self.most} sequences")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self.batch = api.llama_batch_init(LONGEST, 0, 1)

    def decode(self, items: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """The likeliest token behind each item (token, position, sequence, whether it is wanted) that is wanted."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (token, position, sequence, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if code := self.api.llama_decode(self.room, batch):
            raise ValueError(f"llama.cpp could not decode: code {code}")
        found = (self.api.llama_get_logits_ith(self.room, i) for i, item in enumerate(items) if item[-1])
        return [int(self.numpy.ctypeslib.as_array(each, (self.vocabulary,)).argmax()) for each in found]

    def run(self, rows: Sequence[Any]) -> Clock:
        """Requests to their ends: whoever has a place is decoded, and whoever gets one is read."""
        clock, waiting = Clock(len(rows)), list(range(len(rows)))
        places, last = dict.fromkeys(range(self.most), 0), dict[int, int]()  # which request has a place, and its token
        while waiting or last:
            asked = [*last]
            items = [
                (last[place], len(rows[places[place]][0]) + len(clock.times[places[place]]) - 1, place, True)
                for place in asked
            ]
            for place in [each for each in places if each not in last]:
                if waiting and len(items) + len(rows[waiting[0]][0]) <= LONGEST:
                    places[place] = waiting.pop(0)
                    prompt = rows[places[place]][0]
                    items += [(token, at, place, at == len(prompt) - 1) for at, token in enumerate(prompt)]
                    asked.append(place)
            for place, token in zip(asked, self.decode(items), strict=True):
                clock.saw(places[place])
                last[place] = token
                if len(clock.times[places[place]]) == rows[places[place]][1]:
                    del last[place]
                    self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.room), place, -1, -1)
        return clock


ENGINES = {"vllm": vllm, "llama.cpp": llama_cpp}


def check(peer: str, python: str) -> None:
    """Raises ValueError where an interpreter has not what a peer needs."""
    try:
        done = subprocess.run([python, "-c", f"import {NEEDS[peer]}"], capture_output=True)
    except OSError as error:
        raise ValueError(f"{python}: {error.strerror}; name a Python interpreter") from None
    if done.returncode:
        flag = "--vllm-python" if peer == "vllm" else "--llama-python"
        raise ValueError(f"--against {peer} needs {NEEDS[peer]}, which {python} has not; name one that has with {flag}")


def measured(python: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a peer's process gives. Raises ValueError where it fails, with the last line that it has said."""
    done = subprocess.run([python, Path(__file__)], input=json.dumps(settings), capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ValueError(f"{settings['engine']} ended with exit code {done.returncode}: {said[-1][:300]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    sys.path.pop(0)  # this folder, whose modules have names that packages could mean
    settings = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answer
    try:
        found = ENGINES[settings["engine"]](settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(found), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
