"""What TRL and PEFT compute, recorded once, so that tests need neither: batches, losses, norms of gradients and final
adapters of 8 steps of `SFTTrainer`, 4 of `DPOTrainer` with each of two losses, and 4 of `GRPOTrainer`, on the
demonstration model.

    python -m pip install --no-deps trl==1.16.0 && python -m tests.helpers.record_trl [sft dpo ipo grpo]

An adapter begins with numbers that both sides draw from its tensors' names (`beginning`).
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import ROOT

DEMO, RECORDED = ROOT / "minillm/demo", ROOT / "tests/tune/recorded"
RANK, ALPHA = 2, 4
SFT = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.01,
       "max_grad_norm": 1.0, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}  # fmt: skip
DPO = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "beta": 0.1}
IPO = {**DPO, "loss_type": "ipo"}
GRPO = {"learning_rate": 2e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8, "num_generations": 4,
        "num_iterations": 2, "max_completion_length": 20, "beta": 0.05, "epsilon": 0.2, "max_steps": 4,
        "temperature": 1.0, "loss_type": "dapo", "adam_epsilon": 1e-3}  # fmt: skip
COMMON = {"use_cpu": True, "bf16": False, "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "seed": 1,
          "report_to": "none", "gradient_checkpointing": False}  # fmt: skip


def beginning(name: str, shape: torch.Size) -> Tensor:
    """The first values of an adapter's tensor: B is zero."""
    if "lora_B" in name:
        return torch.zeros(shape)
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=draw) * shape[-1] ** -0.5


def even(ids: list[int]) -> float:
    """A reward that anyone can check: the share of even numbers in an answer."""
    return sum(i % 2 == 0 for i in ids) / len(ids)


def rows(count: int, pairs: bool) -> list[dict[str, Any]]:
    from story_grammar import story

    draw, made = random.Random(3 + pairs), []
    for _ in range(count):
        asked, told = story(draw)
        answers = [told[: draw.randint(40, 300)], story(draw)[1][: draw.randint(40, 300)]]
        said = [[{"role": "assistant", "content": each}] for each in answers]
        named = {"chosen": said[0], "rejected": said[1]} if pairs else {"completion": said[0]}
        made.append({"prompt": [{"role": "user", "content": asked}], **named})
    return made


def recorded(trainer: Any) -> dict[str, Any]:
    """Train, and what it was given and said."""
    prefix, batches = "base_model.model.", list[dict[str, Any]]()
    with torch.no_grad():
        for name, each in trainer.model.named_parameters():
            if each.requires_grad:
                each.copy_(beginning(name.replace(".default", "").removeprefix(prefix), each.shape))

    def kept(batch: Any) -> Any:
        listed = {key: value.tolist() for key, value in batch.items() if isinstance(value, Tensor) and value.dim()}
        batches.append({key: value for key, value in listed.items() if key != "attention_mask"})
        return batch

    if hasattr(trainer, "reward_funcs"):  # whose batches hold what the model has said itself
        compute = trainer._compute_loss
        trainer._compute_loss = lambda model, inputs: compute(model, kept(inputs))
    else:
        collate = trainer.data_collator
        trainer.data_collator = lambda examples: kept(collate(examples))
    trainer.train()
    logs = [each for each in trainer.state.log_history if "loss" in each]
    keys = ("loss", "grad_norm", "learning_rate")
    return {"batches": batches, "steps": [{key: each[key] for key in keys} for each in logs]}


def main(names: list[str]) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    sys.path.insert(0, str(ROOT / "examples"))
    RECORDED.mkdir(exist_ok=True)
    words = AutoTokenizer.from_pretrained(DEMO)
    words.pad_token = words.eos_token
    known: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
        "sft": (SFTTrainer, SFTConfig, {**SFT, "max_length": 256}, 48),
        "dpo": (DPOTrainer, DPOConfig, {**DPO, "max_length": 256}, 16),
        "ipo": (DPOTrainer, DPOConfig, {**IPO, "max_length": 256}, 16),
        "grpo": (GRPOTrainer, GRPOConfig, GRPO, 8),
    }
    for name in names or known:
        trainer, config, options, count = known[name]
        model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager")
        folder, said = tempfile.mkdtemp(), rows(count, name in ("dpo", "ipo"))
        more: dict[str, Any] = {}
        if name == "grpo":
            said = [{"prompt": each["prompt"]} for each in said]
            more["reward_funcs"] = lambda completion_ids, **_: [even(each) for each in completion_ids]
        made = trainer(
            model=model, args=config(output_dir=folder, **COMMON, **options), processing_class=words,
            train_dataset=Dataset.from_list(said), **more,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        found = recorded(made)
        made.model.save_pretrained(folder)
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        save_file(
            {key.removeprefix("base_model.model."): each for key, each in tensors.items()},
            RECORDED / f"{name}.safetensors",
        )
        (RECORDED / f"{name}.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
