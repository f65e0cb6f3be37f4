"""Llama, except: norms before and after attention and feed-forward as in Gemma 3, whose weights are stored less 1, 1/5,
1 and 1/5^1.5; each head of q and k is normalised; some layers have a window and a rotary base of their own; q, k and v
are one tensor, gate and up another.

PLaMo 3 NICT 2B, 8B, 31B (Preferred Networks, 2025), after the formulas in vLLM's and llama.cpp's code: no published
file was at hand, so that a config has to spell out what those leave to defaults. Norms are rounded where PLaMo 2 rounds
them. Its tokenizer is Python code, and not run: prompts are token ids.
"""

from __future__ import annotations

from minillm.config import MAX_POSITIONS, Config, positive_integer
from minillm.families.shared import common, rotary
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
    `sliding_window_pattern`-th excepts. What is said twice has to agree."""
    layers, keys = common.num_layers(config), ("interleaved_sliding_window", "sliding_window", "window_size")
    stated = {key: config.get(key) for key in keys if config.get(key) is not None}
    listed = {key: value for key, value in stated.items() if isinstance(value, list)}
    numbers = {key: value for key, value in stated.items() if key not in listed}
    for several in (listed, numbers):
        if len({str(value) for value in several.values()}) > 1:
            raise ValueError(f"config.json: {' and '.join(several)} differ; they mean the same")
    kinds, every = config.get("layer_types"), config.optional_size("sliding_window_pattern")
    if listed:
        key, value = next(iter(listed.items()))
        windows = [None if each is None else positive_integer(key, each, MAX_POSITIONS) for each in value]
        if len(windows) != layers:
            raise ValueError(f"config.json: {len(windows)} windows are listed for {layers} layers")
    else:
        window = positive_integer(*next(iter(numbers.items())), MAX_POSITIONS) if numbers else None
        if window is not None and kinds is None and every is None:
            raise ValueError("config.json: a window needs layer_types or sliding_window_pattern to say where it is")
        default = [bool(every) and (i + 1) % (every or 1) != 0 for i in range(layers)]
        windows = common.typed_windows(config, window, default)
    found = ["full_attention" if window is None else "sliding_attention" for window in windows]
    by_pattern = [("full_attention", "sliding_attention")[bool((i + 1) % (every or 1))] for i in range(layers)]
    if kinds not in (None, found) or (every and any(windows) and by_pattern != found):
        raise ValueError("config.json: layer_types, sliding_window_pattern and the windows listed do not agree")
    return windows
