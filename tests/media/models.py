"""Models of transformers that read pictures or hear sounds, tiny and random, in the layout of published checkpoints."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from einops import rearrange
from torch import Tensor

from minillm.config import read
from minillm.media import tower
from minillm.media.pictures import patches
from minillm.media.prompts import Reader, Seen, _digest
from minillm.media.settings import Settings
from minillm.model.tower.tower import Tower
from minillm.spec.media import Media
from tests.helpers import oracles_wrapped, tiny
from tests.helpers.hybrid_rows import DELTA

TOKEN = 90  # what stands for a picture
TEXT: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
CHUNKED = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 2, 3]}
TURNS = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
MERGED = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
DEEP = {
    **MERGED, "hidden_size": 32, "intermediate_size": 20, "out_hidden_size": 48, "num_position_embeddings": 25,
    "deepstack_visual_indexes": [2, 0],
}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
IDS = {"image_token_id": TOKEN, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
POOLED = {
    "hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 12, "patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 40,
}  # fmt: skip
GEMMA4 = {
    "model_type": "gemma4_text", "head_dim": 12, "global_head_dim": 16, "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 0,
}  # fmt: skip
# model_type (with what kind of it) -> config of the text, of the tower, and what stands beside them
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        {"rope_parameters": CHUNKED}, {**MERGED, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}, IDS
    ),
    "qwen2_5_vl": (
        {"rope_parameters": CHUNKED},
        {**MERGED, "hidden_size": 32, "intermediate_size": 20, "out_hidden_size": 48, "window_size": 16,
         "fullatt_block_indexes": [1], "tokens_per_second": 2},
        IDS,
    ),
    "qwen3_vl": ({"rope_parameters": TURNS, "head_dim": 16}, DEEP, IDS),
    "qwen3_vl_moe": (
        {"rope_parameters": TURNS, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 12, "norm_topk_prob": True},
        DEEP, IDS,
    ),
    "qwen3_5": (
        {**DELTA, "rope_parameters": {**TURNS, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
        {**DEEP, "deepstack_visual_indexes": []}, IDS,
    ),
    "qwen3_5_moe": (
        {**DELTA, "rope_parameters": {**TURNS, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
         "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
         "shared_expert_intermediate_size": 20},
        {**DEEP, "deepstack_visual_indexes": []}, IDS,
    ),
    "gemma3": (
        {"model_type": "gemma3_text", "head_dim": 12, "sliding_window": 6,
         "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
        {**TOWER, "model_type": "siglip_vision_model", "image_size": 24, "vision_use_head": False},
        {"mm_tokens_per_image": 9, "image_token_index": TOKEN, "image_token_id": TOKEN},
    ),
    "gemma4": (
        {**GEMMA4, "use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0},
        {**POOLED, "standardize": True}, {"audio_config": None, "image_token_id": TOKEN, "video_token_id": 91},
    ),
    "gemma4-small": (
        {**GEMMA4, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 97,
         "pad_token_id": 3},
        {**POOLED, "use_clipped_linears": True, "num_key_value_heads": 1},
        {"audio_config": None, "image_token_id": TOKEN, "video_token_id": 91},
    ),
    "gemma4_unified": (
        {**GEMMA4, "model_type": "gemma4_unified_text", "use_bidirectional_attention": "vision"},
        {"patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 24, "mm_posemb_size": 40, "output_proj_dims": 24},
        {"audio_config": None, "image_token_id": TOKEN, "video_token_id": 91},
    ),
    "mistral3": (
        {"model_type": "mistral", "head_dim": 12, "sliding_window": None},
        {**TOWER, "model_type": "pixtral", "head_dim": 16, "image_size": 48, "hidden_act": "silu"},
        {"image_token_index": TOKEN, "image_token_id": TOKEN, "spatial_merge_size": 2},
    ),
    "llava": (
        {"model_type": "mistral", "head_dim": 12, "sliding_window": None},
        {**TOWER, "model_type": "pixtral", "head_dim": 16, "image_size": 48, "hidden_act": "silu"},
        {"image_token_index": TOKEN, "image_token_id": TOKEN, "vision_feature_layer": -1,
         "vision_feature_select_strategy": "full"},
    ),
}  # fmt: skip
SEEDS = {"gemma4-small": 2}  # with 0 transformers itself is 2.1e-5 away from fp64
SIZES = [(16, 24), (40, 8)]  # of two pictures; of multiples of a block


def build(folder: Path, name: str, seed: int = 0) -> Any:
    """Saves a random model; returns it as transformers reads it again."""
    text, vision, outer = MODELS[name]
    whole = {"text_config": {**TEXT, **text}, "vision_config": vision, "tie_word_embeddings": False, **outer}
    config = transformers.AutoConfig.for_model(name.partition("-")[0], **whole)
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    tiny.randomise(model, seed)
    spread(model, seed)
    model.save_pretrained(folder)
    oracles_wrapped.publish(folder)
    return oracles_wrapped.load(folder, dtype=torch.float32, attn_implementation="eager")


def spread(model: Any, seed: int) -> None:
    """What a tower has stored beside parameters: bounds that cut off much, and what standardises its outputs."""
    made = torch.Generator().manual_seed(seed)
    for name, each in model.named_buffers():
        drawn = torch.rand(each.shape, generator=made)
        if name.endswith(("_min", "_max")):
            each.copy_((0.5 + drawn) * (-1 if name.endswith("_min") else 1))
        elif name.endswith(("std_bias", "std_scale")):
            each.copy_(drawn + 0.5)


def ours(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Media, Tower]:
    return tower.weights(folder, read(folder), dtype, torch.device("cpu"))


def seen(media: Media, sizes: list[tuple[int, int]], seed: int = 1) -> tuple[list[Tensor], list[Seen]]:
    """Random pictures `[3, height, width]`, and as the tower takes them."""
    embed, made = media.encoder.embed, torch.Generator().manual_seed(seed)
    pictures = [torch.randn(3, *size, generator=made) for size in sizes]
    found = []
    for each in pictures:
        values, grid = patches(each, embed.side, embed.merge, embed.frames)  # type: ignore[union-attr]
        shape = grid[0] // embed.merge, grid[1] // embed.merge  # type: ignore[union-attr]
        found.append(Seen(values, shape, grid, 0, _digest(values, grid)))
    return pictures, found


class Words:
    """A tokenizer that knows what stands for a picture."""

    class backend:
        @staticmethod
        def id_of(token: str) -> int:
            return TOKEN


def reader(media: Media, made: Tower) -> Reader:
    return Reader(media, made, Settings(media.sizing, 1), Words, 256)  # type: ignore[arg-type]


def inputs(name: str, media: Media, pictures: list[Tensor], found: list[Seen]) -> dict[str, Tensor]:
    """What transformers' model takes of them beside ids."""
    if media.axes is not None:
        grids = torch.tensor([[1, *each.grid] for each in found if each.grid])
        return {"pixel_values": torch.cat([each.values[0] for each in found]), "image_grid_thw": grids}
    if media.sizing == "fixed":
        return {"pixel_values": torch.stack(pictures)}
    if media.sizing == "budget":
        return unpacked(media, found)
    high, wide = (max(each.shape[axis] for each in pictures) for axis in (1, 2))
    padded = [torch.nn.functional.pad(each, (0, wide - each.shape[2], 0, high - each.shape[1])) for each in pictures]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor([each.shape[1:] for each in pictures])}


