"""What llama.cpp's graphs compute otherwise than a file that it runs seems to say, so that reading the file back does
not show it. By its sources (src/models/ and `build_moe_ffn`, October 2026), and seen in its logits."""

from __future__ import annotations

from collections.abc import Callable

from minillm.families.gguf.architectures import HYBRID
from minillm.spec import GQA, Decoder, GatedDeltaNet, LongRopeScaling, MoE, Router


def refusal(decoder: Decoder, architecture: str) -> str | None:
    """Why a file of a decoder would be refused by llama.cpp, or be another model there; None where it is neither."""
    found = (reason for names, holds, reason in LIMITS if architecture in names and holds(decoder))
    return next(found, None)


def remarks(decoder: Decoder, architecture: str) -> list[str]:
    """What users are told of texts that llama.cpp continues otherwise only from some length on."""
    attention, told = decoder.attentions[0], list[str]()
    if architecture == "phi3" and attention.window is not None and attention.window < decoder.context:
        told.append(f"llama.cpp leaves out the window of {attention.window} positions: longer texts go on otherwise")
    scaling = attention.rope.scaling if attention.rope else None
    if isinstance(scaling, LongRopeScaling) and scaling.short_factors != scaling.long_factors:
        told.append(f"llama.cpp takes the factors of long texts wherever its context is over "
                    f"{scaling.original_positions} positions, however short the text is")  # fmt: skip
    return told


def _router(decoder: Decoder) -> Router | None:
    return next((layer.ffn.router for layer in decoder.layers if isinstance(layer.ffn, MoE)), None)


def _renormalised(decoder: Decoder) -> bool:
    return (router := _router(decoder)) is not None and router.renormalize


def _groups_by_one(decoder: Decoder) -> bool:
    return (router := _router(decoder)) is not None and router.num_groups > 1 and router.group_score == "max"


def _shared_keys(decoder: Decoder) -> bool:
    attention = decoder.attentions[0]
    return isinstance(attention, GQA) and attention.num_kv_heads != attention.num_heads


def _uneven_heads(decoder: Decoder) -> bool:
    mixers = (layer.attention for layer in decoder.layers)
    return any(isinstance(each, GatedDeltaNet) and each.k_dim != each.v_dim for each in mixers)


# Architectures, what a decoder must have for it to count, and why it is not written.
LIMITS: list[tuple[tuple[str, ...], Callable[[Decoder], bool], str]] = [
    (("qwen2moe", "phi2", "gptneox", "gpt-oss", "olmo2", "olmoe"), lambda decoder: decoder.tied,
     "it wants a head beside the embedding"),
    (("gemma", "gemma2"), lambda decoder: not decoder.tied, "its head is the embedding"),
    (HYBRID, _uneven_heads, "its recurrent layers have keys and values of one size"),
    (("olmoe",), _shared_keys, "it wants as many heads of keys as of queries"),
    (("deepseek",), _renormalised, "it does not divide the weights of chosen experts by their sum"),
    (("deepseek2",), _groups_by_one, "it takes groups of experts by the best two of each, not by the best one"),
]  # fmt: skip
