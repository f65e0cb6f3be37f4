"""Llama, except: all that Qwen2 changes, but for windows; q, k and v lie in one tensor, and `intermediate_size` is that
of gate and up together; beyond `seq_length` the authors' code changes positions and scores, so that the context ends
there.

Qwen 1.8B, 7B, 14B, 72B, nekomata (Bai et al., arXiv:2309.16609). `w1` is the up and `w2` the gate projection. Its
tokenizer is Python code, which is not run: give token ids. transformers has no class for it: the tests compare with
Qwen2's under these names.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import Config
from minillm.families.shared import common
from minillm.spec import GQA, Decoder, GatedMLP, Norm, Rope

FIXED = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True}  # no other value is published
IDLE = {  # how to compute, and what acts beyond `seq_length` only
    **dict.fromkeys(("bf16", "fp16", "fp32", "softmax_in_fp32", "use_dynamic_ntk", "use_logn_attn"), False),
    "onnx_safe": None,
    "use_flash_attn": "auto",
    "attn_dropout_prob": 0.0,
    "emb_dropout_prob": 0.0,
}
DEFAULTS = {
    **FIXED,
    **IDLE,
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000.0,
    "seq_length": 8192,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
LAYER, OURS = "transformer.h.{i}.", "layers.{i}."
RULES = {
    "transformer.wte.weight": "embedding.weight",
    "transformer.ln_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}ln_1.weight": f"{OURS}attention_norm.weight",
    f"{LAYER}ln_2.weight": f"{OURS}ffn_norm.weight",
    f"{LAYER}attn.c_attn.weight": f"{OURS}attention.qkv.weight",
    f"{LAYER}attn.c_attn.bias": f"{OURS}attention.qkv.bias",
    f"{LAYER}attn.c_proj.weight": f"{OURS}attention.out.weight",
    f"{LAYER}mlp.w1.weight": f"{OURS}ffn.gate_up.weight[up]",
    f"{LAYER}mlp.w2.weight": f"{OURS}ffn.gate_up.weight[gate]",
    f"{LAYER}mlp.c_proj.weight": f"{OURS}ffn.down.weight",
}


def spec(config: Config) -> Decoder:
    common.only(config, FIXED)
    for key in IDLE:
        config.get(key)
    heads, head_dim, width = (config.size(key) for key in ("num_attention_heads", "kv_channels", "intermediate_size"))
    if width % 2:
        raise ValueError(f"config.json: intermediate_size {width} is that of two equal parts, and odd")
    attention = GQA(heads, heads, head_dim, Rope(head_dim, config.number("rotary_emb_base")), qkv_bias=True)
    layers, norm = common.num_layers(config), Norm(config.number("layer_norm_epsilon"))
    made = common.decoder(config, [attention] * layers, [GatedMLP(width // 2)] * layers, norm)
    return replace(made, context=min(made.context, config.positions("seq_length")))