def masks(model: Any, name: str, kinds: Tensor) -> dict[str, Any]:
    """Masks for a model that transformers 5.23 itself gives other ones than in `generate`: layers without a window
    would see both ways too, which its code for the other models of the family says they must not."""
    if name != "gemma4_unified":
        return {}
    places, x = torch.arange(kinds.shape[1])[None], torch.zeros(*kinds.shape, 1)
    given = {"attention_mask": None, "past_key_values": None, "position_ids": places, "mm_token_type_ids": kinds}
    return {"attention_mask": model.create_masks_for_generate(model.config, x, **given)}


def unpacked(media: Media, found: list[Seen]) -> dict[str, Tensor]:
    """Patches row by row, each row by row with the colours of a pixel together and levels from 0 to 1; the column and
    row of each; and as many more of nothing as the longest picture has."""
    embed, most = media.encoder.embed, max(each.values.shape[1] for each in found)
    merge, side = embed.merge, embed.side  # type: ignore[union-attr]
    values, places = torch.zeros(len(found), most, 3 * side**2), torch.full((len(found), most, 2), -1)
    for index, each in enumerate(found):
        assert each.grid is not None
        cut = "(r q p s) (c y x) -> (r p q s) (y x c)"
        sizes = {"q": each.grid[1] // merge, "p": merge, "s": merge, "c": 3, "y": side}
        rows = rearrange(each.values[0], cut, **sizes) / 2 + 0.5
        at = torch.stack(torch.meshgrid(*map(torch.arange, each.grid), indexing="ij")[::-1], dim=-1).flatten(0, 1)
        values[index, : len(rows)], places[index, : len(rows)] = rows, at
    return {"pixel_values": values, "image_position_ids": places}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def behind_the_latest(places: Tensor, kinds: Tensor) -> tuple[Tensor, int]:
    """Coordinates `[3, T]` of transformers and its shift, with text behind a video as the models were trained: behind
    the latest of the three, where 5.23 has it behind the rows and columns alone (its first version of Qwen2.5-VL,
    #35569, says "the max vision position_ids plus 1"). `kinds`: 0 of text, 1 of a picture, 2 of a video."""
    made, latest = places.clone(), -1
    cuts = [0, *(torch.nonzero(kinds.diff()).flatten() + 1).tolist(), len(kinds)]
    for first, last in itertools.pairwise(cuts):
        made[:, first:last] += latest + 1 - int(places[:, first:last].min())
        latest = int(made[:, :last].max())
    return made, latest + 1 - len(kinds)
