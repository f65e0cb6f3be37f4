"""The words of models whose scores have learned distances: what they call values, and tensors, transformers' names and
those of published files, where gate and up of an MLP alternate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config, same
from minillm.families.shared import common, wrapped

# Other names of the same, and of what stands in a text for a picture or a sound.
NAMES = {"sconv_kernel_size": "conv_kernel_size", "model_max_length": "max_position_embeddings",
         "sliding_window": "sliding_window_size"}  # fmt: skip
OUTER = ("image_bos_token_id", "audio_bos_token_id", "mtp_config")
KINDS = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}
LAYER, OURS, LLM = "model.layers.{i}.", "layers.{i}.", "model.llm."
ATTENTION, FFN = f"{OURS}attention.", f"{OURS}ffn."
PARTS = {"wq_du": "qkv.weight[q]", "wk_dv": "qkv.weight[k]", "wv_dv": "qkv.weight[v]", "wr_du": "distances.r.weight",
         "wo_ud": "out.weight", "q_norm": "q_norm.weight", "k_norm": "k_norm.weight"}  # fmt: skip
OF_TEXT = {"embed": "embedding", "embed_norm": "embedding_norm", "norm": "norm", "unembed": "head"}
ONE = "c 1 j -> c j"
CONVS = {
    **{f"self_attn.{part}_sconv": f"attention.conv.weight[{part}]" for part in "kv"},
    "attn_sconv": "attention_conv.weight",
    "mlp_sconv": "ffn_conv.weight",
}


def inner(values: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: value for key, value in wrapped.inner(values).items() if key not in OUTER}
    for name, to in NAMES.items():
        if (value := made.pop(name, None)) is not None:
            same({to: made.get(to), name: value})
            made[to] = value
    if (dense := made.pop("dense_intermediate_size", None)) is not None:  # the other is the experts' then
        made |= {"moe_intermediate_size": made.get("intermediate_size"), "intermediate_size": dense}
    if isinstance(kinds := made.get("layer_types"), list):
        made["layer_types"] = [KINDS.get(each, each) if isinstance(each, str) else each for each in kinds]
    return made


def rules(config: Config) -> dict[str, str]:
    """All of them, and what is left out."""
    count = f"s={config.get('n_shared_experts')}"
    left_out = {"model.mtp.*": common.AHEAD, "model.audio.*": wrapped.SOUNDS, "model.audio_tower.*": wrapped.SOUNDS}
    return published(config, count) | left_out | wrapped.rules(plain(count), ("visual", "vision_tower"))


def plain(count: str) -> dict[str, str]:
    """transformers' names; `count` is the number of shared experts as a layout says it."""
    shared = f"{LAYER}mlp.shared_experts."
    return {
        **common.DENSE_RULES, **common.QK_NORM_RULES, **common.STACKED_EXPERTS,
        "model.embed_tokens.embed_norm.weight": "embedding_norm.weight",
        f"{LAYER}self_attn.r_proj.weight": f"{ATTENTION}distances.r.weight",
        f"{LAYER}self_attn.rel_logits_proj.proj": f"{ATTENTION}distances.by_distance",
        **{f"{LAYER}{name}.conv1d.weight": f"{OURS}{to}: {ONE}" for name, to in CONVS.items()},
        f"{LAYER}mlp.global_scale": f"{OURS}ffn_scale", f"{LAYER}mlp.gate.global_scale": f"{OURS}ffn_scale",
        f"{LAYER}mlp.gate.weight": f"{FFN}router.weight",
        f"{LAYER}mlp.gate.e_score_correction_bias": f"{FFN}router.bias",
        **{f"{shared}{part}_proj": f"{FFN}shared.gate_up.weight[{part}]: s f h -> (s f) h, {count}"
           for part in ("gate", "up")},
        f"{shared}down_proj": f"{FFN}shared.down.weight: s h f -> h (s f), {count}",
    }  # fmt: skip


def published(config: Config, count: str) -> dict[str, str]:
    """Those of published files."""
    own, experts = f"{LLM}layers.{{i}}.", f"e={config.get('n_routed_experts')} two=2"
    shared = f"{own}mlp.shared_experts.shared_"
    return {
        **{f"{LLM}{name}.weight": f"{to}.weight" for name, to in OF_TEXT.items()},
        f"{own}attn_norm.weight": f"{OURS}attention_norm.weight", f"{own}mlp_norm.weight": f"{OURS}ffn_norm.weight",
        **{f"{own}attn.{name}.weight": f"{ATTENTION}{to}" for name, to in PARTS.items()},
        f"{own}attn.rel_logits_proj.proj": f"{ATTENTION}distances.by_distance",
        **{f"{own}{name.replace('self_attn', 'attn')}.weight": f"{OURS}{to}: {ONE}" for name, to in CONVS.items()},
        f"{own}mlp.w13_dn.weight": f"{FFN}gate_up.weight: (f two) h -> (two f) h, two=2",
        f"{own}mlp.w2_md.weight": f"{FFN}down.weight", f"{own}mlp.global_scale": f"{OURS}ffn_scale",
        f"{own}mlp.gate.weight": f"{FFN}router.weight", f"{own}mlp.gate.bias": f"{FFN}router.bias",
        f"{own}mlp.gate.global_scale": f"{OURS}ffn_scale",
        f"{own}mlp.experts.w13_weight": f"{FFN}experts.gate_up: e (f two) h -> (e two f) h, {experts}",
        f"{own}mlp.experts.w2_weight": f"{FFN}experts.down",
        f"{shared}w13_weight": f"{FFN}shared.gate_up.weight: s (f two) h -> (two s f) h, {count} two=2",
        f"{shared}w2_weight": f"{FFN}shared.down.weight: s h f -> h (s f), {count}",
    }  # fmt: skip
