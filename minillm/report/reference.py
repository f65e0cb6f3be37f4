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

from minillm import config, families
from minillm.guard.parsing import reading
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.gguf import reader as gguf

# What can be known of a quantisation, and of the part that reads images, which is built and then not used.
QUANTISATION = ("quant_method", "weight_block_size", "fmt", "activation_scheme", "modules_to_not_convert")
VISION = """hidden_size image_size intermediate_size layer_norm_eps num_attention_heads num_channels num_hidden_layers
    patch_size vision_use_head""".split()
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # of which none is needed here


def load(folder: Path, **options: Any) -> Any:
    """The model, for evaluation. `options` are those of `from_pretrained`. Raises ValueError where transformers is not
    there, lacks the family, or does not fill all of it from this checkpoint."""
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
        safe = lay_out(Path(place), values, Checkpoint(folder))
        options |= {"trust_remote_code": False, "local_files_only": True, "use_safetensors": safe}
        with reading(folder, problem):
            read: Any = transformers.AutoModelForCausalLM.from_pretrained
            model, found = read(place, output_loading_info=True, **options)
    if missing := sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"]))):
        raise ValueError(f"{folder}: {problem}: it finds no tensor for {missing[0]}")
    return model.eval()


def understood(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that its family reads, and no others. Raises ValueError as `families.resolve` does."""
    _, _, read = families.resolve(values)

    def known(section: Mapping[str, Any]) -> dict[str, Any]:
        return {key: each for key, each in section.items() if {key, families.ALIASES.get(key, key)} & read.asked}

    made = {**known(values), "model_type": values["model_type"], **NO_TOKENS}
    if isinstance(section := values.get("text_config"), dict):
        made["text_config"] = {**known(section), **NO_TOKENS}
    if isinstance(section := values.get("attn_config"), dict):
        made["attn_config"] = known(section)
    if isinstance(section := values.get("vision_config"), dict):
        made["vision_config"] = {key: section[key] for key in VISION if isinstance(section.get(key), (int, float))}
    if config.quantization(values) and isinstance(section := values["quantization_config"], dict):
        made["quantization_config"] = {key: section[key] for key in QUANTISATION if key in section}
    return made


def lay_out(place: Path, values: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
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
    (place / "config.json").write_text(json.dumps(understood(values)))
    return safe
