"""What a GGUF file says of a model, in the words of config.json, for the family that its architecture belongs to.

Sizes stand in the metadata as `<architecture>.<key>`. A head is tied where there is no "output.weight", and there are
biases where there are tensors of them. A key that nothing here asks for is passed on under its own name, so that users
are told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minillm.families.gguf.architectures import ARCHITECTURES, NORM_OFFSETS, SCALES_APART
from minillm.families.gguf.metadata import File, Tensors, scaling

METHOD, NAMES = "gguf", "gguf_names"  # the key that says whose names the tensors have
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
PLAIN = {"F32": "float32", "F16": "float16"}  # what most of a file is in; blocks are made bfloat16
# What states the licence -> the words of a model card for it.
LICENCE = {"general.license": "license", "general.license.name": "license_name", "general.license.link": "license_link"}


def card(metadata: Mapping[str, Any]) -> bytes:
    """The front matter of a model card that says what a file says of its licence; empty where it says nothing."""
    lines = [f"{to}: {json.dumps(metadata[key], ensure_ascii=False)}" for key, to in LICENCE.items()
             if isinstance(metadata.get(key), str)]  # fmt: skip
    return "\n".join(["---", *lines, "---", ""]).encode() if lines else b""


def config(metadata: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The config.json of a file. Raises ValueError for an architecture that no family here has."""
    file = File(metadata, tensors)
    if (make := ARCHITECTURES.get(str(file.architecture))) is None:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"general.architecture is {str(file.architecture)[:40]!r}, supported are {known}")
    section = {
        "quant_method": METHOD,
        "norm_offset": NORM_OFFSETS.get(str(file.architecture), 0.0),
        **({"scales_apart": True} if str(file.architecture) in SCALES_APART else {}),
    }
    kinds = tensors.kinds()
    dtype = PLAIN.get(max(kinds, key=lambda kind: kinds[kind]), "bfloat16")
    said = {NAMES: file.architecture, "dtype": dtype, "quantization_config": section}
    own = make(file)  # first: what differs from layer to layer
    return {**_shared(file), **own, **said, **file.unread()}


def _shared(file: File) -> dict[str, Any]:
    """What most families call the same."""
    if (table := file.tensors.shape(EMBEDDING)) is None:
        raise ValueError(f"{EMBEDDING} is missing; is this file a whole model that generates text?")
    file.get("vocab_size"), file.get("rope.dimension_count"), file.get("attention.value_length")
    fine = "expert_feed_forward_length" in file.own  # what has experts in all layers may leave the other width out
    layers, ahead = file.size("block_count"), file.size("nextn_predict_layers", 0)
    values = {
        "vocab_size": table[0],
        "hidden_size": file.need("embedding_length"),
        "intermediate_size": file.get("feed_forward_length") if fine else file.need("feed_forward_length"),
        "num_hidden_layers": layers - ahead,
        "num_nextn_predict_layers": ahead or None,
        "num_attention_heads": (heads := file.need("attention.head_count")),
        "num_key_value_heads": file.get("attention.head_count_kv", heads),
        "head_dim": file.get("attention.key_length"),
        "rms_norm_eps": file.get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.need("context_length"),
        "rope_theta": file.get("rope.freq_base", 10000.0),
        "rope_scaling": scaling(file),
        "tie_word_embeddings": not file.has(HEAD),
    }
    return {key: value for key, value in values.items() if value is not None}
