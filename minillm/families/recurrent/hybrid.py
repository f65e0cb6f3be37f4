"""What families read the same way whose layers are recurrent but for every fourth or so, which is attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.config import Config
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Gate, GatedDeltaNet, Mixer, Norm, QKNorm

SIZES = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
DEFAULTS = {
    **dict(zip(SIZES, (16, 32, 128, 128), strict=True)),
    "linear_conv_kernel_dim": 4,
    "layer_types": None,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.25,
}
MAX_KERNEL = 64
LAYER, MIXER = "model.layers.{i}.linear_attn.", "layers.{i}.attention."
# All but what x is multiplied with on its way in.
RULES = {
    f"{LAYER}A_log": f"{MIXER}decay",
    f"{LAYER}dt_bias": f"{MIXER}step",
    f"{LAYER}conv1d.weight": f"{MIXER}conv.weight: c 1 j -> c j",
    f"{LAYER}norm.weight": f"{MIXER}norm",
    f"{LAYER}out_proj.weight": f"{MIXER}output.weight",
}
PREDICTION = {"mtp.*": "DROP: layers that predict several tokens at once, which are not used"}


def norm(config: Config) -> Norm:
    """RMSNorm with a weight around zero."""
    return Norm(config.number("rms_norm_eps"), offset=1.0, cast="after_weight")


def head_sizes(config: Config) -> list[int]:
    """The `SIZES` as a config says them."""
    return [config.size(key) for key in SIZES]


def delta_net(
    config: Config, sizes: Sequence[int] = (), eps: float | None = None, beta_factor: float = 1.0
) -> GatedDeltaNet:
    """The recurrent layer that a config describes, where a family does not say the `SIZES`, or the epsilon of the norm
    inside, itself."""
    config.choice("hidden_act", {"silu": None, "swish": None})  # which its convolution is followed by
    k_heads, v_heads, k_dim, v_dim = sizes or head_sizes(config)
    if v_heads % k_heads:
        raise ValueError(f"config.json: linear_num_value_heads {v_heads} is no multiple of {k_heads} key heads")
    kernel = config.size("linear_conv_kernel_dim", MAX_KERNEL)
    norm = Norm(config.number("rms_norm_eps") if eps is None else eps)
    return GatedDeltaNet(k_heads, v_heads, k_dim, v_dim, kernel, norm, beta_factor)


def gated_attention(config: Config) -> GQA:
    """The other layers': a part of each head turns, q and k are normalised by head, and a gate is on what comes out."""
    num_heads, num_kv_heads, head_dim = common.heads(config)
    rope = rotary.rope(config, head_dim, partial=config.get("partial_rotary_factor"))
    bias, qk_norm = config.flag("attention_bias"), QKNorm(norm(config))
    return GQA(num_heads, num_kv_heads, head_dim, rope, None, bias, bias, qk_norm, weakened=Gate(with_q=True))


def mixers(config: Config, attention: GQA, recurrent: GatedDeltaNet, full: Sequence[bool]) -> list[Mixer]:
    """One for each layer: attention where `layer_types` says so, or where the family's `full` does."""
    kinds: Any = config.get("layer_types")
    if kinds is not None:
        known = {"linear_attention": False, "full_attention": True}
        if not isinstance(kinds, list) or len(kinds) != len(full):
            raise ValueError(f"config.json: layer_types must list one type for each of the {len(full)} layers")
        if odd := sorted({str(kind) for kind in kinds} - set(known)):
            raise ValueError(f"config.json: layer_types has {', '.join(odd)}; {' and '.join(known)} work")
        full = [known[kind] for kind in kinds]
    return [attention if each else recurrent for each in full]


def every(config: Config) -> list[bool]:
    """The last of each `full_attention_interval` layers."""
    interval = config.size("full_attention_interval", common.MAX_LAYERS)
    return [(i + 1) % interval == 0 for i in range(common.num_layers(config))]
