"""config.json: impossible values, other schemes and unknown keys, each met with one clear sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import minillm
from minillm.config import read
from minillm.families import resolve
from minillm.report import examine
from tests.conftest import shared
from tests.helpers import tiny
from tests.helpers.tiny import refused


@pytest.mark.parametrize(
    ("section", "scheme"),
    [
        ({"quant_method": "exl2", "bits": 4.0}, "exl2 (EXL2 of ExLlamaV2)"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "quark"}, "use a GPTQ, AWQ"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "fp8"),
    ],
)
def test_a_quantised_checkpoint_is_named(folder: Path, section: dict, scheme: str) -> None:
    tiny.edit_config(folder, quantization_config=section)
    refused(folder, scheme, "not supported yet")


@pytest.mark.parametrize(
    ("section", "scheme"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes nf4"),
        ({"bits": 4, "group_size": 64}, "mlx"),
    ],
)
def test_plain_weights_are_read_whatever_the_config_says(
    folder: Path, section: dict, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after merging an adapter, where the config of the quantised base stays."""
    tiny.edit_config(folder, quantization_config=section)
    minillm.load(folder)
    assert f"quantization_config says {scheme}, but no tensor is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "unheard"},
            "model_type 'unheard' is not supported; supported are llama, mistral, qwen2, qwen3",
        ),
        ({"model_type": "rwkv7"}, "model_type 'rwkv7' is not supported: its layers are a recurrence of its own, and"),
        ({"model_type": ..., "architectures": ...}, "model_type None"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 10**9}, "expected an integer from 1 to 4096"),
        ({"num_key_value_heads": 4}, "6 attention heads are no multiple of 4"),
        ({"hidden_size": 50, "head_dim": None}, "hidden_size 50"),
        ({"head_dim": 7}, "positions of 7 values per head"),
        ({"vocab_size": 2**40}, "vocab_size is"),
        (
            {
                "vocab_size": 2**20,
                "hidden_size": 2**20,
                "num_attention_heads": 2**20,
                "head_dim": 2**20,
                "num_key_value_heads": 1,
                "intermediate_size": 2**20,
            },
            "do not fit config.json",
        ),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', supported are silu"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral', supported are default, linear"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]"),
        ({"rope_parameters": {"rope_type": ["x"]}}, "rope_type is ['x']"),
        ({"rope_parameters": {"type": {}}}, "rope_type is {}"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "mscale": "a"}}, "mscale is 'a'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "truncate": "no"}}, "truncate is 'no'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 1e308}}, "rope factor is 1e+308"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "rope_theta": 1.0}}, "rope_theta is 1.0"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 1e-320}}, "rope factor is 1e-320"),
        ({"rms_norm_eps": 10**400}, "a number of 401 digits"),
        ({"num_hidden_layers": 10**400}, "a number of"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        ({"eos_token_id": [[1]]}, "eos_token_id"),
        ({"eos_token_id": {}}, "eos_token_id"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope factor is None"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ],
)
def test_impossible_configs(folder: Path, changes: dict, message: str) -> None:
    tiny.edit_config(folder, **changes)
    refused(folder, message)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "original_max_position_embeddings": 64},
        {"rope_type": "default", "partial_rotary_factor": 1.0},
        {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 64},
        {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64},
        {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64.0, "finetuned": False},
    ],
    ids=lambda rope: "-".join(rope),
)
def test_rotary_keys_that_change_nothing_are_taken(
    folder: Path, rope: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.edit_config(folder, rope_parameters=..., rope_scaling=rope)
    assert minillm.load(folder).spec.layers[0].attention.rope.theta == 10000.0
    assert capsys.readouterr().err == ""


def test_rotary_keys_of_another_kind_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.edit_config(folder, rope_parameters={"rope_type": "linear", "factor": 2.0, "beta_fast": 3})
    minillm.load(folder)
    assert "not understood and ignored: rope_scaling.beta_fast" in capsys.readouterr().err


@pytest.mark.parametrize("off", [None, False, 0])
def test_a_window_can_be_off_in_three_ways(off: object) -> None:
    spec, _, _ = resolve({"model_type": "mistral", "sliding_window": off})
    assert spec.layers[0].attention.window is None
    spec, _, _ = resolve({"model_type": "qwen2", "sliding_window": off, "max_window_layers": None})
    assert spec.layers[0].attention.window is None


def test_a_load_that_fails_says_one_thing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.edit_config(folder, another=1)
    (folder / "model.safetensors").write_bytes(b"")
    refused(folder, "damaged")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "null", "[1]", "{", "[" * 100_000, '{"a": \xff}'])
def test_a_config_that_is_no_json_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="latin-1")
    refused(folder, "config.json")


def test_unknown_keys_are_reported_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.edit_config(folder, attn_logit_softcapping=50.0, another=0, nothing=None, off=False)
    minillm.load(folder)
    assert capsys.readouterr().err == (
        "minillm: config.json keys not understood and ignored: another, attn_logit_softcapping\n"
    )


@pytest.mark.parametrize("whole", [True, False])
def test_a_config_that_names_its_class_alone(whole: bool) -> None:
    """Published so with code of its own."""
    folder = shared("real-configs/openbmb__MiniCPM3-4B")
    report = examine.explain(folder if whole else folder / "config.json")
    assert report["model_type"] == "minicpm3"
    assert report["parameter_count"] == pytest.approx(4.07e9, rel=0.01)


SCOUT, MUSE = "meta-llama__Llama-4-Scout-17B-16E-Instruct", "meta-models__Muse-Glimmer-30B"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (SCOUT, {"moe_layers": [99]}, "moe_layers is [99], expected numbers of layers below 48"),
        (SCOUT, {"moe_layers": [-1]}, "moe_layers is [-1]"),
        (MUSE, {"layer_rope_theta": ["a"] * 52}, "layer_rope_theta is 'a'"),
        ("poolside__Laguna-XS.2-FP8", {"gating": []}, "gating is []"),
        ("nvidia__MiniMax-M3-NVFP4", {"sparse_attention_config": 16}, "sparse_attention_config is 16"),
    ],
)
def test_impossible_values_of_a_family(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(changed(name, changes))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"no_rope_layers": []}, {}),
        ({"attn_temperature_tuning": 4}, {"attn_temperature_tuning": True}),
        ({"attn_temperature_tuning": 0}, {"attn_temperature_tuning": False}),
        ({"attention_chunk_size": 0}, {"attention_chunk_size": None}),
    ],
)
def test_other_words_for_the_same(changes: dict, same: dict) -> None:
    """As transformers understands them; the first files of Llama 4 have an empty list and a 4."""
    assert resolve(changed(SCOUT, changes))[0] == resolve(changed(SCOUT, same))[0]


def changed(name: str, changes: dict) -> dict:
    values = read(shared(f"real-configs/{name}"))
    section = values.get("text_config")
    return {**values, "text_config": {**section, **changes}} if section else {**values, **changes}
