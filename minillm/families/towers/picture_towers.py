"""Two towers that several families put in front of a decoder: SigLIP's, and Pixtral's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config, number
from minillm.families.shared import common
from minillm.families.towers import towers
from minillm.guard.screen import shown
from minillm.spec import GQA, MLP, Activation, Decoder, GatedMLP, Layer, LayerNorm, Norm, Rope
from minillm.spec.media import Encoder, Patches, Projector, Table

SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
PIXTRAL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "head_dim": None,
    "image_size": 1024,
    "patch_size": 16,
    "hidden_act": "gelu",
    "rope_theta": 10000.0,
    "rope_parameters": None,
}


def activation(values: Mapping[str, Any]) -> Activation:
    """What stands between the products of a projector."""
    stated = values.get("projector_hidden_act", "gelu")
    if not isinstance(stated, str) or stated not in common.ACTIVATIONS:
        known = ", ".join(common.ACTIVATIONS)
        raise ValueError(f"config.json: projector_hidden_act is {shown(stated)}, supported are {known}")
    found: Activation = common.ACTIVATIONS[stated]  # type: ignore[assignment]
    return found


def flag(values: Mapping[str, Any], key: str, usual: bool) -> bool:
    """A value beside the sections."""
    stated = values.get(key, usual)
    if not isinstance(stated, bool):
        raise ValueError(f"config.json: {key} is {shown(stated)}, expected true or false")
    return stated


def qkv(pattern: str, target: str, leaves: tuple[str, ...] = ("weight", "bias")) -> dict[str, str]:
    """Three products that are one here."""
    return {
        f"{pattern}.{part}_proj.{leaf}": f"{target}.qkv.{leaf}[{part}]" for part in ("q", "k", "v") for leaf in leaves
    }


def siglip(values: Mapping[str, Any], decoder: Decoder, tokens: int) -> tuple[Encoder, Config]:
    """SigLIP (Zhai et al., arXiv:2303.15343) over pictures of one size; `tokens` embeddings are means over squares of
    its patches, behind which comes one product (Gemma 3, arXiv:2503.19786)."""
    config = towers.section(values, "vision_config", SIGLIP)
    config.without_effect(["vision_use_head", "attention_dropout", "num_image_tokens", "projection_dim"])
    size, heads = config.size("hidden_size"), config.size("num_attention_heads", 1024)
    count, eps = config.size("num_hidden_layers", common.MAX_LAYERS), config.number("layer_norm_eps")
    side, per_side = config.size("image_size", 2**13) // config.size("patch_size", 512), round(tokens**0.5)
    if per_side**2 != tokens or not side or side % per_side:
        raise ValueError(f"config.json: mm_tokens_per_image {tokens} is no square that {side} by {side} patches make")
    if size % heads:
        raise ValueError(f"config.json: a tower of {size} values and {heads} heads, which do not divide them")
    merge, norm = side // per_side, LayerNorm(eps)
    attention = GQA(heads, heads, size // heads, None, qkv_bias=True, out_bias=True)
    ffn = MLP(config.size("intermediate_size"), config.choice("hidden_act", towers.ACTIVATIONS), bias=True)
    of_gathered = Norm(eps, offset=1.0, cast="after_weight")
    projector = Projector(merge**2, (decoder.hidden_size,), "mean", of_gathered, "gathered", bias=False)
    embed, table = Patches(config.size("patch_size", 512), merge, bias=True), Table(side)
    layers = (Layer(norm, attention, norm, ffn),) * count
    return Encoder(size, embed, layers, projector, table=table, post_norm=norm), config


def siglip_rules(embed: Patches, outer: str = "vision_tower.vision_model.") -> dict[str, str]:
    layer, to = f"{outer}encoder.layers.{{i}}.", "layers.{i}."
    return {
        f"{outer}embeddings.patch_embedding.weight": towers.cut(embed, "c h w"),
        f"{outer}embeddings.patch_embedding.bias": "embed.bias",
        f"{outer}embeddings.position_embedding.weight": "table",
        **towers.linear(f"{layer}layer_norm1", f"{to}attention_norm"),
        **towers.linear(f"{layer}layer_norm2", f"{to}ffn_norm"),
        **qkv(f"{layer}self_attn", f"{to}attention"),
        **towers.linear(f"{layer}self_attn.out_proj", f"{to}attention.out"),
        **towers.linear(f"{layer}mlp.fc1", f"{to}ffn.up"),
        **towers.linear(f"{layer}mlp.fc2", f"{to}ffn.down"),
        **towers.linear(f"{outer}post_layernorm", "post_norm"),
        f"{outer}head.*": "DROP",  # pools a picture into one vector, which no text model is given
    }


def pixtral(values: Mapping[str, Any], decoder: Decoder, projector: Projector, merge: int) -> tuple[Encoder, Config]:
    """Pixtral's tower (arXiv:2410.07073) over pictures of any size: RMSNorm, no biases, and columns that turn by the
    rates between those of rows."""
    if (kept := values.get("vision_feature_layer", -1)) not in (-1, [-1]):
        raise ValueError(f"config.json: vision_feature_layer is {shown(kept)}; what leaves the last layer (-1) is read")
    config = towers.section(values, "vision_config", PIXTRAL)
    config.without_effect(["attention_dropout", "image_size", "num_key_value_heads"])
    size, heads = config.size("hidden_size"), config.size("num_attention_heads", 1024)
    dim = config.optional_size("head_dim") or towers.head_dim(size, heads)
    if dim != towers.head_dim(size, heads):
        raise ValueError(f"config.json: vision_config.head_dim is {dim}, {size} values have {heads} of {size // heads}")
    scaling = config.get("rope_parameters")
    stated = scaling.get("rope_theta") if isinstance(scaling, dict) else None
    theta = number("rope_theta", config.get("rope_theta") if stated is None else stated, low=1.0001)
    norm, ffn = Norm(1e-5), GatedMLP(config.size("intermediate_size"), config.choice("hidden_act", common.ACTIVATIONS))
    layer = Layer(norm, GQA(heads, heads, dim, Rope(dim, theta)), norm, ffn)
    layers, embed = (
        (layer,) * config.size("num_hidden_layers", common.MAX_LAYERS),
        Patches(config.size("patch_size", 512), merge),
    )
    return Encoder(size, embed, layers, projector, columns="between", pre_norm=norm), config


def pixtral_rules(embed: Patches) -> dict[str, str]:
    layer, to = "vision_tower.transformer.layers.{i}.", "layers.{i}."
    return {
        "vision_tower.patch_conv.weight": towers.cut(embed, "c h w"),
        "vision_tower.ln_pre.weight": "pre_norm.weight",
        f"{layer}attention_norm.weight": f"{to}attention_norm.weight",
        f"{layer}ffn_norm.weight": f"{to}ffn_norm.weight",
        **qkv(f"{layer}attention", f"{to}attention", ("weight",)),
        f"{layer}attention.o_proj.weight": f"{to}attention.out.weight",
        f"{layer}feed_forward.gate_proj.weight": f"{to}ffn.gate_up.weight[gate]",
        f"{layer}feed_forward.up_proj.weight": f"{to}ffn.gate_up.weight[up]",
        f"{layer}feed_forward.down_proj.weight": f"{to}ffn.down.weight",
    }
