"""Which tensor of a GGUF file fills which parameter. Where a parameter has several names, files are written with the
first."""

from __future__ import annotations

from collections.abc import Sequence

from minillm.config import Config
from minillm.families.gguf import selective, states
from minillm.families.gguf.architectures import ARCHITECTURES, HYBRID, ON_DEVICE
from minillm.families.gguf.config import NAMES
from minillm.families.gguf.metadata import FACTORS, LONG, SHORT
from minillm.families.recurrent import hybrid
from minillm.families.shared.on_device import shared
from minillm.weights.rules import DROP, Rules

LAYER, OURS = "blk.{i}.", "layers.{i}."
DENSE = {
    "token_embd.weight": "embedding.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
    f"{LAYER}attn_norm.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}attn_q.weight": f"{OURS}attention.qkv.weight[q]",
    f"{LAYER}attn_k.weight": f"{OURS}attention.qkv.weight[k]",
    f"{LAYER}attn_v.weight": f"{OURS}attention.qkv.weight[v]",
    f"{LAYER}attn_q.bias": f"{OURS}attention.qkv.bias[q]",
    f"{LAYER}attn_k.bias": f"{OURS}attention.qkv.bias[k]",
    f"{LAYER}attn_v.bias": f"{OURS}attention.qkv.bias[v]",
    f"{LAYER}attn_q_norm.weight": f"{OURS}attention.q_norm.weight",
    f"{LAYER}attn_k_norm.weight": f"{OURS}attention.k_norm.weight",
    f"{LAYER}attn_output.weight": f"{OURS}attention.out.weight",
    f"{LAYER}ffn_norm.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}ffn_gate.weight": f"{OURS}ffn.gate_up.weight[gate]",
    f"{LAYER}ffn_up.weight": f"{OURS}ffn.gate_up.weight[up]",
    f"{LAYER}ffn_down.weight": f"{OURS}ffn.down.weight",
    f"{LAYER}ffn_gate_inp.weight": f"{OURS}ffn.router.weight",
}
EXPERTS = {  # one by one, as `weights/gguf/tensors.py` gives them
    f"{LAYER}ffn_gate.{{e}}.weight": f"{OURS}ffn.experts.gate_up[{{e}}.gate]",
    f"{LAYER}ffn_up.{{e}}.weight": f"{OURS}ffn.experts.gate_up[{{e}}.up]",
    f"{LAYER}ffn_down.{{e}}.weight": f"{OURS}ffn.experts.down[{{e}}]",
    f"{LAYER}ffn_gate_shexp.weight": f"{OURS}ffn.shared.gate_up.weight[gate]",
    f"{LAYER}ffn_up_shexp.weight": f"{OURS}ffn.shared.gate_up.weight[up]",
    f"{LAYER}ffn_down_shexp.weight": f"{OURS}ffn.shared.down.weight",
    f"{LAYER}ffn_gate_inp_shexp.weight": f"{OURS}ffn.shared_gate.weight: e -> 1 e",
    f"{LAYER}exp_probs_b.bias": f"{OURS}ffn.router.bias",
}
BIASES = {
    f"{LAYER}attn_output.bias": f"{OURS}attention.out.bias",
    f"{LAYER}ffn_gate.bias": f"{OURS}ffn.gate_up.bias[gate]",
    f"{LAYER}ffn_up.bias": f"{OURS}ffn.gate_up.bias[up]",
    f"{LAYER}ffn_down.bias": f"{OURS}ffn.down.bias",
}
BEHIND = {  # norms behind attention and feed-forward
    f"{LAYER}post_attention_norm.weight": f"{OURS}post_attention_norm.weight",
    f"{LAYER}post_ffw_norm.weight": f"{OURS}post_ffn_norm.weight",
}
LATENT = {
    f"{LAYER}attn_q_a.weight": f"{OURS}attention.q_down.weight",
    f"{LAYER}attn_q_a_norm.weight": f"{OURS}attention.q_norm.weight",
    f"{LAYER}attn_q_b.weight": f"{OURS}attention.q.weight",  # attn_q without a latent of queries
    f"{LAYER}attn_kv_a_mqa.weight": f"{OURS}attention.kv_down.weight",
    f"{LAYER}attn_kv_a_norm.weight": f"{OURS}attention.kv_norm.weight",
    f"{LAYER}attn_kv_b.weight": f"{OURS}attention.kv_up",
}
FUSED_QKV = {
    f"{LAYER}attn_qkv.weight": f"{OURS}attention.qkv.weight",
    f"{LAYER}attn_qkv.bias": f"{OURS}attention.qkv.bias",
}
FUSED = {**FUSED_QKV, f"{LAYER}ffn_up.weight": f"{OURS}ffn.gate_up.weight"}
PLAIN = {  # an MLP without a gate, and biases of norms and head
    f"{LAYER}attn_norm.bias": f"{OURS}attention_norm.bias",
    f"{LAYER}ffn_norm.bias": f"{OURS}ffn_norm.bias",
    "output_norm.bias": "norm.bias",
    "output.bias": "head.bias",
    f"{LAYER}ffn_up.weight": f"{OURS}ffn.up.weight",
    f"{LAYER}ffn_up.bias": f"{OURS}ffn.up.bias",
}
EMBEDDING_NORM = {f"token_embd_norm.{kind}": f"embedding_norm.{kind}" for kind in ("weight", "bias")}
SINKS = {
    f"{LAYER}attn_sinks.weight": f"{OURS}attention.sinks",
    f"{LAYER}post_attention_norm.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}ffn_gate_inp.bias": f"{OURS}ffn.router.logit_bias",
    f"{LAYER}ffn_gate.{{e}}.bias": f"{OURS}ffn.experts.gate_up_bias[{{e}}.gate]",
    f"{LAYER}ffn_up.{{e}}.bias": f"{OURS}ffn.experts.gate_up_bias[{{e}}.up]",
    f"{LAYER}ffn_down.{{e}}.bias": f"{OURS}ffn.experts.down_bias[{{e}}]",
}
RECURRENT = {
    f"{LAYER}post_attention_norm.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}attn_qkv.weight": f"{OURS}attention.qkvz.weight[q+k+v]",
    f"{LAYER}attn_gate.weight": f"{OURS}attention.qkvz.weight[z]",
    f"{LAYER}ssm_alpha.weight": f"{OURS}attention.ba.weight[a]",
    f"{LAYER}ssm_beta.weight": f"{OURS}attention.ba.weight[b]",
    f"{LAYER}ssm_a": f"{OURS}attention.decay",
    f"{LAYER}ssm_dt.bias": f"{OURS}attention.step",
    f"{LAYER}ssm_conv1d.weight": f"{OURS}attention.conv.weight",
    f"{LAYER}ssm_norm.weight": f"{OURS}attention.norm",
    f"{LAYER}ssm_out.weight": f"{OURS}attention.output.weight",
}
LAYERS_TOLD = {
    "per_layer_token_embd.weight": "per_layer.embedding.weight",
    "per_layer_model_proj.weight": "per_layer.model.weight",
    "per_layer_proj_norm.weight": "per_layer.norm.weight",
    f"{LAYER}inp_gate.weight": f"{OURS}per_layer.gate.weight",
    f"{LAYER}proj.weight": f"{OURS}per_layer.out.weight",
    f"{LAYER}post_norm.weight": f"{OURS}per_layer.norm.weight",
}
STREAMS = {
    "altup_proj.{i}.weight": "streams.begin.{i}.weight",
    "altup_unembd_proj.{i}.weight": "streams.end.{i}.weight",
    f"{LAYER}altup_correct_scale.weight": f"{OURS}streams.scale",
    f"{LAYER}altup_correct_coef.weight": f"{OURS}streams.correct.weight",
    f"{LAYER}altup_predict_coef.weight": f"{OURS}streams.predict.weight",
    f"{LAYER}altup_router.weight": f"{OURS}streams.router.weight",
    f"{LAYER}altup_router_norm.weight": f"{OURS}streams.norm.weight",
    f"{LAYER}laurel_l.weight": f"{OURS}low_rank.down.weight",
    f"{LAYER}laurel_r.weight": f"{OURS}low_rank.up.weight",
    f"{LAYER}laurel_post_norm.weight": f"{OURS}low_rank.norm.weight",
}
BESIDE = {  # a mixture beside an MLP
    f"{LAYER}ffn_norm.weight": f"{OURS}ffn.shared_norm.weight",
    f"{LAYER}post_ffw_norm_1.weight": f"{OURS}ffn.shared_post_norm.weight",
    f"{LAYER}pre_ffw_norm_2.weight": f"{OURS}ffn.norm.weight",
    f"{LAYER}post_ffw_norm_2.weight": f"{OURS}ffn.post_norm.weight",
    f"{LAYER}ffn_gate_inp.scale": f"{OURS}ffn.router.input_scale",
    f"{LAYER}ffn_down_exps.scale": f"{OURS}ffn.router.expert_scale",
    f"{LAYER}ffn_gate.weight": f"{OURS}ffn.shared.gate_up.weight[gate]",
    f"{LAYER}ffn_up.weight": f"{OURS}ffn.shared.gate_up.weight[up]",
    f"{LAYER}ffn_down.weight": f"{OURS}ffn.shared.down.weight",
}
KEYS_AND_VALUES = ("attn_k", "attn_v", "attn_k_norm")  # of layers that use those of others
READ = dict.fromkeys((FACTORS, SHORT, LONG), DROP)  # as values of the config
AHEAD = f"{DROP}: layers of multi-token prediction, which generation does without"

