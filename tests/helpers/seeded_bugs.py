"""Bugs that implementations of these models have had, one for each fact they got wrong, to be put into a loaded model:
`diff` must name the module of each. Nothing in the package knows of this file: it is the test's switch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minillm.model.attention import GroupedQueryAttention
from minillm.model.decoder import Decoder, skeleton
from minillm.model.moe import Router
from minillm.model.norm import LayerNorm
from minillm.spec import (
    GQA,
    MLA,
    ClampedSwiGLU,
    Embedding,
    GatedMLP,
    Indexer,
    Layer,
    LongRopeScaling,
    MoE,
    Norm,
    QKNorm,
    Rope,
    Scores,
    YarnScaling,
)
from minillm.spec import Decoder as Spec
from minillm.spec import Router as RouterSpec
from tests.helpers.broken_ops import (
    bias_in_weights,
    coarse,
    in_bfloat16,
    masked_with_zero,
    norm_behind_rotation,
    raw_logits,
    seen,
    tiled,
    without_mean,
)
from tests.helpers.specs import mutate

Break = Callable[[Decoder], Decoder]


@dataclass(frozen=True)
class Bug:
    """In the model of a row of `rows.py`; `module` is the one at fault, `words` are in a cause or a sign."""

    row: str
    breaks: Break
    module: str
    words: str = ""


def field(owner: type, name: str, value: Any) -> Break:
    """One field of the spec, wherever it occurs, with the same weights."""
    return spec(lambda decoder: mutate(decoder, owner, name, value))


def spec(change: Callable[[Spec], Spec]) -> Break:
    """The model of another spec with the same weights, as far as that has them."""

    def broken(model: Decoder) -> Decoder:
        changed = change(model.spec)
        assert changed != model.spec
        other, held = skeleton(changed, torch.float32), dict(model.named_parameters())
        other.load_state_dict({name: held[name] for name, _ in other.named_parameters()}, assign=True)
        return other.requires_grad_(False).eval()

    return broken


def layers(change: Callable[[int, Layer], Layer]) -> Break:
    return spec(lambda d: dataclasses.replace(d, layers=tuple(change(i, each) for i, each in enumerate(d.layers))))


def attention(change: Callable[[int, Any], Any]) -> Break:
    return layers(lambda i, layer: dataclasses.replace(layer, attention=change(i, layer.attention)))


def op(**wrong: Callable[..., Any]) -> Break:
    """Another op in every module."""

    def broken(model: Decoder) -> Decoder:
        for module in model.modules():
            if hasattr(module, "ops"):
                module.ops = dataclasses.replace(module.ops, **wrong)
        return model

    return broken


def modules(kind: type[nn.Module], change: Callable[[Any], None]) -> Break:
    """Whatever it takes, in every module of a kind."""

    def broken(model: Decoder) -> Decoder:
        for module in list(model.modules()):
            if isinstance(module, kind):
                change(module)
        return model

    return broken


def frequencies(change: Callable[[Tensor], Tensor]) -> Break:
    """Other radians per position."""

    def broken(model: Decoder) -> Decoder:
        for rotary in model._rotary.values():
            rates, factors = rotary.kept((40,), torch.device("cpu"))
            assert rotary._kept is not None
            rotary._kept = rotary._kept[0], change(rates), factors
        return model

    return broken


def weights(name: str, change: Callable[[Tensor], Tensor]) -> Break:
    """Other values of every parameter whose name ends so."""

    def broken(model: Decoder) -> Decoder:
        found = [each for full, each in model.named_parameters() if full.endswith(name)]
        assert found
        for parameter in found:
            parameter.copy_(change(parameter).clone())
        return model

    return broken


def groups_ignored(model: Decoder) -> Decoder:
    return spec(lambda d: mutate(mutate(d, RouterSpec, "num_groups", 1), RouterSpec, "top_groups", 1))(model)


def tied(model: Decoder) -> Decoder:
    assert model.head is not None
    model.head.weight.copy_(model.embedding.weight)
    return model


def swapped(parameter: Tensor) -> Tensor:
    return torch.cat(parameter.chunk(2, dim=-2)[::-1], dim=-2)


NORM, ATTENTION, FFN = "layers.0.attention_norm", "layers.0.attention", "layers.0.ffn"
ROUTER, GROUPED = "layers.0.ffn.router", "layers.1.ffn.router"  # DeepSeek's first layer is dense
NEGATIVE = "deepseek_v3 with negative corrections"  # made by test_diff.py

BUGS: dict[str, Bug] = {
    # Norms
    "eps 1e-5 for 1e-6": Bug("llama", field(Norm, "eps", 1e-5), NORM, "eps is 1e-06"),
    "weight without its one": Bug("gemma", field(Norm, "offset", 0.0), NORM, "offset is 1.0"),
    "one added to a weight that has it": Bug("llama", field(Norm, "offset", 1.0), NORM, "offset is 0.0"),
    "LayerNorm without its mean": Bug("phi", modules(LayerNorm, without_mean), NORM),
    "latent norm with the config's eps": Bug(
        "deepseek_v3", field(MLA, "latent_norm", Norm(1e-4)), f"{ATTENTION}.q_norm", "eps is 1e-06"
    ),
    "no norm behind attention": Bug("gemma2", field(Layer, "post_attention_norm", None), "layers.0"),
    "no norm behind the ffn": Bug("olmo2", field(Layer, "post_ffn_norm", None), "layers.0"),
    "q and k not normalised": Bug("qwen3", field(GQA, "qk_norm", None), ATTENTION),
    "q and k normalised behind the rotation": Bug(
        "qwen3", modules(GroupedQueryAttention, norm_behind_rotation), ATTENTION, "built anew"
    ),
    "another eps for q and k": Bug("qwen3", field(QKNorm, "norm", Norm(1e-3)), f"{ATTENTION}.q_norm", "eps is 1e-06"),
    # Rotary embeddings
    "another base": Bug("llama-default", field(Rope, "theta", 1e4), ATTENTION, "right at position 0"),
    "pairs for halves": Bug("llama", field(Rope, "layout", "interleaved"), ATTENTION, "rope.layout is half"),
    "halves for pairs": Bug("deepseek_v3", field(Rope, "layout", "half"), ATTENTION, "rope.layout is interleaved"),
    "frequencies in bf16": Bug("llama", frequencies(lambda rates: rates.bfloat16().float()), ATTENTION, "position 0"),
    "llama3 scaling left out": Bug("llama-llama3", field(Rope, "scaling", None), ATTENTION, "right at position 0"),
    "linear factor multiplied": Bug("llama-linear", frequencies(lambda rates: rates * 9), ATTENTION, "position 0"),
    "YaRN's factor on cos and sin left out": Bug(
        "llama-yarn", field(YarnScaling, "attention_factor", 1.0), ATTENTION, "attention_factor is 1.1386"
    ),
    "the whole head turned": Bug("phi-norms", field(Rope, "dim", 8), ATTENTION),
    "short factors for long": Bug("phi3-long", field(LongRopeScaling, "long_factors", (1.0, 1.1, 1.4, 1.6)), ATTENTION),
    "LongRoPE's factor left out": Bug("phi3-long", field(LongRopeScaling, "long_attention_factor", 1.0), ATTENTION),
    "local and global base change places": Bug(
        "gemma3-scaled",
        attention(lambda i, e: dataclasses.replace(e, rope=dataclasses.replace(e.rope, theta=1200 - e.rope.theta))),
        ATTENTION,
    ),
    # Attention
    "mscale² left out": Bug("deepseek_v3", field(MLA, "score_factor", 1.0), ATTENTION, "all scores x"),
    "head_dim for query_pre_attn_scalar": Bug("gemma2-open", field(Scores, "scale", None), ATTENTION, "all scores x"),
    "scores without their cap": Bug("gemma2", field(Scores, "softcap", None), ATTENTION),
    "window one too long": Bug("mistral-window", field(GQA, "window", 6), ATTENTION, "window is 5"),
    "window one too short": Bug("mistral-window", field(GQA, "window", 4), ATTENTION, "window is 5"),
    "no window": Bug("mistral-window", field(GQA, "window", None), ATTENTION, "sees key 0 in minillm only"),
    "window in the other layers": Bug(
        "gemma2", attention(lambda i, e: dataclasses.replace(e, window=None if e.window else 6)), ATTENTION
    ),
    "window in the layers before max_window_layers": Bug(
        "qwen2-window", attention(lambda i, e: dataclasses.replace(e, window=6)), ATTENTION, "window is None"
    ),
    "the next token seen": Bug("llama", op(attention=seen(1)), ATTENTION, "plain PyTorch"),
    "kv heads tiled": Bug("llama", op(attention=tiled), ATTENTION, "plain PyTorch"),
    "softmax in bf16": Bug("llama", op(attention=coarse), ATTENTION, "plain PyTorch"),
    "one key fewer chosen": Bug("deepseek_v32", field(Indexer, "top_k", 5), ATTENTION, "top_k is 6"),
    "an indexer turned in pairs": Bug(
        "deepseek_v32", field(Indexer, "layout", "interleaved"), ATTENTION, "layout is half"
    ),
    "sinks left out": Bug("gpt_oss", field(GQA, "weakened", None), ATTENTION),
    "q, k, v not clamped": Bug("olmoe-clip", field(GQA, "clip", None), ATTENTION),
    "bias of q, k, v left out": Bug("qwen2", field(GQA, "qkv_bias", False), f"{ATTENTION}.qkv"),
    "bias of the output left out": Bug("llama-biases", field(GQA, "out_bias", False), f"{ATTENTION}.out"),
    "rows of q permuted": Bug(
        "llama", weights("qkv.weight", lambda w: w.view(-1, 2, 4, 48).transpose(1, 2).reshape(w.shape)),
        f"{ATTENTION}.qkv", "rows permuted",
    ),
    "values before keys in kv_b": Bug("deepseek_v3", weights("kv_up", lambda w: w.roll(14, 0)), ATTENTION),
    "three blocks for q, k, v of each head": Bug(
        "gpt_neox", weights("qkv.weight", lambda w: w.view(3, 6, 8, 48).transpose(0, 1).reshape(w.shape)), ATTENTION
    ),
    # Feed-forwards
    "gate and up change places": Bug("llama", weights("gate_up.weight", swapped), f"{FFN}.gate_up", "change places"),
    "exact gelu for its approximation": Bug("gemma", field(GatedMLP, "activation", "gelu"), FFN, "is gelu_tanh"),
    "bias of the ffn left out": Bug("llama-biases", field(GatedMLP, "bias", False), f"{FFN}.gate_up"),
    "serial for parallel": Bug("gpt_neox", field(Layer, "parallel", False), "layers.0"),
    # Routers and experts
    "not renormalised": Bug("mixtral", field(RouterSpec, "renormalize", False), ROUTER, "renormalize is True"),
    "renormalised": Bug("qwen2_moe", field(RouterSpec, "renormalize", True), ROUTER, "renormalize is False"),
    "one expert fewer": Bug("mixtral", field(RouterSpec, "top_k", 1), ROUTER),
    "logits as weights": Bug("olmoe", op(route=raw_logits), ROUTER, "plain PyTorch"),
    "router in bf16": Bug("mixtral", modules(Router, in_bfloat16), ROUTER, "built anew"),
    "softmax for sigmoid": Bug("deepseek_v3", field(RouterSpec, "score", "softmax"), GROUPED, "score is sigmoid"),
    "routed_scaling_factor left out": Bug("deepseek_v3", field(RouterSpec, "scale", 1.0), GROUPED, "all weights x 2.5"),
    "best of a group for the sum of two": Bug(
        "deepseek_v3", field(RouterSpec, "group_score", "max"), GROUPED, "group_score is top2_sum"
    ),
    "groups ignored": Bug("deepseek_v3", groups_ignored, GROUPED),
    "correction left out": Bug("deepseek_v3", field(RouterSpec, "bias", False), GROUPED),
    "correction in the weights": Bug("deepseek_v3", op(route=bias_in_weights), GROUPED, "same experts"),
    "other groups masked with 0": Bug(NEGATIVE, op(route=masked_with_zero), GROUPED, "plain PyTorch"),
    "logits not standardised": Bug("tanuki", field(RouterSpec, "normalize", None), ROUTER, "normalize is logits"),
    "softmax for SparseMixer": Bug("phimoe", field(RouterSpec, "score", "softmax"), ROUTER, "score is sparsemixer"),
    "w1 and w3 change places": Bug("mixtral", weights("experts.gate_up", swapped), f"{FFN}.experts", "change places"),
    "experts in another order": Bug("mixtral", weights("experts.down", lambda w: w.roll(1, 0)), f"{FFN}.experts"),
    "shared expert left out": Bug("deepseek_v3", field(MoE, "shared", None), "layers.1.ffn"),
    "shared expert without its gate": Bug("qwen2_moe", field(MoE, "shared_gate", False), FFN),
    "alpha of the clamped SwiGLU": Bug("gpt_oss", field(ClampedSwiGLU, "alpha", 1.0), f"{FFN}.experts"),
    # Ends
    "embedding without its factor": Bug("gemma", field(Embedding, "scale", 1.0), "embedding", "x 6.928"),
    "logits without their cap": Bug("gemma2", field(Spec, "logit_softcap", None), "head"),
    "head tied that is not": Bug("llama", tied, "head"),
    "eps of the last norm": Bug("llama", field(Spec, "final_norm", Norm(1e-4)), "norm", "eps is 1e-06"),
}  # fmt: skip
