"""Llama, except: all that Qwen2 changes.

Qwen2-Audio 7B (Chu et al., arXiv:2407.10759): Whisper's encoder hears 30 seconds, pairs of frames are averaged, and one
product makes embeddings of them. Published configs leave the sizes of the text model out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.config import Config
from minillm.families import qwen2
from minillm.families.shared import common, wrapped
from minillm.families.towers import picture_towers, towers
from minillm.spec import GQA, MLP, Decoder, Layer, LayerNorm
from minillm.spec.media import Encoder, Media, Placeholder, Projector, Spectrum

DEFAULTS = qwen2.DEFAULTS
RULES = wrapped.rules(qwen2.RULES, ("audio_tower", "multi_modal_projector"), seen=True)
TRANSFORMERS = wrapped.TRANSFORMERS
inner, spec = wrapped.inner, qwen2.spec
PLACEHOLDER = Placeholder("<|AUDIO|>", "<|AUDIO|>")
AUDIO = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "activation_function": "gelu",
    "scale_embedding": False,
}
LAYER, TO = "audio_tower.layers.{i}.", "layers.{i}."
AUDIO_RULES = towers.both(
    {
        "audio_tower.embed_positions.weight": "table",
        **towers.linear(f"{LAYER}self_attn_layer_norm", f"{TO}attention_norm"),
        **picture_towers.qkv(f"{LAYER}self_attn", f"{TO}attention", ("weight",)),
        **{f"{LAYER}self_attn.{part}_proj.bias": f"{TO}attention.qkv.bias[{part}]" for part in "qv"},  # k has none
        **towers.linear(f"{LAYER}self_attn.out_proj", f"{TO}attention.out"),
        **towers.linear(f"{LAYER}final_layer_norm", f"{TO}ffn_norm"),
        **towers.linear(f"{LAYER}fc1", f"{TO}ffn.up"),
        **towers.linear(f"{LAYER}fc2", f"{TO}ffn.down"),
        **towers.linear("audio_tower.layer_norm", "projector.norm"),
        **towers.linear("multi_modal_projector.linear", "projector.maps.0"),
        **{f"audio_tower.conv{at}.bias": f"convolutions.{at - 1}.bias" for at in (1, 2)},
        **{f"audio_tower.conv{at}.weight": f"convolutions.{at - 1}.weight: o i k -> o (i k), k=3" for at in (1, 2)},
    }
)


def media(values: Mapping[str, Any], decoder: Decoder) -> tuple[Media, dict[str, str], Config]:
    config = towers.section(values, "audio_config", AUDIO)
    config.without_effect(["encoder_layerdrop", "dropout", "activation_dropout", "init_std"])
    if config.get("scale_embedding"):
        raise ValueError("config.json: scale_embedding is true; frames are not scaled here")
    size, heads = config.size("d_model"), config.size("encoder_attention_heads", 1024)
    if size % heads:
        raise ValueError(f"config.json: a tower of {size} values and {heads} heads, which do not divide them")
    norm, count = LayerNorm(1e-5), config.size("encoder_layers", common.MAX_LAYERS)
    attention = GQA(heads, heads, size // heads, None, qkv_bias=True, out_bias=True)
    act = config.choice("activation_function", towers.ACTIVATIONS)
    layer = Layer(norm, attention, norm, MLP(config.size("encoder_ffn_dim"), act, bias=True))
    embed = Spectrum(config.size("num_mel_bins", 4096), config.size("max_source_positions", 2**16))
    projector = Projector(2, (decoder.hidden_size,), "mean", norm, "gathered")
    return Media("audio", Encoder(size, embed, (layer,) * count, projector), PLACEHOLDER), AUDIO_RULES, config
