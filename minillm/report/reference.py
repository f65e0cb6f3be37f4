"""A checkpoint in transformers, as the reference that others are compared with.

transformers obeys a checkpoint's files: which attention to run and where to fetch it, an adapter to put on another
model, code to run, how to quantise. So it is given a folder of its own, in which nothing but the weights is the
checkpoint's: the config has what minillm understood of the original, the index what it found in the headers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import config, families
from minillm.families.media import media
from minillm.families.shared import wrapped
from minillm.guard.parsing import reading
from minillm.spec.media import Media
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.gguf import reader as gguf

# What can be known of a quantisation, and of the part that reads images, which is built and then not used.
QUANTISATION = ("quant_method", "weight_block_size", "fmt", "activation_scheme", "modules_to_not_convert")
VISION = """hidden_size image_size intermediate_size layer_norm_eps num_attention_heads num_channels num_hidden_layers
    patch_size vision_use_head""".split()
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # of which none is needed here


def load(folder: Path, seen: bool = False, **options: Any) -> Any:
    """The model, for evaluation; with what sees where it is to have `seen` something. `options` are those of
    `from_pretrained`. Raises ValueError where transformers is not there, lacks the family, or does not fill all of it
    from this checkpoint."""
    try:
        import transformers
    except ImportError:
        raise ValueError("--against transformers needs transformers: pip install -e '.[test]' in the clone") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    values, problem = config.read(folder), "transformers cannot load this"
    if gguf.is_one(folder):
        raise ValueError(f"{folder}: a GGUF file, whose names transformers does not have; give --against FOLDER")
    if (kind := understood(values)["model_type"]) not in transformers.CONFIG_MAPPING:
        raise ValueError(f"{folder}: {problem}: {transformers.__version__} knows no model_type {kind!r}")
    with tempfile.TemporaryDirectory() as place:
        safe = lay_out(Path(place), values, Checkpoint(folder), with_tower(values) if seen else understood(values))
        options |= {"trust_remote_code": False, "local_files_only": True, "use_safetensors": safe}
        with reading(folder, problem):
            kind = transformers.AutoModelForImageTextToText if seen else transformers.AutoModelForCausalLM
            read: Any = kind.from_pretrained
            model, found = read(place, output_loading_info=True, **options)
    if missing := sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"]))):
        raise ValueError(f"{folder}: {problem}: it finds no tensor for {missing[0]}")
    return model.eval()


def understood(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that its family reads, and no others. Raises ValueError as `families.resolve` does."""
    (_, _, read), words = families.resolve(values), families.words(values)

    def known(section: Mapping[str, Any]) -> dict[str, Any]:
        return {key: each for key, each in section.items() if {key, words.get(key, key)} & read.asked}

    made = {**known(values), "model_type": values["model_type"], **NO_TOKENS}
    if isinstance(section := values.get("text_config"), dict):
        made["text_config"] = {**known(section), **NO_TOKENS}
    for name in ("attn_config", "ffn_config"):
        if isinstance(section := values.get(name), dict):
            made[name] = known(section)
    if isinstance(section := values.get("vision_config"), dict):
        made["vision_config"] = {key: section[key] for key in VISION if isinstance(section.get(key), (int, float))}
    if config.quantization(values) and isinstance(section := values["quantization_config"], dict):
        made["quantization_config"] = {key: section[key] for key in QUANTISATION if key in section}
    return made


def lay_out(place: Path, values: Mapping[str, Any], checkpoint: Checkpoint, said: Mapping[str, Any]) -> bool:
    """Fill a folder; returns whether its weights are safetensors."""
    safe = all(file.endswith(".safetensors") for file in checkpoint.files)
    stem, ending = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    names = {file: f"{stem}-{number:05}.{ending}" for number, file in enumerate(checkpoint.files, 1)}
    for file, name in names.items():
        try:
            (place / name).symlink_to((checkpoint.folder / file).resolve())
        except OSError:  # Windows, of users who may not
            shutil.copyfile(checkpoint.folder / file, place / name)
    located = {name: names[info.file] for name, info in checkpoint.info.items()}
    index = {"metadata": {"total_size": checkpoint.nbytes}, "weight_map": located}
    (place / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    (place / "config.json").write_text(json.dumps(said))
    return safe


def shortened(values: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """A config.json whose text model is next to nothing, and whose tower has its first `layers` alone."""
    less = {"num_hidden_layers": 4, "vocab_size": 1000, "intermediate_size": 64}
    less |= {"tie_word_embeddings": False, "max_window_layers": 4}
    section, vision = values.get("text_config"), values.get("vision_config")
    made = dict(values)
    inner = {**section, **less} if isinstance(section, dict) else None
    made |= {"text_config": inner, **{key: less[key] for key in less if key in made}} if inner is not None else less
    for each in (made, inner or {}):
        each.pop("layer_types", None)
    made.pop("quantization_config", None)
    if layers is not None and isinstance(vision, dict):
        key = "depth" if "depth" in vision or "num_hidden_layers" not in vision else "num_hidden_layers"
        listed = {name: [each for each in vision[name] if each < layers] for name in LISTS if name in vision}
        made["vision_config"] = {**vision, key: min(layers, vision.get(key, layers)), **listed}
    return made


LISTS = ("fullatt_block_indexes", "deepstack_visual_indexes")


def tower(values: Mapping[str, Any], dtype: Any) -> Any:
    """A model of transformers with the tower of a config (`shortened`), and random weights. Raises ValueError where
    transformers is not there or lacks the family."""
    try:
        import transformers
    except ImportError:
        raise ValueError("bench tower needs transformers: pip install -e '.[test]' in the clone") from None
    transformers.utils.logging.set_verbosity_error()
    if (kind := values["model_type"]) not in transformers.CONFIG_MAPPING:
        raise ValueError(f"transformers {transformers.__version__} knows no model_type {kind!r}")
    torch.manual_seed(0)
    with reading(kind, "transformers cannot build its tower"):
        config = transformers.AutoConfig.for_model(**with_tower(values))
        build: Any = transformers.AutoModelForImageTextToText.from_config
        model = build(config, attn_implementation="sdpa", dtype=dtype)
    for each in model.parameters():  # some are zeros at first
        each.data.normal_(std=0.02)
    return model.requires_grad_(False).eval()


def inputs(made: Media, pixels: Tensor, values: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """What transformers' towers take of a picture, `pixels` `[3, height, width]`, of which `values` are the patches."""
    if made.sizing == "area":
        return {"pixel_values": values[0], "image_grid_thw": torch.tensor([[1, *grid]])}
    sizes = {"image_sizes": torch.tensor([pixels.shape[1:]])} if made.sizing == "edge" else {}
    return {"pixel_values": pixels[None], **sizes}


def embeddings(model: Any, given: Mapping[str, Any]) -> Any:
    """What transformers' tower makes of a picture, `[n, H]`."""
    place = next(model.parameters())
    given = {name: each.to(place if each.is_floating_point() else place.device) for name, each in given.items()}
    made = model.model.get_image_features(**given).pooler_output
    return made if isinstance(made, Tensor) else torch.cat([each.flatten(0, -2) for each in made])


def with_tower(values: Mapping[str, Any]) -> dict[str, Any]:
    """`understood`, with the numbers of the tower that its family reads."""
    made, found = understood(values), media(values)
    vision = values.get("vision_config")
    if found is not None and isinstance(vision, dict):
        known = {"model_type", *found[2].asked}
        made["vision_config"] = {key: vision[key] for key in vision if key in known}
        made |= {key: values[key] for key in wrapped.OUTER if isinstance(values.get(key), (int, float, str))}
    return made
