"""GGUF files of every architecture: a model with random parameters, written under llama.cpp's names by this test's own
table, is the same model when it is read from the file: its description, and every parameter.

The names and the changes to values are those of llama.cpp's converter, which `weights/gguf/test_fixtures.py` has real
files of for some architectures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minillm import config, families, hub
from minillm.families.gguf import architectures as gguf_architectures
from minillm.families.gguf.architectures import HYBRID
from minillm.loading import load
from minillm.model.decoder import Decoder
from minillm.spec import GatedDeltaNet
from minillm.weights.rules import rows
from tests.helpers import tiny
from tests.helpers.rows import EXPERTS, GROUPS, LATENT, LATENT_YARN, YARN
from tests.weights.gguf import made

FULL = {"rope_theta": 500.0}
MROPE = tiny.ROWS["qwen3_vl"][1]["rope_parameters"]
SQUARE = {"linear_key_head_dim": 12, "linear_value_head_dim": 12}
PHI3_LONG = tiny.ROWS["phi3-long"][1]
SHARED = {"shared_expert_intermediate_size": 36}
V3 = {**LATENT, **GROUPS, "n_shared_experts": 1, "norm_topk_prob": True}
V2 = {**LATENT, **GROUPS, "topk_method": "group_limited_greedy", "norm_topk_prob": False}
# Architecture, family, and what sets the configuration apart.
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {"rms_norm_eps": 1e-5}),
    "llama biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama linear": ("llama", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, **FULL}}),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 5}),
    "qwen2": ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("qwen2", "qwen2", {"rope_parameters": {**YARN, **FULL}}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {**EXPERTS, **SHARED}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "gemma": ("gemma", "gemma", {"head_dim": 12}),
    "gemma2": ("gemma2", "gemma2", {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 5}),
    "gemma3": ("gemma3", "gemma3_text", {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 5,
                                         "num_hidden_layers": 7}),
    "phi3": ("phi3", "phi3", {}),
    "phi3 long": ("phi3", "phi3", PHI3_LONG),
    "phi2": ("phi2", "phi", {"num_key_value_heads": 6}),
    "gptneox": ("gptneox", "gpt_neox", {"num_key_value_heads": None, "rotary_pct": 0.5}),
    "gptneox serial": ("gptneox", "gpt_neox", {"num_key_value_heads": None, "rotary_pct": 0.5,
                                               "use_parallel_residual": False}),
    "gpt-oss": ("gpt-oss", "gpt_oss", {"num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 12,
                                       "sliding_window": 6}),
    "qwen2vl": ("qwen2vl", "qwen2_vl", tiny.ROWS["qwen2_vl"][1]),
    "qwen3vl": ("qwen3vl", "qwen3_vl", {**tiny.ROWS["qwen3_vl"][1], "tie_word_embeddings": True}),
    "qwen3vlmoe": ("qwen3vlmoe", "qwen3_vl_moe", {**EXPERTS, "head_dim": 16, "rope_parameters": MROPE}),
    "qwen3next": ("qwen3next", "qwen3_next", {**tiny.ROWS["qwen3_next"][1], **SQUARE}),
    "qwen35": ("qwen35", "qwen3_5_text", {**tiny.ROWS["qwen3_5_text"][1], **SQUARE}),
    "qwen35 (as many heads)": ("qwen35", "qwen3_5_text", {**tiny.ROWS["qwen3_5_text"][1], **SQUARE,
                                                          "linear_num_value_heads": 2}),
    "qwen35moe": ("qwen35moe", "qwen3_5_moe_text", {**tiny.ROWS["qwen3_5_moe_text"][1], **SQUARE}),
    "seed_oss": ("seed_oss", "seed_oss", {"head_dim": 12}),
    "seed_oss biases": ("seed_oss", "seed_oss", tiny.ROWS["seed_oss-biases"][1]),
    "minimax-m2": ("minimax-m2", "minimax_m2", tiny.ROWS["minimax_m2"][1]),
    "olmo": ("olmo", "olmo", {"clip_qkv": 1.5}),
    "olmo2": ("olmo2", "olmo2", {}),
    "olmoe": ("olmoe", "olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    "deepseek": ("deepseek", "deepseek", tiny.ROWS["deepseek"][1]),
    "deepseek2 (v2)": ("deepseek2", "deepseek_v2", {**V2, "rope_parameters": {**LATENT_YARN, "mscale": 1.1}}),
    "deepseek2 (v3)": ("deepseek2", "deepseek_v3", {**V3, "rope_parameters": {**LATENT_YARN, "mscale": 1.1}}),
    "deepseek2 (lite)": ("deepseek2", "deepseek_v2", {**LATENT, "q_lora_rank": None, "norm_topk_prob": False}),
}  # fmt: skip
LAYER = {  # what a layer's rows are called
    "attention_norm.": "attn_norm.", "attention.qkv.weight[q]": "attn_q.weight",
    "attention.qkv.weight[k]": "attn_k.weight", "attention.qkv.weight[v]": "attn_v.weight",
    "attention.qkv.bias[q]": "attn_q.bias", "attention.qkv.bias[k]": "attn_k.bias",
    "attention.qkv.bias[v]": "attn_v.bias", "attention.out.": "attn_output.", "attention.q_norm.": "attn_q_norm.",
    "attention.k_norm.": "attn_k_norm.", "attention.sinks": "attn_sinks.weight", "ffn_norm.": "ffn_norm.",
    "ffn.gate_up.weight[gate]": "ffn_gate.weight", "ffn.gate_up.weight[up]": "ffn_up.weight",
    "ffn.gate_up.bias[gate]": "ffn_gate.bias", "ffn.gate_up.bias[up]": "ffn_up.bias", "ffn.down.": "ffn_down.",
    "ffn.up.": "ffn_up.", "ffn.router.weight": "ffn_gate_inp.weight", "ffn.router.logit_bias": "ffn_gate_inp.bias",
    "ffn.router.bias": "exp_probs_b.bias", "ffn.shared.gate_up.weight[gate]": "ffn_gate_shexp.weight",
    "ffn.shared.gate_up.weight[up]": "ffn_up_shexp.weight", "ffn.shared.down.weight": "ffn_down_shexp.weight",
    "ffn.shared_gate.weight": "ffn_gate_inp_shexp.weight", "post_attention_norm.": "post_attention_norm.",
    "post_ffn_norm.": "post_ffw_norm.",
}  # fmt: skip
LATENT_LAYER = {
    "attention.q.weight": "attn_q_b.weight", "attention.q_down.weight": "attn_q_a.weight",
    "attention.q_norm.weight": "attn_q_a_norm.weight", "attention.kv_down.weight": "attn_kv_a_mqa.weight",
    "attention.kv_norm.weight": "attn_kv_a_norm.weight", "attention.kv_up": "attn_kv_b.weight",
}  # fmt: skip
RECURRENT = {
    "attention.output.weight": "ssm_out.weight", "attention.norm": "ssm_norm.weight", "attention.decay": "ssm_a",
    "attention.step": "ssm_dt.bias", "attention.qkvz.weight[z]": "attn_gate.weight",
    "attention.ba.weight[a]": "ssm_alpha.weight", "attention.ba.weight[b]": "ssm_beta.weight",
    **{f"attention.qkvz.weight[{part}]": f"{part}/qkv" for part in "qkv"},
    **{f"attention.conv.weight[{part}]": f"{part}/conv" for part in "qkv"},
}  # fmt: skip
WINDOWED = ("gemma2", "gemma3", "gpt-oss")
OUTSIDE = {"embedding.weight": "token_embd.weight", "norm.": "output_norm.", "head.": "output."}


def called(names: dict[str, str], row: str) -> str:
    """The name in a file that a row of the table gives; longer beginnings first."""
    begins = max((each for each in names if row.startswith(each)), key=len)
    return names[begins] + row[len(begins) :] if begins.endswith(".") else names[begins]


def tensors(model: Decoder, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a file, but with experts one by one, under "stack/expert"."""
    names = {**LAYER, **(LATENT_LAYER if architecture == "deepseek2" else {})}
    if architecture in HYBRID:
        names |= RECURRENT
    if architecture in ("gpt-oss", "seed_oss", *HYBRID):
        names["ffn_norm."] = "post_attention_norm."
    attention = model.spec.attentions[0]
    heads, kv_heads = attention.num_heads, getattr(attention, "num_kv_heads", 1)
    for row, to in model.destinations().items():
        values = rows(model.get_parameter(to.parameter), to)
        if not row.startswith("layers."):
            name = called(OUTSIDE, row)
        else:
            _, i, inner = row.split(".", 2)
            if inner.startswith("ffn.experts."):
                part, bracket = inner.removeprefix("ffn.experts.").rstrip("]").split("[")
                e, _, which = bracket.partition(".")
                yield f"blk.{i}.ffn_{which or 'down'}_exps.{'bias' if 'bias' in part else 'weight'}/{e}", values
                continue
            if inner == "attention.q.weight" and getattr(attention, "q_rank", None) is None:
                inner = "attention.qkv.weight[q]"
            name = f"blk.{i}.{called(names, inner)}"
        if architecture in ("llama", "olmo", "deepseek") and (".attn_q." in name or ".attn_k." in name):
            count = heads if ".attn_q." in name else kv_heads
            values = values.view(count, 2, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        if architecture.startswith(("gemma", *HYBRID)) and name.endswith("norm.weight") and "ssm_norm" not in name:
            values = values + 1
        if name.endswith("ffn_gate_inp_shexp.weight"):
            values = values[0]
        yield name, values


def tiled(values: Tensor, net: GatedDeltaNet, axis: int = 0) -> Tensor:
    """The first v head of each k head, then the second of each."""
    by_head = values.unflatten(axis, (net.num_k_heads, net.num_v_heads // net.num_k_heads, -1))
    return by_head.transpose(axis, axis + 1).flatten(axis, axis + 2)


def recurrent(found: dict[str, Tensor], stem: str, net: GatedDeltaNet, older: bool) -> None:
    """As a converter has a recurrent layer."""
    found[f"{stem}ssm_a"] = -found[f"{stem}ssm_a"].exp()
    rows = {
        f"{stem}{name}": [found.pop(f"{stem}{part}/{of}") for part in "qkv"]
        for of, name in (("qkv", "attn_qkv.weight"), ("conv", "ssm_conv1d.weight"))
    }
    if older:
        b, a = (found.pop(f"{stem}ssm_{part}.weight").unflatten(0, (net.num_k_heads, -1)) for part in ("beta", "alpha"))
        found[f"{stem}ssm_ba.weight"] = torch.cat((b, a), dim=1).flatten(0, 1)
    else:
        for name in ("attn_gate.weight", "ssm_alpha.weight", "ssm_beta.weight", "ssm_a", "ssm_dt.bias"):
            found[stem + name] = tiled(found[stem + name], net)
        found[f"{stem}ssm_out.weight"] = tiled(found[f"{stem}ssm_out.weight"], net, axis=1)
    for name, (q, k, v) in rows.items():
        found[name] = torch.cat((q, k, v if older else tiled(v, net)))


def joined(model: Decoder, architecture: str) -> dict[str, Tensor]:
    """As a converter has them: experts stacked, fused matrices, latent keys apart and transposed."""
    found: dict[str, Tensor] = {}
    stacks: dict[str, list[Tensor]] = {}
    for name, values in tensors(model, architecture):
        stack, slash, _ = name.partition("/")
        one = not slash or name.endswith(("/qkv", "/conv"))
        (found.update({name: values}) if one else stacks.setdefault(stack, []).append(values))
    found |= {name: torch.stack(each) for name, each in stacks.items()}
    for i, layer in enumerate(model.spec.layers):
        stem = f"blk.{i}."
        if isinstance(layer.attention, GatedDeltaNet):
            recurrent(found, stem, layer.attention, architecture == "qwen3next")
        if architecture in ("phi3", "gptneox"):
            for kind in ("weight", "bias"):
                parts = [found.pop(f"{stem}attn_{part}.{kind}", None) for part in "qkv"]
                if parts[0] is not None:
                    found[f"{stem}attn_qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
        if architecture == "phi3":
            parts = [found.pop(f"{stem}ffn_{part}.weight") for part in ("gate", "up")]
            found[f"{stem}ffn_up.weight"] = torch.cat(parts)
        if architecture == "deepseek2":
            attention = layer.attention
            up = found.pop(f"{stem}attn_kv_b.weight").view(attention.num_heads, -1, attention.kv_rank)  # type: ignore[union-attr]
            keys, inner = up.split([attention.nope_dim, attention.v_dim], dim=1)  # type: ignore[union-attr]
            found |= {f"{stem}attn_k_b.weight": keys.transpose(1, 2), f"{stem}attn_v_b.weight": inner}
    return found


def metadata(architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """What a converter writes of a config."""
    rope = {**(values.get("rope_parameters") or {})}
    rope = rope.get("full_attention", rope)
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head, part = values.get("head_dim") or hidden // heads, rope.get("partial_rotary_factor")
    said: dict[str, Any] = {
        "context_length": values["max_position_embeddings"], "embedding_length": hidden,
        "block_count": values["num_hidden_layers"], "feed_forward_length": values.get("intermediate_size"),
        "attention.head_count": heads, "attention.head_count_kv": values.get("num_key_value_heads") or heads,
        "attention.key_length": head, "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": values.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": values.get("layer_norm_eps"),
        "rope.freq_base": rope.get("rope_theta") or values.get("rope_theta"), "vocab_size": values["vocab_size"],
        "rope.dimension_count": int(head * (part or values.get("rotary_pct") or 1)),
        "expert_count": values.get("num_experts") or values.get("num_local_experts") or values.get("n_routed_experts"),
        "expert_used_count": values.get("num_experts_per_tok"),
        "expert_feed_forward_length": values.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": values.get("shared_expert_intermediate_size"),
        "attn_logit_softcapping": values.get("attn_logit_softcapping"),
        "final_logit_softcapping": values.get("final_logit_softcapping"),
        "use_parallel_residual": values.get("use_parallel_residual"),
        "attention.clamp_kqv": values.get("clip_qkv"),
        "attention.sliding_window": values.get("sliding_window") if architecture in WINDOWED else None,
    }  # fmt: skip
    if architecture.startswith("deepseek"):
        said["leading_dense_block_count"] = values["first_k_dense_replace"]
        said["expert_shared_count"] = values["n_shared_experts"]
        said["expert_weights_norm"] = values["norm_topk_prob"]
    if architecture in ("gpt-oss", "minimax-m2"):
        said["expert_feed_forward_length"] = values["intermediate_size"]
    if rope.get("rope_type") in ("linear", "yarn"):
        said["rope.scaling.type"], said["rope.scaling.factor"] = rope["rope_type"], rope["factor"]
        said["rope.scaling.original_context_length"] = rope.get("original_max_position_embeddings")
        said["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"] if "mscale_all_dim" in rope else None
    if rope.get("rope_type") == "longrope":
        said["rope.scaling.original_context_length"] = values["original_max_position_embeddings"]
        said["rope.scaling.attn_factor"] = rope.get("attention_factor")
    if architecture == "deepseek2":
        nope, turned, inner = (values[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        rank = values["kv_lora_rank"]
        said |= {
            "attention.head_count_kv": 1, "attention.key_length": rank + turned, "attention.value_length": rank,
            "attention.key_length_mla": nope + turned, "attention.value_length_mla": inner,
            "attention.q_lora_rank": values["q_lora_rank"], "attention.kv_lora_rank": rank,
            "rope.dimension_count": turned, "expert_weights_scale": values["routed_scaling_factor"],
            "expert_group_count": values.get("n_group"), "expert_group_used_count": values.get("topk_group"),
        }  # fmt: skip
    if architecture in HYBRID:
        said |= {
            "ssm.conv_kernel": values["linear_conv_kernel_dim"], "ssm.state_size": values["linear_key_head_dim"],
            "ssm.group_count": values["linear_num_key_heads"], "ssm.time_step_rank": values["linear_num_value_heads"],
            "ssm.inner_size": values["linear_value_head_dim"] * values["linear_num_value_heads"],
            "full_attention_interval": values["layer_types"].index("full_attention") + 1,
            "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 0.25)),
        }  # fmt: skip
    if "mrope_section" in rope:
        said["rope.dimension_sections"] = [*rope["mrope_section"], 0]
    named = {f"{architecture}.{key}": value for key, value in said.items() if value is not None}
    return {"general.architecture": architecture, "tokenizer.ggml.model": "none", **named}


def written(path: Path, pairs: dict[str, Any], named: dict[str, Tensor]) -> None:
    entries = {
        name: (list(each.shape[::-1]), 0, each.contiguous().float().numpy().astype("<f4").tobytes())
        for name, each in named.items()
    }
    path.write_bytes(made.file(pairs, entries))


def converted(folder: Path, architecture: str, file: Path) -> Decoder:
    model = load(folder, "float32", "cpu", "reference").model
    values = json.loads((folder / "config.json").read_text())
    values |= values.get("text_config", {})
    named = joined(model, architecture)
    rope = values.get("rope_parameters") or {}
    for kind in ("short", "long") if rope.get("rope_type") == "longrope" else ():
        named[f"rope_factors_{kind}.weight"] = torch.tensor(rope[f"{kind}_factor"])
    written(file, metadata(architecture, values), named)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_model_from_a_file(variant: str, tmp_path: Path) -> None:
    architecture, family, changes = VARIANTS[variant]
    (tmp_path / "folder").mkdir()
    tiny.save(tmp_path / "folder", family, changes)
    model = converted(tmp_path / "folder", architecture, tmp_path / "model.gguf")
    other = load(tmp_path / "model.gguf", "float32", "cpu", "reference").model
    assert other.spec == model.spec
    rounded = architecture.startswith(("gemma", *HYBRID))
    theirs = other.state_dict()
    for name, values in model.state_dict().items():
        if (
            rounded and name.endswith("norm.weight") and "attention.norm" not in name
        ):  # 1 is added to them and taken away
            assert (values - theirs[name]).abs().max() <= 2**-23
        elif name.endswith("decay"):  # the logarithm of an exponential
            assert (values - theirs[name]).abs().max() <= 2**-22 * max(1.0, float(values.abs().max()))
        else:
            assert torch.equal(values, theirs[name]), name


def test_every_architecture_is_here() -> None:
    assert {each[0] for each in VARIANTS.values()} == set(gguf_architectures.ARCHITECTURES)


def test_factors_of_frequencies(tmp_path: Path) -> None:
    """A tensor of them divides what the base gives, at every length: Llama 3's scaling, as a converter computes it."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32, "rope_theta": 500.0}  # fmt: skip
    tiny.save(tmp_path / "folder", "llama", {"rope_parameters": scaling, "head_dim": 16})
    model = load(tmp_path / "folder", "float32", "cpu", "reference").model
    wave = 2 * np.pi * 500.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((32 / wave - 1.0) / 3.0, 0, 1)
    factors = 1 / ((1 - smooth) / 8.0 + smooth)
    values = json.loads((tmp_path / "folder/config.json").read_text())
    named = {**joined(model, "llama"), "rope_freqs.weight": torch.tensor(factors)}
    written(tmp_path / "model.gguf", metadata("llama", values), named)
    other = load(tmp_path / "model.gguf", "float32", "cpu", "reference").model
    tokens = tiny.tokens(97, 1, 100)
    with torch.no_grad():
        exact, found = model(tokens), other(tokens)
    assert (exact - found).abs().max() <= 2e-5 * exact.abs().max()


ODD: list[Any] = ["text", ["a", "b"], [1, 2], [], 0, -1, 2**31, float("nan"), float("inf"), 1e30, True]


@pytest.mark.parametrize("variant", ["llama linear", "mixtral", "gemma3", "phi3 long", "gpt-oss", "deepseek2 (v3)"])
def test_odd_values(variant: str, tmp_path: Path) -> None:
    """Whatever stands for a key: a config that its family reads, or one line."""
    architecture, family, changes = VARIANTS[variant]
    defaults = families.FAMILIES[family].DEFAULTS
    pairs = metadata(architecture, {**defaults, **tiny.BASE, **changes, "moe_intermediate_size": 8})
    named = {"token_embd.weight": torch.zeros(97, 48), "blk.1.exp_probs_b.bias": torch.zeros(8)}
    named |= {f"rope_factors_{kind}.weight": torch.ones(4) for kind in ("short", "long") if variant == "phi3 long"}
    written(tmp_path / "model.gguf", pairs, named)
    families.resolve(config.read(hub.resolve(tmp_path / "model.gguf")))
    for key in pairs:
        for odd in ODD:
            written(tmp_path / "model.gguf", {**pairs, key: odd}, named)
            try:
                families.resolve(config.read(hub.resolve(tmp_path / "model.gguf")))
            except ValueError as error:
                refusal = str(error)
                assert "\n" not in refusal


def test_what_is_refused_or_told(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(saved, "float32", "cpu", "reference").model
    values = json.loads((saved / "config.json").read_text())
    pairs, named, path = metadata("llama", values), joined(model, "llama"), tmp_path / "model.gguf"

    def refused(*words: str, drop: str = "", **changes: Any) -> None:
        given = {**pairs, **{f"llama.{key}": value for key, value in changes.items()}}
        written(path, {key: value for key, value in given.items() if key != f"llama.{drop}"}, named)
        with pytest.raises(ValueError, match=r"model\.gguf") as caught:
            load(path)
        assert all(word in str(caught.value) for word in words), caught.value

    refused("embedding_length is missing", drop="embedding_length")
    refused("differs from layer to layer", **{"attention.head_count_kv": [2, 1, 2]})
    refused("block_count is 'three'", block_count="three")
    refused("block_count is a list", block_count=["a", "b"])
    refused("'xpos'", **{"rope.scaling.type": "xpos"})
    refused("tensors of another shape", feed_forward_length=88)
    pairs["general.architecture"] = "mamba"
    refused("'mamba'", "qwen3moe")
    pairs["general.architecture"] = "llama"
    written(path, {**pairs, "llama.residual_scale": 0.5}, named)
    capsys.readouterr()
    load(path, "float32")
    said = capsys.readouterr().err
    assert "not understood and ignored: llama.residual_scale" in said
    assert "tokenizer.ggml.model is 'none'" in said
    named["blk.0.attn_gate.weight"] = torch.zeros(4, 4)
    refused("no rule claims: blk.0.attn_gate.weight")
