"""The perplexity of quantised checkpoints, here and in another program that reads what the same tool wrote.

    python examples/tool_perplexity.py --text FILE [--llama-python PYTHON] PATH …

GGUF files are read by llama.cpp too, in an interpreter that has llama-cpp-python and numpy (`--llama-python`). It
rounds activations to 8 bits, in blocks with a factor each. The matrices of the other formats are dequantised, and
transformers computes with them in fp32. Both see the same windows of the same tokens. MB are those of the files of
weights.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import minillm
from minillm import cli, config, families, hub
from minillm.engine.windows import windows
from minillm.perplexity import nats
from minillm.report import reference
from minillm.weights.checkpoint import find
from minillm.weights.gguf import reader as gguf
from minillm.weights.save import save

LLAMA = """
import json, sys
import numpy as np
from llama_cpp import Llama
asked, total = json.load(sys.stdin), 0.0
llama = Llama(asked["file"], n_ctx=asked["context"] + 8, n_batch=asked["context"] + 8, logits_all=True, verbose=False,
              n_threads=asked["threads"], n_threads_batch=asked["threads"])
for tokens, count in asked["windows"]:
    llama.reset()
    llama.eval(tokens[:-1])
    logits = np.array(llama.scores[len(tokens) - 1 - count : len(tokens) - 1], dtype=np.float64)
    logits -= logits.max(-1, keepdims=True)
    total += float((np.log(np.exp(logits).sum(-1)) - logits[np.arange(count), tokens[-count:]]).sum())
print(total)
"""


def by_llama(file: Path, python: str, parts: list[tuple[list[int], int]], context: int) -> float:
    """The sum of -log p in nats. Raises ValueError where that interpreter cannot say."""
    asked = {"file": str(file), "context": context, "windows": parts, "threads": torch.get_num_threads()}
    done = subprocess.run([python, "-c", LLAMA], input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{file}: llama.cpp in {python}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


@torch.inference_mode()
def by_transformers(path: Path, parts: list[tuple[list[int], int]]) -> float:
    values = {key: each for key, each in config.read(path).items() if not key.startswith("quantization")}
    plain = minillm.load(path, dtype="float32", keep_quantized=False, kernels="reference").model
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(values))
        rules = families.resolve(values)[1]
        save(Path(place) / "model.safetensors", dict(plain.named_parameters()), rules, plain.destinations())
        theirs = reference.load(Path(place), dtype=torch.float32)
    total = 0.0
    for tokens, count in parts:
        logits = theirs(torch.tensor([tokens[:-1]])).logits[0, -count:].double()
        total -= logits.log_softmax(-1)[torch.arange(count), torch.tensor(tokens[-count:])].sum().item()
    return total


def measured(path: Path, text: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """The perplexity here and there."""
    llm, context, python = minillm.load(path, dtype=arguments.dtype), arguments.context, arguments.llama_python
    if llm.tokenizer is None:
        raise ValueError(f"{path}: no tokenizer, without which a text is no tokens")
    ids = llm.tokenizer.encode(text)
    parts = [(ids[first : last + 1], count) for first, last, count in windows(len(ids), context, context)]
    theirs = by_llama(path, python, parts, context) if gguf.is_one(path) else by_transformers(path, parts)
    return math.exp(nats(llm, ids, context, context) / (len(ids) - 1)), math.exp(theirs / (len(ids) - 1))


def megabytes(path: Path) -> float:
    found = find(path)
    assert found is not None  # it has been loaded
    place = path.parent if path.is_file() else path
    return sum((place / file).stat().st_size for file in found[0]) / 1e6


def main(arguments: argparse.Namespace) -> int:
    text = Path(arguments.text).read_text(encoding="utf-8")
    print(f"{'':32}{'files':>10}  {'here':>12}{'there':>12}")
    for each in arguments.paths:
        path = hub.resolve(each)
        here, there = measured(path, text, arguments)
        change = 100 * (here / there - 1)
        print(f"{Path(each).name:32}{megabytes(path):7.2f} MB  {here:12.5f}{there:12.5f}  {change:+.3f} %", flush=True)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FILE", required=True)
    parser.add_argument("--context", metavar="N", type=int, default=128, help="tokens of a window (default: 128)")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of what is computed here"
    )
    parser.add_argument("--llama-python", metavar="PYTHON", default=sys.executable)
    parser.add_argument("paths", metavar="PATH", nargs="+")
    given = parser.parse_args()
    sys.exit(cli.run(lambda: main(given)))
