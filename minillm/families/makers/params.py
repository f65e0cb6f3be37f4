"""The values of a maker's own `params.json`, checked as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.guard.screen import shown

NAMES = "makers_names"  # the key of a made config.json that says whose names the tensors have
MAX_SIZE = 2**20


class Params:
    """What was asked for is known afterwards."""

    def __init__(self, values: Mapping[str, Any]):
        self.values, self.asked = values, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            raise ValueError(f"params.json: {key} is {shown(value)}, expected a whole number from 1 to {MAX_SIZE}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise ValueError(f"params.json: {key} is {shown(value)}, expected a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"params.json: {key} is {shown(value)}, expected true or false")
        return value

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Raise ValueError for what makes another model than the families here have."""
        for key, reason in reasons.items():
            if self.get(key) not in (None, False, 0, -1, {}, []):
                raise ValueError(f"params.json: {key} is {shown(self.values[key])}: {reason}")

    def sizes(self) -> dict[str, Any]:
        """What both makers call the same."""
        heads = self.size("n_heads")
        return {
            "hidden_size": self.size("dim"),
            "num_hidden_layers": self.size("n_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("n_kv_heads", heads),
            "rms_norm_eps": self.number("norm_eps", 1e-5),
        }

    def unread(self) -> dict[str, Any]:
        """What nobody asked for, for a made config.json to pass on, so that users are told."""
        return {f"params.json:{key}": str(value)[:60] for key, value in self.values.items() if key not in self.asked}
