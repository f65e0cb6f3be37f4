"""Keys of a config.json that contradict each other, or that are of another kind than whoever reads them expects, are
named; one that has no effect here may have one elsewhere."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from minillm import families
from minillm.config import HARMLESS, IS
from tests.conftest import shared
from tests.helpers.rows import BASE

LATENT = {
    "model_type": "deepseek_v2", "topk_method": "greedy", "num_experts_per_tok": 2, "n_routed_experts": 4,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8,
    "moe_intermediate_size": 16, "num_key_value_heads": None,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
SECTION = {"hidden_size": 64}
# What is changed in a config that resolves, and what the error must name.
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "two dtypes": ({"torch_dtype": "float32", "dtype": "float16"}, "torch_dtype is 'float32' and dtype is 'float16'"),
    "two thetas": ({"rope_theta": "junk", "rope_parameters": YARN}, "rope_theta is 'junk' and rope_parameters.rope_"),
    "theta of a scaling": ({"rope_theta": 5.0, "rope_scaling": YARN}, "rope_theta is 5.0 and rope_scaling.rope_theta"),
    "two kinds of scaling": ({"rope_scaling": {**YARN, "type": "linear"}}, "rope_scaling.type is 'linear'"),
    "an encoder": ({"is_encoder_decoder": True}, "is_encoder_decoder is true"),
    "a window without a width": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": None},
        "use_sliding_window is true, but sliding_window gives no width",
    ),
    "layers of windows that are off": ({"model_type": "qwen2", "max_window_layers": "x"}, "max_window_layers is 'x'"),
    "the same without any effect": ({"model_type": "qwen3_moe", "max_window_layers": 1.5}, "max_window_layers is 1.5"),
    "heads of latents": ({**LATENT, "num_key_value_heads": 3}, "num_key_value_heads is 3, but its other values make"),
    "head_dim of latents": ({**LATENT, "head_dim": 7}, "head_dim is 7, but its other values make that 4 or 8 or 12"),
    "qk_head_dim": ({**LATENT, "qk_head_dim": [12]}, "qk_head_dim is [12], but its other values make that 12"),
    "groups that do not count": ({**LATENT, "n_group": "x"}, "n_group is 'x'"),
    "noise of training": ({"model_type": "mixtral", "router_jitter_noise": "x"}, "router_jitter_noise is 'x'"),
    "two activations": ({"model_type": "gemma2", "hidden_act": "junk"}, "hidden_act is 'junk'"),
    "a section": (
        {"model_type": "gemma3", "hidden_size": 32, "text_config": SECTION},
        "hidden_size is 32 and text_config.hidden_size is 64",
    ),
    "an idle length": ({"rope_parameters": {**YARN, "rope_type": "default"}, "original_max_position_embeddings": "x"},
                       "original_max_position_embeddings is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_named(name: str) -> None:
    changes, message = CONTRADICTIONS[name]
    values = {**BASE, "model_type": "llama", **changes}
    with pytest.raises(ValueError, match=r"config.json: ") as caught:
        families.resolve(values)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_keys_without_effect_are_of_their_kind(key: str) -> None:
    """Each of the kinds that it is not is refused; what it is changes nothing."""
    samples: dict[str, Any] = {
        "a text": "x", "true or false": False, "a number": 0.5, "a list": [], "an object": {},
        "a token id or a list of them": [1, 2],
    }  # fmt: skip
    plain = families.resolve({**BASE, "model_type": "llama"})[0]
    for kind, sample in samples.items():
        values = {**BASE, "model_type": "llama", key: copy.copy(sample)}
        if IS[HARMLESS[key]](sample):
            assert key == "model_type" or families.resolve(values)[0] == plain
        else:
            with pytest.raises(ValueError, match=r"config.json: ") as caught:
                families.resolve(values)
            assert key in str(caught.value), kind


def test_published_configs_contradict_nothing() -> None:
    """As far as their families are known."""
    known, refused = 0, []
    for path in sorted(shared("real-configs").glob("*/config.json")):
        values = json.loads(path.read_text())
        defaults = path.parent.name.startswith("transformers-")  # of a class, where nothing is stated
        if defaults or values.get("model_type") not in families.FAMILIES:
            continue
        try:
            families.resolve(values)
            known += 1
        except ValueError as error:
            refused.append(str(error))
    assert known > 40
    assert not [each for each in refused if any(word in each for word in ("mean the same", "other values", "expected"))]


def test_a_default_is_no_contradiction(tmp_path: Path) -> None:
    """transformers writes some things twice, and ones that follow from others."""
    same = {"rope_theta": 10000, "rope_parameters": {**YARN, "type": "yarn"}, "dtype": None, "torch_dtype": "bfloat16"}
    assert families.resolve({**BASE, "model_type": "llama", **same})[0].layers
    latent = {**LATENT, "num_key_value_heads": BASE["num_attention_heads"], "qk_head_dim": 12, "head_dim": 4}
    assert families.resolve({**BASE, **latent})[0].layers
