"""Which tensor of a GGUF file fills which parameter: the names that `gguf_names.py` writes, and what else there is."""

from __future__ import annotations

from minillm.config import Config
from minillm.families.shared import gguf_names
from minillm.families.shared.gguf_architectures import ARCHITECTURES
from minillm.families.shared.gguf_config import NAMES
from minillm.families.shared.gguf_metadata import FACTORS, LONG, SHORT
from minillm.weights.rules import DROP, Rules

LAYER, OURS = "blk.{i}.", "layers.{i}."
DENSE = {tensor: target for target, tensor in gguf_names.TENSORS.items() if "experts" not in target}
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
    f"{LAYER}attn_q.weight": f"{OURS}attention.q.weight",
    f"{LAYER}attn_q_a.weight": f"{OURS}attention.q_down.weight",
    f"{LAYER}attn_q_a_norm.weight": f"{OURS}attention.q_norm.weight",
    f"{LAYER}attn_q_b.weight": f"{OURS}attention.q.weight",
    f"{LAYER}attn_kv_a_mqa.weight": f"{OURS}attention.kv_down.weight",
    f"{LAYER}attn_kv_a_norm.weight": f"{OURS}attention.kv_norm.weight",
    f"{LAYER}attn_kv_b.weight": f"{OURS}attention.kv_up",
}
FUSED = {
    f"{LAYER}attn_qkv.weight": f"{OURS}attention.qkv.weight",
    f"{LAYER}ffn_up.weight": f"{OURS}ffn.gate_up.weight",
}
PLAIN = {  # an MLP without a gate, and biases of norms and head
    f"{LAYER}attn_norm.bias": f"{OURS}attention_norm.bias",
    f"{LAYER}ffn_norm.bias": f"{OURS}ffn_norm.bias",
    "output_norm.bias": "norm.bias",
    "output.bias": "head.bias",
    f"{LAYER}attn_qkv.weight": f"{OURS}attention.qkv.weight",
    f"{LAYER}attn_qkv.bias": f"{OURS}attention.qkv.bias",
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

OWN = {  # beside or in place of the names that most have
    "gemma2": BEHIND,
    "gemma3": BEHIND,
    "olmo2": BEHIND,
    "phi3": FUSED,
    "phi2": PLAIN,
    "gptneox": PLAIN,
    "gpt-oss": SINKS,
    "seed_oss": {f"{LAYER}post_attention_norm.weight": f"{OURS}ffn_norm.weight"},
    "deepseek2": LATENT,
}
# The architectures whose q and k lie as llama.cpp turns pairs (`gguf_names.TURNED`).
TURNED = ("llama", "olmo", "deepseek")


def rules(config: Config) -> Rules | None:
    """The table for a GGUF file, or a folder made of one; None for any other checkpoint."""
    if config.values.get(NAMES) is None:
        return None
    architecture: str = config.choice(NAMES, {name: name for name in ARCHITECTURES})
    made = {**DENSE, **EXPERTS, **BIASES, **OWN.get(architecture, {}), **READ}
    layers, ahead = config.size("num_hidden_layers"), config.values.get("num_nextn_predict_layers") or 0
    made |= {f"blk.{layers + i}.*": AHEAD for i in range(ahead)}
    if architecture in TURNED:
        counts = {"q": config.size("num_attention_heads"), "k": config.size("num_key_value_heads")}
        for part, count in counts.items():
            for kind in ("weight", "bias"):
                made[f"{LAYER}attn_{part}.{kind}"] += f": {gguf_names.TURNED.format(heads=count)}"
    return made