OWN = {  # before or in place of the names that most have
    "gemma2": BEHIND,
    "gemma3": BEHIND,
    "gemma3n": {**BEHIND, **LAYERS_TOLD, **STREAMS},
    "gemma4": {**BEHIND, **LAYERS_TOLD, f"{LAYER}layer_output_scale.weight": f"{OURS}scale"},
    "olmo2": BEHIND,
    "phi3": FUSED,
    "phi2": PLAIN,
    "gptneox": {**FUSED_QKV, **PLAIN},
    "gpt-oss": SINKS,
    "exaone4": BEHIND,
    "qwen": FUSED_QKV,
    "chatglm": FUSED,
    "glm4": {**BEHIND, f"{LAYER}ffn_up.weight": f"{OURS}ffn.gate_up.weight"},
    "starcoder2": PLAIN,
    "stablelm": {name: to for name, to in PLAIN.items() if "norm" in name},
    "falcon": {**FUSED_QKV, **PLAIN},
    "arcee": {f"{LAYER}ffn_up.weight": f"{OURS}ffn.up.weight"},
    "glm4moe": {f"{LAYER}post_attention_norm.weight": f"{OURS}ffn_norm.weight"},
    "hy_v3": {f"{LAYER}exp_probs_b": f"{OURS}ffn.router.bias"},
    "qwen3next": {name: to for name, to in RECURRENT.items() if ".ba." not in to},
    "qwen35": RECURRENT,
    "qwen35moe": RECURRENT,
    "seed_oss": {f"{LAYER}post_attention_norm.weight": f"{OURS}ffn_norm.weight"},
    "deepseek2": LATENT,
    **{key: {**FUSED_QKV, **PLAIN, "position_embd.weight": "positions.weight"} for key in ("gpt2", "starcoder")},
    "bloom": {**FUSED_QKV, **PLAIN, **EMBEDDING_NORM},
    **states.OWN,
    **dict.fromkeys(selective.NAMES, selective.RULES),
    "mpt": {**FUSED_QKV, **PLAIN},
    "dbrx": {**FUSED_QKV, f"{LAYER}attn_output_norm.weight": f"{OURS}ffn_norm.weight"},
    "nemotron": PLAIN,
}
ALSO = {"phi2": FUSED_QKV}  # behind them: what older converters wrote
# The architectures in which llama.cpp pairs neighbours when it rotates: rows of each head of q and k are stored so.
TURNED = ("llama", "mistral3", "baichuan", "internlm2", "olmo", "deepseek", "smollm3", "granite", "granitemoe",
          "arcee", "granitehybrid", "minicpm")  # fmt: skip
