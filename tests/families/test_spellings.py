"""What published files say in words of their own, and the sizes of a family that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from minillm.families import resolve
from minillm.spec import Decoder
from tests.helpers.rows import BASE, ROWS
from tests.helpers.sizes import EXPERTS, FINE, LATENT

TEXT = {key: BASE[key] for key in BASE if not key.endswith("_token_id")}
MROPE = {"type": "mrope", "mrope_section": [2, 1, 1]}


def spec(family: str, **values: Any) -> Decoder:
    return resolve({**TEXT, "model_type": family, **values})[0]


def nested(family: str, kind: str, **outer: Any) -> Decoder:
    return resolve({"model_type": family, "text_config": {**TEXT, "model_type": kind}, **outer})[0]


def test_a_text_model_with_or_without_a_section() -> None:
    """Positions of images are plain ones for text, a key of images is no key of the text."""
    flat = spec("qwen2_vl", rope_scaling=MROPE, vision_config={"depth": 2}, image_token_id=5)
    assert flat == nested("qwen2_vl", "qwen2_vl_text", rope_parameters={"rope_type": "default"})
    assert flat.layers[0].attention.rope.scaling is None


def test_the_outer_word_on_a_tied_head_counts() -> None:
    made = {"model_type": "qwen3_vl", "text_config": {**TEXT, "tie_word_embeddings": True}}
    assert resolve(made)[0].tied
    assert not resolve({**made, "tie_word_embeddings": False})[0].tied


def test_names_that_mean_the_same() -> None:
    assert spec("internlm3", qkv_bias=True) == spec("internlm3", attention_bias=True)
    assert spec("internlm3", bias=True) == spec("internlm3", mlp_bias=True)
    turned = spec("minimax_m2", num_local_experts=8, rotary_dim=64)
    assert turned == spec("minimax_m2", num_local_experts=8, partial_rotary_factor=0.5)
    assert turned.layers[0].attention.rope.dim == 64
    sizes = {**LATENT, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2}
    kinds = {**sizes, "first_k_dense_replace": 0, "mlp_layer_types": ["dense", "dense", "sparse"]}
    assert spec("glm4_moe_lite", **sizes) == spec("glm4_moe_lite", **kinds)
    mixed = {**ROWS["ernie4_5_moe"][1], "moe_layer_start_index": 0}
    assert spec("ernie4_5_moe", **mixed, moe_layer_end_index=-1) == spec("ernie4_5_moe", **mixed, moe_layer_end_index=2)


def test_sizes_by_their_short_names() -> None:
    """Whichever of two names has a value counts."""
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    names |= {"n_positions": "max_position_embeddings", "n_inner": "intermediate_size"}
    sizes = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    short = {**sizes, **dict.fromkeys(names.values()), **{key: TEXT[name] for key, name in names.items()}}
    long, given = resolve({**sizes, "model_type": "gptj", "rotary_dim": 6}), {"model_type": "gptj", "rotary_dim": 6}
    assert resolve({**short, **given})[0] == long[0]


def test_windows_that_are_not_listed() -> None:
    """What transformers' classes fill in: dots.llm1's from max_window_layers on, Mellum's with a base of their own."""
    windows = [layer.attention.window for layer in spec("dots1", **FINE, sliding_window=5, max_window_layers=1).layers]
    assert windows == [None, 5, 5]
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    layers = spec("mellum", **EXPERTS, layer_types=kinds).layers
    assert [each.attention.rope.theta for each in layers] == [10000.0, 500000.0, 500000.0]


