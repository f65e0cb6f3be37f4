"""Llama, except: most layers have a short convolution between two gates in place of attention; the others normalise
each head of q and k; norms and matrices have other names. The head is the embedding.

LFM2 and LFM2.5, 350M to 2.6B (Liquid AI, 2025). The width of the feed-forward is not the one stated: two thirds of it,
times a factor, rounded up.
"""

from __future__ import annotations

from minillm.config import MAX_SIZE, Config, positive_integer
from minillm.families.recurrent import convolved
from minillm.families.shared import common
from minillm.guard.screen import shown
from minillm.spec import Decoder, GatedMLP

DEFAULTS = {
    **convolved.DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "block_ff_dim": None,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "full_attn_idxs": None,
}
RULES = convolved.RULES


def spec(config: Config) -> Decoder:
    listed, layers = config.get("full_attn_idxs"), common.num_layers(config)
    if listed is None:
        listed = list(range(layers))
    if not isinstance(listed, list) or any(type(each) is not int or not 0 <= each < layers for each in listed):
        raise ValueError(f"config.json: full_attn_idxs is {shown(listed)}, expected numbers of layers below {layers}")
    mlp = GatedMLP(_width(config))
    return convolved.decoder(
        config, [mlp] * layers, ["full_attention" if i in listed else "conv" for i in range(layers)]
    )


def _width(config: Config) -> int:
    """Of the feed-forward."""
    width = config.size("intermediate_size" if config.get("block_ff_dim") is None else "block_ff_dim")
    if not config.flag("block_auto_adjust_ff_dim"):
        return width
    width, factor = int(2 * width / 3), config.optional_number("block_ffn_dim_multiplier")
    multiple = 1 if factor is None else config.size("block_multiple_of")
    made = -(-int((factor or 1) * width) // multiple) * multiple
    return positive_integer("block_ff_dim times block_ffn_dim_multiplier", made, MAX_SIZE)
