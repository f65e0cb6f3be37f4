"""Small tasks for lm-evaluation-harness, one of each kind, made of the sentences of a text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

STOPS, NEW_TOKENS = ["!", " said"], 20


def write(folder: Path, text: str, continue_: Any) -> None:
    """Tasks `choices`, `rolling` and `continued`: which of three sentences comes next, some behind nothing; the
    perplexity of paragraphs; what follows a sentence, for every other one of them what `continue_(sentence)` says."""
    sentences = [each for each in re.split(r'(?<=[.!?"])\s+', text) if 30 < len(each) < 100]
    paragraphs = [each.strip() for each in text.split("\n\n") if len(each) > 100]
    groups = [sentences[at : at + 6] for at in range(0, 60, 6)]
    contexts = ["", *(" ".join(group[:3]) for group in groups[1:])]
    choices = [{"text": text, "choices": group[3:]} for text, group in zip(contexts, groups, strict=True)]
    prompts = [" ".join(groups[0]), *(group[0][:-12] for group in groups[1:])]
    targets = [continue_(prompt) if at % 2 else "no" for at, prompt in enumerate(prompts)]
    continued = [{"text": text, "target": target} for text, target in zip(prompts, targets, strict=True)]
    rolling = [{"text": text} for text in paragraphs[:4]]
    _task(
        folder, "choices", choices, output_type="multiple_choice", doc_to_text="{{text}}", doc_to_choice="{{choices}}",
        doc_to_target="0", metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )  # fmt: skip
    _task(
        folder, "rolling", rolling, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )  # fmt: skip
    _task(
        folder, "continued", continued, output_type="generate_until",
        doc_to_text="{{text}}", doc_to_target="{{target}}",
        generation_kwargs={"until": STOPS, "max_gen_toks": NEW_TOKENS}, metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip


def _task(folder: Path, name: str, documents: list[dict[str, Any]], **values: Any) -> None:
    data = folder / f"{name}.json"
    data.write_text(json.dumps(documents))
    kwargs = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    common = {"task": name, "dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **values}))


def run(folder: Path, model: Any, arguments: dict[str, Any], tasks: list[str], **options: Any) -> dict[str, Any]:
    """What the harness finds, the answers to each request included. Its own thousands of tasks are left unread."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model, arguments, tasks, device="cpu", task_manager=manager, bootstrap_iters=0, **options
    )  # fmt: skip
    assert found is not None
    return found
