"""A model as llama.cpp's converter writes it: names, changes to values, and what it says of a config. A table of its
own, next to that of `minillm/families/gguf/`, which is held against it in both directions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.families.gguf.architectures import HYBRID
from minillm.loading import load
from minillm.model.decoder import Decoder
from minillm.spec import GatedConv, GatedDeltaNet, SelectiveScan, StateSpace
from minillm.weights.rules import rows
from tests.families.gguf import state_converter
from tests.families.gguf.stated import metadata
from tests.weights.gguf import made

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
    "post_ffn_norm.": "post_ffw_norm.", "per_layer.gate.": "inp_gate.", "per_layer.out.": "proj.",
    "per_layer.norm.": "post_norm.", "scale": "layer_output_scale.weight",
    "streams.scale": "altup_correct_scale.weight", "streams.correct.": "altup_correct_coef.",
    "streams.predict.": "altup_predict_coef.", "streams.router.": "altup_router.",
    "streams.norm.": "altup_router_norm.",
    "low_rank.down.": "laurel_l.", "low_rank.up.": "laurel_r.", "low_rank.norm.": "laurel_post_norm.",
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
BESIDE = {
    "ffn.shared_norm.": "ffn_norm.", "ffn.shared_post_norm.": "post_ffw_norm_1.", "ffn.norm.": "pre_ffw_norm_2.",
    "ffn.post_norm.": "post_ffw_norm_2.", "ffn.router.input_scale": "ffn_gate_inp.scale",
    "ffn.router.expert_scale": "ffn_down_exps.scale", "ffn.shared.gate_up.weight[gate]": "ffn_gate.weight",
    "ffn.shared.gate_up.weight[up]": "ffn_up.weight", "ffn.shared.down.weight": "ffn_down.weight",
}  # fmt: skip
OUTSIDE = {
    "embedding.weight": "token_embd.weight", "norm.": "output_norm.", "head.": "output.",
    "per_layer.embedding.": "per_layer_token_embd.", "per_layer.model.": "per_layer_model_proj.",
    "per_layer.norm.": "per_layer_proj_norm.", "positions.": "position_embd.", "embedding_norm.": "token_embd_norm.",
}  # fmt: skip
FUSED_QKV = ("phi3", "gptneox", "chatglm", "qwen", "falcon", "gpt2", "starcoder", "bloom", "mpt", "dbrx")
FUSED_MLP = ("phi3", "chatglm", "glm4")
# Whose pairs are neighbours.
TURNED = ("llama", "mistral3", "baichuan", "internlm2", "olmo", "deepseek", "smollm3", "granite", "granitemoe",
          "arcee", "granitehybrid", "minicpm")  # fmt: skip
SHIFTED = ("gemma", "gemma2", "gemma3", "nemotron", *HYBRID)
STILL = 1e30
SHORT = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
         "n_positions": "max_position_embeddings", "n_inner": "intermediate_size"}  # fmt: skip


def called(names: dict[str, str], row: str) -> str:
    """The name in a file that a row of the table gives; longer beginnings first."""
    begins = max((each for each in names if row.startswith(each)), key=len)
    return names[begins] + row[len(begins) :] if begins.endswith(".") else names[begins]


def tensors(model: Decoder, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a file, but with experts one by one, under "stack/expert"."""
    names = {**LAYER, **(LATENT_LAYER if architecture == "deepseek2" else {})}
    names |= RECURRENT if architecture in HYBRID else BESIDE if architecture == "gemma4" else {}
    if architecture in ("gpt-oss", "seed_oss", "glm4moe", *HYBRID):
        names["ffn_norm."] = "post_attention_norm."
    if architecture == "dbrx":
        names["ffn_norm."] = "attn_output_norm."
    if architecture in state_converter.ARCHITECTURES:
        names |= state_converter.names(architecture)
    if architecture == "hy_v3":
        names["ffn.router.bias"] = "exp_probs_b"
    attention: Any = next(iter(model.spec.attentions), None)
    heads, kv_heads = getattr(attention, "num_heads", 1), getattr(attention, "num_kv_heads", 1)
    for row, to in model.destinations().items():
        values = rows(model.get_parameter(to.parameter), to)
        if row.startswith("streams."):
            _, end, i, _ = row.split(".")
            yield f"{'altup_proj' if end == 'begin' else 'altup_unembd_proj'}.weight/{i}", values
            continue
        if not row.startswith("layers."):
            name = called({**OUTSIDE, "norm.": "token_embd_norm."} if "lfm2" in architecture else OUTSIDE, row)
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
        if architecture in TURNED and (".attn_q." in name or ".attn_k." in name):
            count = heads if ".attn_q." in name else kv_heads
            values = values.view(count, 2, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        if architecture in SHIFTED and name.endswith("norm.weight") and "ssm_norm" not in name:
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
        one = not slash or name.endswith(("/qkv", "/conv", "/in", "/bias", "/made"))
        (found.update({name: values}) if one else stacks.setdefault(stack, []).append(values))
    found |= {name: torch.stack(each) for name, each in stacks.items()}
    for i, layer in enumerate(model.spec.layers):
        stem = f"blk.{i}."
        if isinstance(layer.attention, GatedConv):
            state_converter.convolved(found, stem)
        if isinstance(layer.attention, StateSpace):
            state_converter.scanned(found, stem, layer.attention)
        if isinstance(layer.attention, SelectiveScan):
            state_converter.by_channel(found, stem)
        if isinstance(layer.attention, GatedDeltaNet):
            recurrent(found, stem, layer.attention, architecture == "qwen3next")
        if architecture in FUSED_QKV:
            for kind in ("weight", "bias"):
                parts = [found.pop(f"{stem}attn_{part}.{kind}", None) for part in "qkv"]
                if parts[0] is not None:
                    found[f"{stem}attn_qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
        if architecture in FUSED_MLP:
            parts = [found.pop(f"{stem}ffn_{part}.weight") for part in ("gate", "up")]
            found[f"{stem}ffn_up.weight"] = torch.cat(parts)
        if architecture == "deepseek2":
            attention = layer.attention
            up = found.pop(f"{stem}attn_kv_b.weight").view(attention.num_heads, -1, attention.kv_rank)  # type: ignore[union-attr]
            keys, inner = up.split([attention.nope_dim, attention.v_dim], dim=1)  # type: ignore[union-attr]
            found |= {f"{stem}attn_k_b.weight": keys.transpose(1, 2), f"{stem}attn_v_b.weight": inner}
    if architecture == "gemma3n":
        found |= unused(model)
    if architecture == "gemma4":
        full = next(each for each in model.spec.attentions if each.window is None)
        turns = int(0.5 * full.head_dim // 2)  # type: ignore[union-attr]
        found["rope_freqs.weight"] = torch.tensor([1.0] * turns + [STILL] * (full.head_dim // 2 - turns))  # type: ignore[union-attr]
    return found


def unused(model: Decoder) -> dict[str, Tensor]:
    """Keys and values that llama.cpp wants of layers which use those of others."""
    found = {}
    for i, each in enumerate(model.spec.attentions):
        if each.kv.layer is not None:
            width = each.num_kv_heads * each.head_dim  # type: ignore[union-attr]
            found |= {f"blk.{i}.attn_{part}.weight": torch.zeros(width, model.spec.hidden_size) for part in "kv"}
            found[f"blk.{i}.attn_k_norm.weight"] = torch.zeros(each.head_dim)  # type: ignore[union-attr]
    return found


def written(path: Path, pairs: dict[str, Any], named: dict[str, Tensor]) -> None:
    entries = {
        name: (list(each.shape[::-1]), 0, each.contiguous().float().numpy().astype("<f4").tobytes())
        for name, each in named.items()
    }
    path.write_bytes(made.file(pairs, entries))


def said(folder: Path) -> dict[str, Any]:
    """The config of a folder in the words of transformers, which some families' own oracle has."""
    oracle = folder / "oracle/config.json"
    values = json.loads((oracle if oracle.exists() else folder / "config.json").read_text())
    short = {name: values[key] for key, name in SHORT.items() if values.get(key) is not None}
    return {**values, **short, **values.get("text_config", {})}


def converted(folder: Path, architecture: str, file: Path) -> Decoder:
    model = load(folder, "float32", "cpu", "reference").model
    values = said(folder)
    named = joined(model, architecture)
    rope = values.get("rope_parameters") or {}
    for kind in ("short", "long") if rope.get("rope_type") == "longrope" else ():
        named[f"rope_factors_{kind}.weight"] = torch.tensor(rope[f"{kind}_factor"])
    written(file, metadata(architecture, values), named)
    return model
