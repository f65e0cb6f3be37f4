"""What families with Mamba layers read the same way from a config, and the tensors of such a layer."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from minillm.config import Config
from minillm.families.recurrent.hybrid import MAX_KERNEL
from minillm.spec import Norm, SelectiveScan


class Keys(NamedTuple):
    """What a config calls the sizes of a layer."""

    expand: str = "mamba_expand"
    state: str = "mamba_d_state"
    kernel: str = "mamba_d_conv"
    rank: str = "mamba_dt_rank"
    conv_bias: str = "mamba_conv_bias"
    bias: str = "mamba_proj_bias"


KEYS = Keys()
DEFAULTS: dict[str, Any] = dict(zip(KEYS, (2, 16, 4, "auto", True, False), strict=True))
# How a model is begun, or computed by others.
LEFT_OVER = ("time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor",
             "rescale_prenorm_residual", "residual_in_fp32", "use_mambapy", "use_falcon_mambapy", "use_mamba_kernels",
             "use_associative_scan", "fused_add_norm", "pad_vocab_size_multiple", "num_logits_to_keep",
             "calc_logits_for_entire_prompt")  # fmt: skip


def rules(layer: str, mixer: str = "layers.{i}.attention.") -> dict[str, str]:
    """The tensors of a layer, whose names begin so, and what they fill."""
    return {
        **{f"{layer}in_proj.{kind}": f"{mixer}xz.{kind}" for kind in ("weight", "bias")},
        f"{layer}conv1d.weight": f"{mixer}conv.weight: c 1 j -> c j",
        f"{layer}conv1d.bias": f"{mixer}conv.bias",
        f"{layer}x_proj.weight": f"{mixer}dbc.weight",
        **{f"{layer}dt_proj.{kind}": f"{mixer}step.{kind}" for kind in ("weight", "bias")},
        **{f"{layer}{name}_layernorm.weight": f"{mixer}{part}_norm.weight"
           for name, part in (("dt", "d"), ("b", "b"), ("c", "c"))},
        f"{layer}A_log": f"{mixer}decay: i n -> n i",
        f"{layer}D": f"{mixer}skip",
        **{f"{layer}out_proj.{kind}": f"{mixer}output.{kind}" for kind in ("weight", "bias")},
    }  # fmt: skip


def mamba(config: Config, norm: Norm | None = None, keys: Keys = KEYS, inner: int | None = None) -> SelectiveScan:
    """The layer that a config describes, with this norm of what its second product makes, and as many channels as it
    says, or `inner`."""
    config.without_effect((*LEFT_OVER, keys.expand))  # which counts where no `inner` is stated
    config.choice("hidden_act", {"silu": None, "swish": None})  # which the convolution is followed by
    hidden = config.size("hidden_size")
    automatic = config.get(keys.rank) == "auto"
    return SelectiveScan(
        inner or int(config.number(keys.expand) * hidden),
        config.size(keys.state),
        math.ceil(hidden / 16) if automatic else config.size(keys.rank),
        config.size(keys.kernel, MAX_KERNEL),
        norm,
        config.flag(keys.conv_bias),
        config.flag(keys.bias),
    )
