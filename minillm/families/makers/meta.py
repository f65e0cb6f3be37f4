"""Meta's own `params.json`, for Llama 1, 2, 3, 3.1, 3.2, 3.3 and Code Llama (github.com/meta-llama/llama-models).

    hidden_dim = multiple_of * ceil(int(ffn_dim_multiplier * int(2 * 4 dim / 3)) / multiple_of)

`vocab_size` -1 means that of the tokenizer: the number of rows that the head has. How far positions reach is said
nowhere, and of their scaling only that there is one, `use_scaled_rope`: its factor is 8 in Llama 3.1 and 3.3, and 32 in
the small models of 3.2, by their published config.json. In place of a SentencePiece `tokenizer.model` Llama 3 has a
list of byte sequences, and its special tokens only in code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.families.gguf.splits import LLAMA3
from minillm.families.makers.params import NAMES, Params

SPECIAL_TOKENS = 256
REFUSED = {
    "quantization_args": "weights for an int4 engine, which are not read; give the unquantised model",
    "lora_args": "an adapter beside quantised weights, which is not read; give the unquantised model",
    "moe_args": "Llama 4, which is not supported",
    "vision_model": "the Llama that sees, whose layers of cross-attention are not supported",
    "vision_chunk_size": "the Llama that sees, whose layers of cross-attention are not supported",
}
IDLE = ("max_batch_size", "max_seq_len", "model_parallel_size")  # of Meta's own engine
SMALL = 4096  # what Llama 3.2's text models are narrower than
ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def config(values: Mapping[str, Any], head: tuple[int, ...] | None) -> dict[str, Any]:
    """The config.json of a checkpoint whose head has this shape, None where it is the embedding. Raises ValueError for
    what no family here is."""
    params = _params(values)
    params.refuse(REFUSED)
    for key in IDLE:
        params.get(key)
    sizes, theta, scaled = params.sizes(), params.number("rope_theta", 10000.0), params.flag("use_scaled_rope")
    stated = params.get("vocab_size", -1)
    made = {
        "model_type": "llama",
        NAMES: "meta",
        **sizes,
        "vocab_size": head[0] if stated == -1 and head else params.size("vocab_size"),
        "intermediate_size": _hidden(params, sizes["hidden_size"]),
        "rope_theta": theta,
        "max_position_embeddings": _positions(sizes["rms_norm_eps"], theta, scaled),
        "tie_word_embeddings": head is None,
    }
    if scaled:
        made["rope_scaling"] = {
            "rope_type": "llama3", "factor": 32.0 if sizes["hidden_size"] < SMALL else 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
    return {**made, **params.unread()}


def _hidden(params: Params, dim: int) -> int:
    multiple, hidden = params.size("multiple_of"), 8 * dim // 3
    hidden = int(params.number("ffn_dim_multiplier", 1.0) * hidden)
    return multiple * (-(-hidden // multiple))


def _positions(eps: float, theta: float, scaled: bool) -> int:
    """Of 3.1 and later, of 3, of Code Llama, of 2 and of 1, which are known by these."""
    if scaled or theta == 500000.0:
        return 131072 if scaled else 8192
    if theta > 10000.0:
        return 16384
    return 4096 if eps >= 1e-5 else 2048


def tokens(values: Mapping[str, Any]) -> tuple[str, list[str], list[int]]:
    """How Llama 3 splits texts, its special tokens, whose ids are behind those of the vocabulary, and which of them, by
    their places, end an answer. 3.1 gave meanings to some."""
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(SPECIAL_TOKENS))
    named = {0: "<|begin_of_text|>", 1: ENDS[0], 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: ENDS[2]}
    if _params(values).flag("use_scaled_rope"):
        named |= {4: "<|finetune_right_pad_id|>", 8: ENDS[1], 10: "<|python_tag|>"}
    special = [named.get(i) or next(reserved) for i in range(SPECIAL_TOKENS)]
    return LLAMA3, special, [i for i, token in enumerate(special) if token in ENDS]


def _params(values: Mapping[str, Any]) -> Params:
    """Some files have them in a section."""
    if not isinstance(inner := values.get("model"), dict):
        return Params(values)
    return Params({**{key: value for key, value in values.items() if key != "model"}, **inner})
