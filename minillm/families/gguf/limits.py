"""What llama.cpp's graphs compute otherwise than a file that it runs seems to say, so that reading the file back does
not show it. By its sources (src/models/ and `build_moe_ffn`, October 2026), and seen in its logits."""

from __future__ import annotations

from collections.abc import Callable

from minillm.families.gguf import selective, states
from minillm.families.gguf.architectures import HYBRID, ON_DEVICE
from minillm.spec import GQA, MLP, Decoder, GatedDeltaNet, GatedMLP, LongRopeScaling, MoE, Rope, Router


def refusal(decoder: Decoder, architecture: str) -> str | None:
    """Why a file of a decoder would be refused by llama.cpp, or be another model there; None where it is neither."""
    found = (reason for names, holds, reason in LIMITS if architecture in names and holds(decoder))
    return next(found, None)


def remarks(decoder: Decoder, architecture: str) -> list[str]:
    """What users are told of texts that llama.cpp continues otherwise only from some length on."""
    attention, told = next(iter(decoder.attentions), None), list[str]()
    if attention is None:
        return told
    if architecture in ("phi3", "starcoder2") and attention.window is not None and attention.window < decoder.context:
        told.append(f"llama.cpp leaves out the window of {attention.window} positions: longer texts go on otherwise")
    scaling = attention.rope.scaling if isinstance(attention.rope, Rope) else None
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


def _other_sources(decoder: Decoder) -> bool:
    """Keys and values of others than the last layer, or with a window the last but one, of those with their own."""
    mixers = [each for layer in decoder.layers if isinstance(each := layer.attention, GQA)]
    own = sum(each.kv.layer is None for each in mixers)
    return any(each.kv.layer not in (None, own - (2 if each.window else 1)) for each in mixers)


def _other_streams(decoder: Decoder) -> bool:
    streams, told = decoder.streams, decoder.per_layer
    ranks = {layer.low_rank.rank if layer.low_rank else 0 for layer in decoder.layers}
    return streams is None or streams.count != 4 or told is None or told.size != 256 or ranks != {64}


def _other_layers(decoder: Decoder) -> bool:
    """With keys and values of their own in other layers than the first 20, or zeros in the gates of other than the
    first 10."""
    mixers = [each for layer in decoder.layers if isinstance(each := layer.attention, GQA)]
    zeros = [layer.ffn.sparsity for layer in decoder.layers if isinstance(layer.ffn, GatedMLP)]
    sparse = [0.95] * 10 + [0.0] * len(zeros)
    return zeros != sparse[: len(zeros)] or any((each.kv.layer is None) != (i < 20) for i, each in enumerate(mixers))


def _other_heads(decoder: Decoder) -> bool:
    attention = decoder.attentions[0]
    return isinstance(attention, GQA) and attention.num_heads * attention.head_dim != decoder.hidden_size


def _heads_normed_apart(decoder: Decoder) -> bool:
    attention = decoder.attentions[0]
    return isinstance(attention, GQA) and attention.qk_norm is not None


def _biased_anywhere(decoder: Decoder) -> bool:
    return _biased(decoder) or any(isinstance(each, GQA) and each.qkv_bias for each in decoder.attentions)


def _unclamped(decoder: Decoder) -> bool:
    return any(isinstance(each, GQA) and each.clip is None for each in decoder.attentions)


def _several_keys(decoder: Decoder) -> bool:
    attention = decoder.attentions[0]
    return (isinstance(attention, GQA) and attention.num_kv_heads > 1) or decoder.layers[0].ffn_norm is not None


def _biased(decoder: Decoder) -> bool:
    """Behind attention, or in an MLP."""
    outs = (isinstance(each, GQA) and each.out_bias for each in decoder.attentions)
    return any(outs) or any(layer.ffn.bias for layer in decoder.layers if isinstance(layer.ffn, (MLP, GatedMLP, MoE)))


# With a head beside the embedding; with attention that takes and gives as much as the embedding has.
HEADED = ("qwen2moe", "phi2", "gptneox", "gpt-oss", "olmo2", "olmoe", "qwen", "baichuan", "internlm2", "stablelm",
          "dots1", "mellum", "nemotron", "dbrx")  # fmt: skip
NARROW = ("qwen", "baichuan", "internlm2", "chatglm", "exaone4", "starcoder2", "stablelm", "falcon",
          "nemotron", "dbrx")  # fmt: skip
# Architectures, what a decoder must have for it to count, and why it is not written.
LIMITS: list[tuple[tuple[str, ...], Callable[[Decoder], bool], str]] = [
    (HEADED, lambda decoder: decoder.tied,
     "it wants a head beside the embedding"),
    (("gemma", "gemma2", "command-r", "cohere2"), lambda decoder: not decoder.tied, "its head is the embedding"),
    (("command-r",), lambda decoder: _heads_normed_apart(decoder) != (len(decoder.layers) >= 64),
     "norms of q and k are for models of 64 layers or more, and all of those have them"),
    (("command-r", "cohere2", "arcee", "hunyuan-dense"), _biased_anywhere, "it has no biases"),
    (HYBRID, _uneven_heads, "its recurrent layers have keys and values of one size"),
    (("olmoe", "dots1"), _shared_keys, "it wants as many heads of keys as of queries"),
    (("baichuan",), lambda decoder: len(decoder.layers) != 32, "it turns keys in models of 32 layers alone"),
    (("seed_oss",), _biased, "its attention has biases on the way in alone, its MLP none"),
    (("starcoder2",), lambda decoder: not _biased(decoder), "it wants biases everywhere"),
    (NARROW, _other_heads, "all its heads together are as wide as the embedding"),
    (ON_DEVICE, _other_sources, "it takes keys and values of the last layer that has some, or the last but one"),
    (("gemma3n",), _other_streams, "it has 4 streams, 256 values of a layer's embedding, and a rank of 64"),
    (("gemma3n",), _other_layers, "its first 20 layers have keys and values, and its first 10 sparse gates"),
    (("gemma3n",), lambda decoder: decoder.logit_softcap != 30, "it caps logits at 30"),
    (("gemma3n",), lambda decoder: len({getattr(layer.ffn, "intermediate_size", 0) for layer in decoder.layers}) > 1,
     "its MLPs are equally wide"),
    (("exaone4",), lambda decoder: any(each.window for each in decoder.attentions) != (len(decoder.layers) == 64),
     "windows are for models of 64 layers, and all of those have them"),
    (("smollm3",), lambda decoder: any(each.window for each in decoder.attentions), "it leaves out windows"),
    (("falcon",), _several_keys, "files of the 7B alone, whose heads share one key, are written"),
    (("dbrx",), _unclamped, "it clamps q, k and v"),
    (("starcoder",), lambda decoder: not _shared_keys(decoder), "all heads share one key and value"),
    (("nemotron_h_moe",), states.mixed, "its feed-forwards are all mixtures, or none"),
    (states.SCANNED, states.unbiased, "its state spaces have biases of their convolutions, and no others"),
    (selective.NAMES, selective.other_biases, "its state spaces have biases of convolutions and steps, and no others"),
    (selective.NAMES, selective.other_width, "its state spaces have twice as many channels as the embedding"),
    (("lfm2", "lfm2moe"), lambda decoder: not decoder.tied, "its head is the embedding"),
    (("deepseek",), _renormalised, "it does not divide the weights of chosen experts by their sum"),
    (("deepseek2",), _groups_by_one, "it takes groups of experts by the best two of each, not by the best one"),
]  # fmt: skip
