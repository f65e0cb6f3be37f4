"""Llama, except: all that Gemma 4 changes but embeddings of the layers and mixtures of experts.

Gemma 4 12B (2026), which sees without a tower: patches of 48 pixels become vectors by one product between two norms,
learned rows for their column and row are added, and after a third norm one product more makes embeddings of them. What
sound goes through is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import gemma4
from minillm.families.towers import pooled_tower, towers
from minillm.spec import Decoder, LayerNorm, Norm
from minillm.spec.media import Encoder, Media, Patches, Projector, Table

DEFAULTS = {
    **gemma4.DEFAULTS,
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
    "hidden_size_per_layer_input": 0,
}
TRANSFORMERS = gemma4.TRANSFORMERS
inner, rules, spec = gemma4.inner, gemma4.rules, gemma4.spec
VISION = {
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "mm_embed_dim": 3840,
    "mm_posemb_size": 1120,
    "rms_norm_eps": 1e-6,
    "output_proj_dims": 3840,
}
# Published are names with "vision_embedder" and a last product in "embed_vision"; transformers has all in the latter.
PLACES = {"patch_ln1": "patch_norm", "patch_ln2": "vector_norm", "patch_dense": "embed", "pos_norm": "pre_norm"}
LAST = ("embed_vision.embedding_projection", "embed_vision.multimodal_embedder.embedding_projection")


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config] | None:
    if values.get("vision_config") is None:
        return None
    config = towers.section(values, "vision_config", VISION)
    config.without_effect(["model_patch_size"])
    size, side = config.size("mm_embed_dim"), config.size("patch_size", 512) * config.size("pooling_kernel_size", 64)
    if config.size("output_proj_dims") != size:
        raise ValueError(f"config.json: output_proj_dims is not mm_embed_dim, {size}, which the last product is given")
    last = Norm(config.number("rms_norm_eps"), affine=False)
    projector = Projector(1, (decoder.hidden_size,), "mean", last, "gathered", bias=False)
    # It sees levels from 0 to 1, which are from -1 to 1 here: with four times the eps the norm gives the same.
    encoder = Encoder(
        size, Patches(side, 1, bias=True), (), projector, table=Table(config.size("mm_posemb_size"), summed=True),
        patch_norm=LayerNorm(4e-5), vector_norm=LayerNorm(1e-5), pre_norm=LayerNorm(1e-5),
    )  # fmt: skip
    order, sizes = "(h w c) -> (c h w)", f"h={side} w={side} c=3"
    found = {**pooled_tower.UNHEARD, **{f"{name}.weight": "projector.maps.0.weight" for name in LAST}}
    for outer in ("vision_embedder.", "embed_vision."):
        for name, to in PLACES.items():
            layout = f": {order}, {sizes}" if name == "patch_ln1" else ""
            found |= {f"{outer}{name}.{leaf}": f"{to}.{leaf}{layout}" for leaf in ("weight", "bias")}
        found[f"{outer}patch_dense.weight"] = f"embed.weight: o {order.replace('> ', '> o ')}, {sizes}"
        found[f"{outer}pos_embedding"] = "table: p two e -> (two p) e, two=2"
    made = pooled_tower.seen_by(values, decoder, encoder, str(DEFAULTS["use_bidirectional_attention"]))
    return made, towers.both(found), config
