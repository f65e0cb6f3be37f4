"""Llama, except: other names.

EXAONE 3.0 7.8B, EXAONE 3.5 2.4B, 7.8B, 32B (LG AI Research, arXiv:2412.04862), which transformers has no class for: the
tests compare with Llama's under these names.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder, GatedMLP, Norm

DEFAULTS = {
    **{
        key: value for key, value in llama.DEFAULTS.items() if key not in ("rms_norm_eps", "attention_bias", "mlp_bias")
    },
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": None,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
LAYER, OURS = "transformer.h.{i}.", "layers.{i}."
RULES = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.ln_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}ln_1.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}ln_2.weight": f"{OURS}ffn_norm.weight",
    **{f"{LAYER}attn.attention.{part}_proj.weight": f"{OURS}attention.qkv.weight[{part}]" for part in "qkv"},
    f"{LAYER}attn.attention.out_proj.weight": f"{OURS}attention.out.weight",
    f"{LAYER}mlp.c_fc_0.weight": f"{OURS}ffn.gate_up.weight[gate]",
    f"{LAYER}mlp.c_fc_1.weight": f"{OURS}ffn.gate_up.weight[up]",
    f"{LAYER}mlp.c_proj.weight": f"{OURS}ffn.down.weight",
}


def spec(config: Config) -> Decoder:
    num_heads, num_kv_heads, head_dim = common.heads(config)
    attention = GQA(num_heads, num_kv_heads, head_dim, rotary.rope(config, head_dim))
    width = config.optional_size("intermediate_size") or 4 * config.size("hidden_size")
    mlp = GatedMLP(width, config.choice("hidden_act", common.ACTIVATIONS))
    layers, norm = common.num_layers(config), Norm(config.number("layer_norm_epsilon"))
    return common.decoder(config, [attention] * layers, [mlp] * layers, norm)
