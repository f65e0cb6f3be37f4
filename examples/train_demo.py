"""Make the demonstration checkpoints from nothing: stories from a grammar, a tokenizer, a small decoder, dense in
Llama's layout or with experts in Mixtral's.

    python examples/train_demo.py --out minillm/demo
    python examples/train_demo.py --experts --steps 3000 --out examples/demo_moe

Runs on a CPU in some ten minutes; the same seed on the same machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from minillm import families, ops
from minillm.model.balance import load_balancing_loss
from minillm.model.decoder import Decoder, next_token_loss
from minillm.weights.save import save
from story_grammar import story

SPECIAL = ["<s>", "</s>", "<|user|>", "<|story|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<|story|>{{ message.content }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant, not ' + message.role) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|story|>{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 768,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MOE_CONFIG = {
    **CONFIG,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "router_aux_loss_coef": 0.01,
}
LENGTH, BATCH = 256, 8


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: any text can be encoded, what the grammar writes in few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def batches(tokenizer: Tokenizer, rng: random.Random, steps: int) -> torch.Tensor:
    """int64 `[steps, BATCH, LENGTH]`: stories one after the other, every second one as the answer to a request."""
    ids: list[int] = []
    while len(ids) < steps * BATCH * LENGTH:
        request, text = story(rng)
        asked = rng.random() < 0.5
        document = f"<s><|user|>{request}<|story|>{text}</s>" if asked else f"<s>{text}</s>"
        ids += tokenizer.encode(document, add_special_tokens=False).ids
    return torch.tensor(ids[: steps * BATCH * LENGTH]).view(steps, BATCH, LENGTH)


def training_loss(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Next tokens, and for a mixture of experts the load-balancing loss over all layers."""
    logits, routing = model(tokens, collect_routing=True)
    loss, routed = next_token_loss(logits, tokens), [each for each in routing if each is not None]
    if routed:
        router_logits, chosen = (torch.cat([getattr(each, name) for each in routed]) for name in ("logits", "experts"))
        loss = loss + MOE_CONFIG["router_aux_loss_coef"] * load_balancing_loss(router_logits, chosen)
    return loss


def train(model: Decoder, data: torch.Tensor, peak_rate: float = 3e-3) -> None:
    """AdamW with a short warm-up and a cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.1)
    steps, started = len(data), time.time()
    for step, tokens in enumerate(data):
        rate = peak_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = training_loss(model, tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step}/{steps} loss {loss.item():.3f} {time.time() - started:.0f} s", file=sys.stderr)


def write(folder: Path, config: dict[str, object], model: Decoder, tokenizer: Tokenizer, rules: families.Rules) -> None:
    """The checkpoint in hub layout, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: parameter.detach().bfloat16() for name, parameter in model.named_parameters()}
    save(folder / "model.safetensors", parameters, rules, model.destinations())
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for name, content in {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": [1], "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONFIG["max_position_embeddings"],
        },
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experts", action="store_true", help="a mixture of experts instead of the dense decoder")
    arguments = parser.parse_args()
    config = MOE_CONFIG if arguments.experts else CONFIG
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    tokenizer = train_tokenizer(["\n".join(story(rng)) for _ in range(2000)])
    spec, rules, _ = families.resolve(config)
    model = Decoder(spec, ops.CPU)
    train(model, batches(tokenizer, rng, arguments.steps))
    write(arguments.out, config, model, tokenizer, rules)


if __name__ == "__main__":
    main()
