"""How far quantised copies of a model are from it, on texts that the model itself writes.

    python examples/compare_formats.py --weights BASE FOLDER FOLDER …

KL is the mean over all tokens of KL(p || q) in nats, p being what the model predicts and q what the copy does: what the
model loses on its own texts, to which no copy can be better suited. "same" is how often both find the same token
likeliest. MB are those of all files of weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

import minillm
from minillm import cli, hub
from minillm.llm import LLM
from minillm.weights.checkpoint import find

TEXTS, TOKENS = 12, 200


def written(llm: LLM, prompt: str) -> list[Tensor]:
    """Token ids `[1, T]` of texts drawn from the model at temperature 1."""
    found = []
    for seed in range(TEXTS):
        result = llm.generate(prompt, max_new_tokens=TOKENS, temperature=1.0, seed=seed, ignore_eos=True)
        found.append(torch.tensor([result.prompt_token_ids + result.token_ids]))
    return found


@torch.inference_mode()
def predictions(path: str | None, texts: list[Tensor]) -> Tensor:
    """Log probabilities of every next token `[N, V]`."""
    llm = minillm.load(path, dtype="float32", kernels="reference")
    return torch.cat([llm.model(ids)[0].log_softmax(-1) for ids in texts])


def megabytes(path: str | None) -> float:
    folder = hub.resolve(path)
    found = find(folder)
    assert found is not None  # it has been loaded
    place = folder.parent if folder.is_file() else folder
    return sum((place / file).stat().st_size for file in found[0]) / 1e6


def main(arguments: argparse.Namespace) -> int:
    texts = written(minillm.load(arguments.weights, dtype="float32", kernels="reference"), arguments.prompt)
    plain = predictions(arguments.weights, texts)
    print(f"{'the model itself':40}{megabytes(arguments.weights):8.2f} MB, {len(plain):,} tokens of its own texts")
    for path in arguments.copies:
        other = predictions(path, texts)
        if other.shape != plain.shape:
            raise ValueError(
                f"{path}: a vocabulary of {other.shape[1]}, the model's has {plain.shape[1]}; is it a copy?"
            )
        kl = (plain.exp() * (plain - other)).sum(-1).mean().item()
        same = (plain.argmax(-1) == other.argmax(-1)).float().mean().item()
        print(f"{Path(path).name:40}{megabytes(path):8.2f} MB  KL {kl:.5f}  same {100 * same:5.1f} %")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="BASE", help="checkpoint folder (default: the built-in demo)")
    parser.add_argument("--prompt", default="Once", help="how each text begins")
    parser.add_argument("copies", metavar="FOLDER", nargs="+")
    given = parser.parse_args()
    sys.exit(cli.run(lambda: main(given)))
