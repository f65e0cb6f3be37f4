"""The engines that the bench compares, and the process that each of them has for itself.

    minillm        as `load` gives it
    transformers   as `from_pretrained` gives it: forward calls and an arg max, without the cost of its `generate`
    llama.cpp      through the package llama-cpp-python, see `bench/worker.py`

A context longer than the prompt is filled with random keys and values for minillm, whose attention takes the same time
whatever they are, and read once for the peers, one row of it repeated for a batch.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import cli
from minillm.bench import worker
from minillm.engine import inference
from minillm.guard.parsing import reading
from minillm.loading import load
from minillm.model.cache import Cache
from minillm.ops.device import DTYPES, resolve_device
from minillm.report import reference
from minillm.report.measure import forget_peak_rss, peak_rss, synchronize
from minillm.weights.gguf import reader as gguf

PEERS = ("transformers", "llama.cpp")
FILL_CHUNK = 2048  # positions of a long context that transformers reads at a time


class Minillm:
    def __init__(self, settings: dict[str, Any]):
        quantize = None if settings["quantize"] == "none" else settings["quantize"]
        options = {name: settings[name] for name in ("dtype", "device", "kernels", "keep_quantized")}
        started = time.perf_counter()
        self.llm = load(settings["weights"], **options, quantize=quantize)
        seconds = time.perf_counter() - started
        self.dtype = DTYPES[settings["dtype"]]
        self.facts = {
            "load_s": seconds,
            "bytes_per_step": self.llm.bytes_per_step,
            "cache_bytes_per_value": self.dtype.itemsize,
            "threads": torch.get_num_threads(),
        }

    @torch.inference_mode()
    def start(self, batch: int, prompt: int, context: int, steps: int) -> None:
        self.steps, self.context, self.deep = steps, context, None
        if context > prompt:
            self.deep = self._room(batch, context)
            for layer in self.deep.layers:
                for tensor in filter(lambda each: isinstance(each, Tensor), vars(layer).values()):
                    tensor.normal_()

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]]) -> list[int]:
        self.cache = self._room(len(prompts), len(prompts[0]))
        return inference.prefill(self.llm.model, prompts, self.cache).argmax(-1).tolist()

    def rewind(self) -> None:
        if self.deep is not None:
            self.cache = self.deep
            self.cache.length = self.cache.prompt_length = self.context

    @torch.inference_mode()
    def decode(self, tokens: list[int]) -> list[int]:
        return inference.decode(self.llm.model, tokens, self.cache).argmax(-1).tolist()

    def now(self) -> float:
        synchronize(self.llm.device)
        return time.perf_counter()

    def _room(self, batch: int, positions: int) -> Cache:
        return Cache(self.llm.spec, batch, positions + self.steps, self.dtype, self.llm.device)


class Transformers:
    def __init__(self, settings: dict[str, Any]):
        self.device = resolve_device(settings["device"])
        dtype = DTYPES[settings["dtype"]]
        started = time.perf_counter()
        self.model = reference.load(Path(settings["weights"]), dtype=dtype).to(self.device)
        seconds = time.perf_counter() - started
        self.facts = {"load_s": seconds, "cache_bytes_per_value": dtype.itemsize}

    @torch.inference_mode()
    def start(self, batch: int, prompt: int, context: int, steps: int) -> None:
        self.deep: Any = None
        if context > prompt:
            ids = torch.arange(context, device=self.device) % self.model.config.get_text_config().vocab_size
            for chunk in ids[None].split(FILL_CHUNK, dim=1):
                self.deep = self._forward(chunk, self.deep).past_key_values
            self.deep.batch_repeat_interleave(batch)

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        with reading(type(self.model).__name__, "transformers cannot run it"):
            return self._next(prompts, None)

    def rewind(self) -> None:
        if (
            self.deep is not None
        ):  # layers of this cache replace their tensors, so that those of a copy stay as they are
            self.past = copy.copy(self.deep)
            self.past.layers = [copy.copy(layer) for layer in self.deep.layers]

    def decode(self, tokens: list[int]) -> list[int]:
        return self._next([[token] for token in tokens], self.past)

    def now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    @torch.inference_mode()
    def _next(self, rows: list[list[int]], past: Any) -> list[int]:
        out = self._forward(torch.tensor(rows, device=self.device), past)
        self.past = out.past_key_values
        return out.logits[:, -1].argmax(-1).tolist()

    def _forward(self, tokens: Tensor, past: Any) -> Any:
        return self.model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)


ENGINES: dict[str, Callable[[dict[str, Any]], worker.Engine]] = {"minillm": Minillm, "transformers": Transformers}


def check(peers: Sequence[str], llama_python: str) -> None:
    """Raises ValueError where a peer is not installed."""
    if "transformers" in peers and not importlib.util.find_spec("transformers"):
        raise ValueError("--against transformers needs transformers: pip install -e '.[test]' in the clone")
    if "llama.cpp" in peers:
        try:
            done = subprocess.run([llama_python, "-c", "import llama_cpp, numpy"], capture_output=True)
        except OSError as error:
            raise ValueError(f"--llama-python {llama_python}: {error.strerror}; name a Python interpreter") from None
        if done.returncode:
            raise ValueError(
                f"--against llama.cpp needs the package llama-cpp-python, which {llama_python} has not; "
                "pip install llama-cpp-python, or name an interpreter that has it with --llama-python"
            )


class Worker:
    """An engine in a process of its own, in a session of its own too, so that Ctrl-C is for whoever started it."""

    def __init__(self, name: str, settings: dict[str, Any], llama_python: str):
        self.name = name
        weights = Path(settings["weights"])
        _into_page_cache(gguf.parts(weights) if weights.is_file() else sorted(weights.glob("*.safetensors")))
        program = [sys.executable, "-m", "minillm.bench.engines", name]
        if name == "llama.cpp":
            program = [llama_python, worker.__file__]
        self.process = subprocess.Popen(
            [*program, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            self.facts = self._answer()
        except BaseException:
            self.kill()
            raise
        self.load_peak = self.peak = peak_rss(self.process.pid)

    def start(self, **point: int) -> None:
        """See `worker.Engine.start`; the peak of memory counts from the end of it."""
        self._ask(start=point)
        forget_peak_rss(self.process.pid)

    def round(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """See `worker.timed`; `peak` becomes the most bytes held while loading or since the last start."""
        answer = self._ask(round={"prompts": prompts, "steps": steps})
        since = peak_rss(self.process.pid)
        self.peak = None if since is None or self.load_peak is None else max(since, self.load_peak)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer will say so
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            if self.process.wait() == cli.EXIT_BAD_INPUT:  # it has said what is wrong
                sys.exit(cli.EXIT_BAD_INPUT)
            raise ValueError(f"the process of {self.name} ended early; what it said stands above")
        return json.loads(line)


def _into_page_cache(files: Sequence[Path]) -> None:
    """Read files once, so that no engine's load pays for the disk because it came first."""
    for path in files:
        with open(path, "rb") as file:
            while file.read(2**24):
                pass


@cli.command_line
def main(argv: Sequence[str] | None = None) -> int:
    name, settings = sys.argv[1:] if argv is None else argv
    worker.serve(ENGINES[name], json.loads(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
