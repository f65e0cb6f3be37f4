"""What TRL and PEFT compute, recorded once, so that tests need neither: batches, losses, norms of gradients and final
adapters of 8 steps of `SFTTrainer` and 4 of `DPOTrainer` on the demonstration model.

    python -m pip install --no-deps trl==1.16.0 && python -m tests.helpers.record_trl

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
COMMON = {"use_cpu": True, "bf16": False, "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "seed": 1,
          "report_to": "none", "gradient_checkpointing": False, "max_length": 256}  # fmt: skip


def beginning(name: str, shape: torch.Size) -> Tensor:
    """The first values of an adapter's tensor: B is zero."""
    if "lora_B" in name:
        return torch.zeros(shape)
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=draw) * shape[-1] ** -0.5


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
    prefix, batches, collate = "base_model.model.", [], trainer.data_collator
    with torch.no_grad():
        for name, each in trainer.model.named_parameters():
            if each.requires_grad:
                each.copy_(beginning(name.replace(".default", "").removeprefix(prefix), each.shape))

    def kept(examples: Any) -> Any:
        batch = collate(examples)
        batches.append({key: value.tolist() for key, value in batch.items() if key != "attention_mask"})
        return batch

    trainer.data_collator = kept
    trainer.train()
    logs = [each for each in trainer.state.log_history if "loss" in each]
    keys = ("loss", "grad_norm", "learning_rate")
    return {"batches": batches, "steps": [{key: each[key] for key in keys} for each in logs]}


def main() -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    sys.path.insert(0, str(ROOT / "examples"))
    RECORDED.mkdir(exist_ok=True)
    words = AutoTokenizer.from_pretrained(DEMO)
    words.pad_token = words.eos_token
    for name, trainer, config, options, count in (
        ("sft", SFTTrainer, SFTConfig, SFT, 48),
        ("dpo", DPOTrainer, DPOConfig, DPO, 16),
    ):
        model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager")
        folder = tempfile.mkdtemp()
        made = trainer(
            model=model, args=config(output_dir=folder, **COMMON, **options), processing_class=words,
            train_dataset=Dataset.from_list(rows(count, name == "dpo")),
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
    main()