def test_a_context_that_ends_early() -> None:
    assert spec("qwen", seq_length=64).context == 64
    assert spec("qwen", seq_length=4096).context == TEXT["max_position_embeddings"]


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another text model": ("mistral3", {"text_config": {"model_type": "mixtral"}}, "is 'mixtral'; mistral3 is"),
    "too short a list": ("openelm", {"num_transformer_layers": 2, "num_query_heads": [4]}, "each of the 2 layers"),
    "another norm": ("openelm", {"normalize_qk_projections": False}, "knows True only"),
    "halves that turn": ("deepseek_v32", {"rope_interleave": False}, "knows True only"),
    "weights that stay as they are": ("qwen3_vl_moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
    "dense layers": ("solar_open", {"first_k_dense_replace": 1}, "first_k_dense_replace is 1; this family's code has"),
    "parts of heads": ("solar_open", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; this family turns"),
    "two parts of heads": ("minimax_m2", {"rotary_dim": 64, "partial_rotary_factor": 0.25}, "rotary_dim 64 of 16"),
    "no norms": ("minimax_m2", {"use_qk_norm": False}, "use_qk_norm is False; this family's code knows True only"),
    "a shared expert": ("minimax_m2", {"shared_intermediate_size": 8}, "shared_intermediate_size is 8"),
    "other attention": ("minimax_m2", {"attn_type_list": [1, 0, 1]}, "attn_type_list has another number than 1"),
    "kinds of layers": ("hy_v3", {"mlp_layer_types": ["dense"] * 2}, "for each of the 3 layers"),
    "an unknown kind": ("mellum", {"mlp_layer_types": ["dense", "x", "sparse"]}, "must list dense or sparse"),
    "biases of experts": ("hy_v3", {"mlp_bias": True}, "mlp_bias is true"),
    "biases of a mixture": ("ernie4_5_moe", {"use_bias": True}, "use_bias is true"),
    "a floor for the sum": ("ernie4_5_moe", {"moe_norm_min": 0.5}, "moe_norm_min is 0.5, expected"),
    "too many shared": ("ernie4_5_moe", {"moe_num_shared_experts": 99}, "moe_num_shared_experts is 99, expected"),
    "no layer": ("ernie4_5_moe", {"moe_layer_end_index": -2}, "moe_layer_end_index is -2, expected the number"),
    "groups of heads": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 4}, "no multiple of num_kv_heads"),
    "a head each": ("falcon", {"multi_query": False}, "multi_query is False; this family's code knows True only"),
    "ALiBi": ("falcon", {"alibi": True}, "alibi is True; this family's code knows False only"),
    "other positions": ("mpt", {"attn_config": {"alibi": False}}, "alibi is False; this family's code knows True only"),
    "other experts": ("hunyuan_v1_moe", {"moe_intermediate_size": [20, 21]}, "moe_intermediate_size is [20, 21]"),
    "biases of attention": ("cwm", {"attention_bias": True}, "attention_bias is true; this family's attention has"),
    "two biases": ("internlm3", {"bias": True, "mlp_bias": False}, "bias is True and mlp_bias is False"),
    "more than a head": ("gptj", {"rotary_dim": 10}, "rotary_dim is 10, expected an even number of a head's 8 values"),
    "two names of a size": ("gptj", {"n_embd": 40}, "n_embd is 40 and hidden_size is 48; they mean the same"),
    "odd parts": ("qwen", {"intermediate_size": 81}, "intermediate_size 81 is that of two equal parts"),
    "biases everywhere": ("qwen", {"no_bias": False}, "no_bias is False; this family's code knows True only"),
    "a norm elsewhere": ("chatglm", {"post_layer_norm": False}, "post_layer_norm is False; this family's code knows"),
    "uneven groups": ("chatglm", {"multi_query_group_num": 4}, "6 must be a multiple of multi_query_group_num 4"),
    "positions of images": ("mimo", {"use_mrope": True}, "use_mrope is True; of this family False works"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str) -> None:
    family, values, message = REFUSALS[name]
    with pytest.raises(ValueError, match=r"^config.json: [^\n]*$") as caught:
        spec(family, **{**ROWS.get(family, ("", {}))[1], **values})
    assert message in str(caught.value)


def test_positions_of_another_kind() -> None:
    """Baichuan's 13B models state the length of a text under this name alone."""
    sizes = {key: TEXT[key] for key in TEXT if key != "max_position_embeddings"}
    decoder, _, _ = resolve({**sizes, "model_type": "baichuan", "model_max_length": 77})
    assert (decoder.context, decoder.ropes) == (77, [])
    assert all(attention.scores.slopes for attention in decoder.attentions)
