"""What families made for small memories read the same way: the last layers use the keys and values of earlier ones, and
layers have embeddings of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import MAX_SIZE, Config, positive_integer
from minillm.families.shared import common, wrapped
from minillm.guard.screen import shown
from minillm.spec import Norm, PerLayer

DEFAULTS = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
}
LAYER, OURS = "model.layers.{i}.", "layers.{i}."
RULES = {
    "model.embed_tokens_per_layer.weight": "per_layer.embedding.weight",
    "model.per_layer_model_projection.weight": "per_layer.model.weight",
    "model.per_layer_projection_norm.weight": "per_layer.norm.weight",
    f"{LAYER}per_layer_input_gate.weight": f"{OURS}per_layer.gate.weight",
    f"{LAYER}per_layer_projection.weight": f"{OURS}per_layer.out.weight",
    f"{LAYER}post_per_layer_input_norm.weight": f"{OURS}per_layer.norm.weight",
}
# Of several residual streams, and of a product of low rank beside attention.
STREAM_RULES = {
    "model.altup_projections.{i}.weight": "streams.begin.{i}.weight",
    "model.altup_unembed_projections.{i}.weight": "streams.end.{i}.weight",
    f"{LAYER}altup.correct_output_scale": f"{OURS}streams.scale",
    f"{LAYER}altup.correction_coefs.weight": f"{OURS}streams.correct.weight",
    f"{LAYER}altup.prediction_coefs.weight": f"{OURS}streams.predict.weight",
    f"{LAYER}altup.modality_router.weight": f"{OURS}streams.router.weight",
    f"{LAYER}altup.router_norm.weight": f"{OURS}streams.norm.weight",
    f"{LAYER}laurel.linear_left.weight": f"{OURS}low_rank.down.weight",
    f"{LAYER}laurel.linear_right.weight": f"{OURS}low_rank.up.weight",
    f"{LAYER}laurel.post_laurel_norm.weight": f"{OURS}low_rank.norm.weight",
}
UNUSED = "DROP"  # keys and values of layers that use those of others, which files may hold all the same
TOWERS = (*wrapped.TOWERS, "audio_tower", "embed_vision", "embed_audio", "vision_embedder")


def rules(config: Config, text: Mapping[str, str]) -> dict[str, str]:
    """A text model's rules, for each place that its tensors may lie in."""
    layers, parts = common.num_layers(config), ("k_proj", "v_proj", "k_norm")
    names = [f"model.layers.{i}.self_attn.{part}" for i in range(layers - shared(config), layers) for part in parts]
    unused = {f"{name}.{kind}": UNUSED for name in names for kind in ("weight", "bias")}
    return wrapped.rules({**text, **unused}, TOWERS)


def shared(config: Config) -> int:
    """How many layers, the last ones, have no keys and values of their own. Raises ValueError for all of them."""
    count, layers = config.get("num_kv_shared_layers"), common.num_layers(config)
    if type(count) is not int or not 0 <= count < layers:
        raise ValueError(f"config.json: num_kv_shared_layers is {count!r}, expected 0 to {layers - 1}")
    return count


def sources(config: Config, windows: Sequence[int | None]) -> list[int | None]:
    """For each layer the one whose keys and values it uses: the last of its own kind that has some. Raises ValueError
    where there is none."""
    first = len(windows) - shared(config)
    last = {window: index for index, window in enumerate(windows[:first])}
    if set(windows[first:]) - set(last):
        raise ValueError(
            f"config.json: num_kv_shared_layers {len(windows) - first} leaves a kind of layer without keys and values"
        )
    return [None] * first + [last[window] for window in windows[first:]]


def wide_heads(config: Config, windows: Sequence[int | None]) -> tuple[int, int]:
    """Heads of keys, and their width, in layers without a window: keys of their own, or what transformers 5 writes in
    their place, `per_layer_config`. Raises ValueError where that says anything else."""
    num_heads, num_kv_heads, head_dim = common.heads(config)
    stated, kv_heads = config.get("per_layer_config"), config.optional_size("num_global_key_value_heads")
    if stated is None:
        found = (
            kv_heads if kv_heads and config.flag("attention_k_eq_v") else num_kv_heads,
            config.size("global_head_dim"),
        )
    else:
        config.without_effect(("global_head_dim",))
        found = _stated(stated, {"num_key_value_heads": num_kv_heads, "head_dim": head_dim}, windows)
    if num_heads % found[0]:
        raise ValueError(f"config.json: {num_heads} attention heads are no multiple of {found[0]} kv heads")
    return found


def _stated(stated: Any, values: dict[str, int], windows: Sequence[int | None]) -> tuple[int, int]:
    """What `per_layer_config` says of the layers without a window, the same of each, over what holds for all layers."""
    layers = {str(index).zfill(len(str(len(windows) - 1))): window for index, window in enumerate(windows)}
    full = [name for name, window in layers.items() if window is None]
    own = stated.get(full[0], {}) if isinstance(stated, dict) else None
    if not isinstance(own, dict) or set(own) - set(values) or stated != (dict.fromkeys(full, own) if own else {}):
        raise ValueError(f"config.json: per_layer_config is {shown(stated)}; {' and '.join(values)} of all layers "
                         "without a window may be other than those of the rest")  # fmt: skip
    found = {key: positive_integer(f"per_layer_config.{key}", value, MAX_SIZE) for key, value in own.items()}
    kv_heads, head_dim = {**values, **found}.values()
    return kv_heads, head_dim


def per_layer(config: Config, norm: Norm, every_token: bool = True) -> PerLayer | None:
    """The layers' own embeddings, which 0 and null leave out. Raises ValueError where `every_token` must have a row and
    some have none."""
    size, vocab = config.get("hidden_size_per_layer_input"), config.size("vocab_size_per_layer_input")
    if not size:
        return None
    if every_token and vocab < config.size("vocab_size"):
        raise ValueError(f"config.json: vocab_size_per_layer_input {vocab} is below vocab_size; all tokens have a row")
    activation = config.choice("hidden_activation", common.ACTIVATIONS)
    return PerLayer(vocab, common.num_layers(config), config.size("hidden_size_per_layer_input"), norm, activation)