TURN = "(head half pair) ... -> (head pair half) ..., head={heads} pair=2"


def rules(config: Config) -> Rules | None:
    """The table for a GGUF file, or a folder made of one; None for any other checkpoint."""
    if config.values.get(NAMES) is None:
        return None
    architecture: str = config.choice(NAMES, {name: name for name in ARCHITECTURES})
    counts = (config.size("num_attention_heads"), config.size("num_key_value_heads")) if architecture in TURNED else ()
    net = hybrid.head_sizes(config) if architecture in HYBRID else None
    latent, beside = config.values.get("q_lora_rank") is not None, bool(config.values.get("enable_moe_block"))
    made = {**table(architecture, latent, counts, net, beside, states.of_config(config.values)), **READ}
    layers, ahead = config.size("num_hidden_layers"), config.values.get("num_nextn_predict_layers") or 0
    if architecture in ON_DEVICE:
        first = layers - shared(config)
        made |= {f"blk.{i}.{part}.weight": DROP for i in range(first, layers) for part in KEYS_AND_VALUES}
    return made | {f"blk.{layers + i}.*": AHEAD for i in range(ahead)}


def table(
    architecture: str,
    latent_queries: bool,
    heads: Sequence[int],
    recurrent: Sequence[int] | None = None,
    beside: bool = False,
    scanned: tuple[int, Sequence[int]] = (0, ()),
) -> dict[str, str]:
    """The tensors that are parameters; `heads` are those of q and of k, `recurrent` the k and v heads of recurrent
    layers and their sizes, `beside` whether there are mixtures beside MLPs, `scanned` as in `states.rules`."""
    own = {**OWN.get(architecture, {}), **(BESIDE if beside else {})}
    made = {**own, **{name: to for name, to in {**DENSE, **EXPERTS, **BIASES}.items() if name not in own}}
    made |= ALSO.get(architecture, {})
    if architecture in TURNED:
        for part, count in zip("qk", heads, strict=True):
            for kind in ("weight", "bias"):
                made[f"{LAYER}attn_{part}.{kind}"] += f": {TURN.format(heads=count)}"
    if architecture in states.SCANNED:
        made = {**states.rules(*scanned), **made}
    if recurrent is not None:
        made |= _recurrent(architecture, *recurrent)
    if architecture == "deepseek2":
        queries = made.pop(f"{LAYER}attn_q_b.weight")
        made[f"{LAYER}attn_q_b.weight" if latent_queries else f"{LAYER}attn_q.weight"] = queries
    return made


