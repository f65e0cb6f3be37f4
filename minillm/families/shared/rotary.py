"""What a config says of rotary positions: which values turn, how fast, and how they are scaled to long contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.config import MAX_POSITIONS, Config, number, positive_integer, same
from minillm.guard.screen import shown
from minillm.spec import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)

# Rotary keys that change nothing where the kind of scaling does not ask for them.
IDLE = ("finetuned",)


def rope(config: Config, head_dim: int, values: dict[str, Any] | None = None, partial: Any = ...) -> Rope:
    """The rotary embedding of a head with the config's parameters, or the `values` that a family made of them. The part
    of a head that turns is their `partial_rotary_factor`, else `partial`; a family without one turns whole heads."""
    values = config.rope() if values is None else values
    part = values.pop("partial_rotary_factor", None if partial is ... else partial)
    if part in (None, 1):
        return scaled(config, values, head_dim)
    if partial is ...:
        raise ValueError(f"config.json: partial_rotary_factor is {part!r}; this family turns whole heads")
    return scaled(config, values, int(head_dim * number("partial_rotary_factor", part, low=1e-3, high=1.0)))


def scaled(config: Config, values: dict[str, Any], dim: int) -> Rope:
    """The rotary embedding of `dim` values with the parameters `values`, `rope_type` and `rope_theta` among them."""
    if dim % 2 or not dim:
        raise ValueError(f"config.json: rotary positions of {dim} values per head; their number must be even")
    theta = number("rope_theta", values.pop("rope_theta"), low=1.0001)
    kind = values.pop("rope_type")
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ValueError(f"config.json: rope_type is {kind!r}, supported are {', '.join(SCALINGS)}")
    scaling = SCALINGS[kind](values, config.positions("max_position_embeddings"))
    if isinstance(scaling, LongRopeScaling) and len(scaling.short_factors) != dim // 2:
        raise ValueError(f"config.json: {len(scaling.short_factors)} longrope factors, heads need {dim // 2}")
    if isinstance(scaling, DynamicScaling) and dim == 2:
        raise ValueError("config.json: head_dim is 2, dynamic rope scaling needs 4 or more")
    if values.get("original_max_position_embeddings") is not None:  # without effect, and checked all the same
        _original(values, 1)
    config.report_unread(
        f"rope_scaling.{key}" for key, value in values.items() if value is not None and key not in IDLE
    )
    return Rope(dim, theta, scaling=scaling)


def by_window(
    config: Config, head_dim: int, windows: Sequence[int | None], sliding_theta: Any, wide: int | None = None
) -> list[Rope]:
    """Each layer's rotary embedding where those with a window have one of their own, which older files do not scale:
    nested by kind in `rope_parameters`, or `rope_theta` and `rope_scaling` of the layers that see everything, whose
    heads may have a width of their own, `wide`."""
    stated = config.get("rope_parameters")
    nested = stated if isinstance(stated, dict) else {}
    full, sliding = (nested.get(kind) for kind in ("full_attention", "sliding_attention"))
    if odd := [each for each in (full, sliding) if not isinstance(each, (dict, type(None)))]:
        raise ValueError(f"config.json: rope_parameters has {str(odd[0])[:40]} for a kind of layer, expected an object")
    if full is None and sliding is None:
        full = config.rope()
    else:
        config.get("rope_scaling")  # without effect beside them
        of_full = "rope_parameters.full_attention.rope_theta"
        same({"rope_theta": config.values.get("rope_theta"), of_full: (full or {}).get("rope_theta")})
    default = {"rope_type": "default", "rope_theta": config.get("rope_theta")}
    everywhere = scaled(config, {**default, **(full or {})}, wide or head_dim)
    if not any(windows):
        return [everywhere] * len(windows)
    local = scaled(config, {**default, "rope_theta": sliding_theta, **(sliding or {})}, head_dim)
    return [everywhere if window is None else local for window in windows]


def by_kind(config: Config, head_dim: int, thetas: Mapping[str, float], part: float | None = None) -> dict[str, Rope]:
    """The rotary embedding of each kind of layer that `thetas` names, by its section of `rope_parameters`; `part` of a
    head turns, or all of it, where that is silent."""
    stated = config.get("rope_parameters")
    sections: dict[str, Any] = {kind: stated.get(kind) if isinstance(stated, dict) else None for kind in thetas}
    if any(not isinstance(each, dict) for each in sections.values()):
        raise ValueError(f"config.json: rope_parameters is {shown(stated)}, expected sections {', '.join(sections)}")
    return {
        kind: rope(config, head_dim, {"rope_type": "default", "rope_theta": thetas[kind], **section}, partial=part)
        for kind, section in sections.items()
    }


def context(config: Config, rotary: Rope | None) -> int:
    """Positions the model is meant for: what the config says, or what its scaling stretches the original to."""
    positions = config.positions("max_position_embeddings")
    if rotary is not None and isinstance(rotary.scaling, (DynamicScaling, YarnScaling)):
        return max(positions, int(rotary.scaling.factor * rotary.scaling.original_positions))
    return positions


def _linear(values: dict[str, Any], positions: int) -> RopeScaling:
    return LinearScaling(_factor(values))


def _dynamic(values: dict[str, Any], positions: int) -> RopeScaling:
    # Growth is measured from the config's own limit, as in transformers, whatever original length is stated beside it.
    return DynamicScaling(_factor(values), positions)


def _proportional(values: dict[str, Any], positions: int) -> RopeScaling:
    part = number("partial_rotary_factor", values.pop("partial_rotary_factor", 1.0), low=1e-3, high=1.0)
    return ProportionalScaling(part, 1.0 if values.get("factor") is None else _factor(values))


def _llama3(values: dict[str, Any], positions: int) -> RopeScaling:
    low, high = (number(key, values.pop(key, None)) for key in ("low_freq_factor", "high_freq_factor"))
    if low > high:
        raise ValueError(f"config.json: low_freq_factor {low} is above high_freq_factor {high}")
    return Llama3Scaling(_factor(values), low, high, _original(values, positions))


def _yarn(values: dict[str, Any], positions: int) -> RopeScaling:
    original = _original(values, positions)
    factor = _factor(values) if values.get("factor") is not None else positions / original
    values.pop("factor", None)
    mscale, all_dim = (number(key, values.pop(key, None) or 0, low=0) for key in ("mscale", "mscale_all_dim"))
    truncate = values.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"config.json: truncate is {truncate!r}, expected true or false")
    attention_factor = values.pop("attention_factor", None)
    if attention_factor is None:
        both = mscale and all_dim
        attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim) if both else yarn_mscale(factor)
    return YarnScaling(
        factor=factor,
        original_positions=original,
        attention_factor=number("attention_factor", attention_factor),
        beta_fast=number("beta_fast", values.pop("beta_fast", None) or 32.0),
        beta_slow=number("beta_slow", values.pop("beta_slow", None) or 1.0),
        truncate=truncate,
    )


def _longrope(values: dict[str, Any], positions: int) -> RopeScaling:
    original = _original(values, positions)
    factors = [values.pop(key, None) for key in ("short_factor", "long_factor")]
    if not all(isinstance(each, list) and each for each in factors) or len(factors[0]) != len(factors[1]):
        raise ValueError("config.json: longrope needs a short_factor and a long_factor, lists of the same length")
    short, long = (tuple(number("rope factor", each, low=0.01, high=1e6) for each in part) for part in factors)
    factor = number("rope factor", values.pop("factor", None) or positions / original, low=1e-6, high=1e6)
    if factor > 1 and original == 1:
        raise ValueError("config.json: original_max_position_embeddings is 1, longrope needs 2 or more")
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    default = values.pop("attention_factor", None) or default
    mscales = [number(key, values.pop(key, None) or default) for key in ("short_mscale", "long_mscale")]
    return LongRopeScaling(short, long, original, *mscales)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """0.1 m ln(factor) + 1, the temperature correction of YaRN (arXiv:2309.00071, section 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factor(values: dict[str, Any]) -> float:
    return number("rope factor", values.pop("factor", None), low=0.01, high=1e6)


def _original(values: dict[str, Any], positions: int) -> int:
    stated = values.pop("original_max_position_embeddings", None)
    if isinstance(stated, float) and stated.is_integer():
        stated = int(stated)
    return positions if stated is None else positive_integer("original_max_position_embeddings", stated, MAX_POSITIONS)


SCALINGS = {
    "default": lambda values, positions: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
