"""Llama, except: norms before and after attention and feed-forward as in Gemma 3, whose weights are stored less 1, 1/5,
1 and 1/5^1.5; each head of q and k is normalised; some layers have a window and a rotary base of their own; q, k and v
are one tensor, gate and up another.

PLaMo 3 NICT 2B, 8B, 31B (Preferred Networks, 2025), after the formulas in vLLM's and llama.cpp's code: no published
file was at hand, so that a config has to spell out what those leave to defaults. Norms are rounded where PLaMo 2 rounds
them. Its tokenizer is Python code, and not run: prompts are token ids.
"""

from __future__ import annotations

from minillm.config import MAX_POSITIONS, Config, positive_integer
from minillm.families import common, rotary
from minillm.spec import GQA, Decoder, GatedMLP, Norm, QKNorm

DEFAULTS = {
    "rope_scaling": None,
    "rope_parameters": None,
    "rope_theta": None,
    "rope_local_theta": None,
    "layer_types": None,
    "sliding_window": None,
    "window_size": None,
    "sliding_window_pattern": None,
    "interleaved_sliding_window": None,
    "hidden_act": "silu",
}

LAYER = "model.layers.layers.{i}."
RULES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    f"{LAYER}pre_mixer_norm.weight": "layers.{i}.attention_norm.weight",
    f"{LAYER}mixer.qkv_proj.weight": "layers.{i}.attention.qkv.weight",
    f"{LAYER}mixer.q_norm.weight": "layers.{i}.attention.q_norm.weight",
    f"{LAYER}mixer.k_norm.weight": "layers.{i}.attention.k_norm.weight",
    f"{LAYER}mixer.o_proj.weight": "layers.{i}.attention.out.weight",
    f"{LAYER}post_mixer_norm.weight": "layers.{i}.post_attention_norm.weight",
    f"{LAYER}pre_mlp_norm.weight": "layers.{i}.ffn_norm.weight",
    f"{LAYER}mlp.gate_up_proj.weight": "layers.{i}.ffn.gate_up.weight",
    f"{LAYER}mlp.down_proj.weight": "layers.{i}.ffn.down.weight",
    f"{LAYER}post_mlp_norm.weight": "layers.{i}.post_ffn_norm.weight",
}


def spec(config: Config) -> Decoder:
    eps, windows = config.number("rms_norm_eps"), _windows(config)
    num_heads, num_kv_heads, head_dim = (
        config.size(key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if num_heads % num_kv_heads:
        raise ValueError(f"config.json: {num_heads} attention heads are no multiple of {num_kv_heads} kv heads")
    ropes = rotary.by_window(config, head_dim, windows, config.get("rope_local_theta"))
    norm = Norm(eps, offset=1.0)
    attention = GQA(num_heads, num_kv_heads, head_dim, ropes[0], qk_norm=QKNorm(norm))
    mlp = GatedMLP(config.size("intermediate_size"), config.choice("hidden_act", {"silu": "silu"}))
    made = common.decoder(config, common.in_layers(attention, windows, ropes), [mlp] * len(windows), norm)
    return common.every_layer(
        made, post_attention_norm=Norm(eps, offset=1 / 5), post_ffn_norm=Norm(eps, offset=1 / 5**1.5)
    )


def _windows(config: Config) -> list[int | None]:
    """Each layer's window: listed one by one, or one for all layers but those that `layer_types` or every
    `sliding_window_pattern`-th excepts."""
    layers, keys = common.num_layers(config), ("interleaved_sliding_window", "sliding_window", "window_size")
    stated = next((value for value in [config.get(key) for key in keys] if value is not None), None)
    kinds, every = config.get("layer_types"), config.get("sliding_window_pattern")
    if isinstance(stated, list):
        windows = [None if each is None else positive_integer(keys[0], each, MAX_POSITIONS) for each in stated]
        if len(windows) != layers:
            raise ValueError(f"config.json: {len(windows)} windows are listed for {layers} layers")
        expected = ["full_attention" if window is None else "sliding_attention" for window in windows]
        if kinds not in (None, expected):
            raise ValueError("config.json: layer_types and the windows listed do not agree")
        return windows
    window = None if stated is None else positive_integer("sliding_window", stated, MAX_POSITIONS)
    if window is not None and kinds is None:
        every = config.size("sliding_window_pattern")
    return common.typed_windows(config, window, [bool(every) and (i + 1) % every != 0 for i in range(layers)])
