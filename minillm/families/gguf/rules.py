"""Which tensor of a GGUF file fills which parameter. Where a parameter has several names, files are written with the
first."""

from __future__ import annotations

from collections.abc import Sequence

from minillm.config import Config
from minillm.families.gguf.architectures import ARCHITECTURES
from minillm.families.gguf.config import NAMES
from minillm.families.gguf.metadata import FACTORS, LONG, SHORT
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
SINKS = {
    f"{LAYER}attn_sinks.weight": f"{OURS}attention.sinks",
    f"{LAYER}post_attention_norm.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}ffn_gate_inp.bias": f"{OURS}ffn.router.logit_bias",
    f"{LAYER}ffn_gate.{{e}}.bias": f"{OURS}ffn.experts.gate_up_bias[{{e}}.gate]",
    f"{LAYER}ffn_up.{{e}}.bias": f"{OURS}ffn.experts.gate_up_bias[{{e}}.up]",
    f"{LAYER}ffn_down.{{e}}.bias": f"{OURS}ffn.experts.down_bias[{{e}}]",
}
READ = dict.fromkeys((FACTORS, SHORT, LONG), DROP)  # as values of the config
AHEAD = f"{DROP}: layers of multi-token prediction, which generation does without"

OWN = {  # before or in place of the names that most have
    "gemma2": BEHIND,
    "gemma3": BEHIND,
    "olmo2": BEHIND,
    "phi3": FUSED,
    "phi2": PLAIN,
    "gptneox": {**FUSED_QKV, **PLAIN},
    "gpt-oss": SINKS,
    "seed_oss": {f"{LAYER}post_attention_norm.weight": f"{OURS}ffn_norm.weight"},
    "deepseek2": LATENT,
}
ALSO = {"phi2": FUSED_QKV}  # behind them: what older converters wrote
# The architectures in which llama.cpp pairs neighbours when it rotates: rows of each head of q and k are stored so.
TURNED = ("llama", "olmo", "deepseek")
TURN = "(head half pair) ... -> (head pair half) ..., head={heads} pair=2"


def rules(config: Config) -> Rules | None:
    """The table for a GGUF file, or a folder made of one; None for any other checkpoint."""
    if config.values.get(NAMES) is None:
        return None
    architecture: str = config.choice(NAMES, {name: name for name in ARCHITECTURES})
    counts = (config.size("num_attention_heads"), config.size("num_key_value_heads")) if architecture in TURNED else ()
    made = {**table(architecture, config.values.get("q_lora_rank") is not None, counts), **READ}
    layers, ahead = config.size("num_hidden_layers"), config.values.get("num_nextn_predict_layers") or 0
    return made | {f"blk.{layers + i}.*": AHEAD for i in range(ahead)}


def table(architecture: str, latent_queries: bool, heads: Sequence[int]) -> dict[str, str]:
    """The tensors that are parameters; `heads` are those of q and of k."""
    own = OWN.get(architecture, {})
    made = {**own, **{name: to for name, to in {**DENSE, **EXPERTS, **BIASES}.items() if name not in own}}
    made |= ALSO.get(architecture, {})
    if architecture in TURNED:
        for part, count in zip("qk", heads, strict=True):
            for kind in ("weight", "bias"):
                made[f"{LAYER}attn_{part}.{kind}"] += f": {TURN.format(heads=count)}"
    if architecture == "deepseek2":
        queries = made.pop(f"{LAYER}attn_q_b.weight")
        made[f"{LAYER}attn_q_b.weight" if latent_queries else f"{LAYER}attn_q.weight"] = queries
    return made