def _recurrent(architecture: str, k_heads: int, v_heads: int, k_dim: int, v_dim: int) -> dict[str, str]:
    """How a converter has what belongs to v heads: the first of each k head, then the second of each, and so on. Only
    in the oldest of these architectures they lie as they were, and b and a in one matrix, by k head."""
    group = v_heads // k_heads
    if architecture == "qwen3next":
        layout = f"(k part r) e -> (part k r) e, k={k_heads} part=2"
        return {f"{LAYER}ssm_ba.weight": f"{OURS}attention.ba.weight: {layout}"}
    if group == 1:
        return {}
    by_head, by_value = f"r={group} k={k_heads}", f"r={group} k={k_heads} d={v_dim}"
    rows, columns = f"(r k d) e -> (k r d) e, {by_value}", f"e (r k d) -> e (k r d), {by_value}"
    layouts = {
        "attn_qkv.weight": f"{2 * k_heads * k_dim} + {rows}",
        "ssm_conv1d.weight": f"{2 * k_heads * k_dim} + {rows}",
        "attn_gate.weight": rows,
        "ssm_alpha.weight": f"(r k) e -> (k r) e, {by_head}",
        "ssm_beta.weight": f"(r k) e -> (k r) e, {by_head}",
        "ssm_a": f"(r k) -> (k r), {by_head}",
        "ssm_dt.bias": f"(r k) -> (k r), {by_head}",
        "ssm_out.weight": columns,
    }
    return {f"{LAYER}{name}": f"{RECURRENT[LAYER + name]}: {layout}" for name, layout in layouts.items()}
