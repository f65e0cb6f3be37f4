"""Folders as Meta and Mistral give them out: a random model of transformers, cut up and renamed by this test's own
table, is the same model when it is read; and published params.json are what the published config.json say.

The order of the rows of q and k, the axes of the parts and the rounding are those of the makers' code and of
transformers' conversion scripts (`convert_llama_weights_to_hf.py`, `convert_mistral_weights_to_hf.py`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import minillm
from minillm import families, hub, quantize
from minillm.explain import __main__ as explain
from minillm.families.makers import layouts
from minillm.guard.jsonfile import read_json
from minillm.weights import ints
from tests.conftest import shared
from tests.helpers import tiny
from tests.helpers.tiny import refused

NAMES = {
    r"model\.embed_tokens\.": "tok_embeddings.",
    r"model\.norm\.": "norm.",
    r"lm_head\.": "output.",
    r"model\.(layers\.\d+\.)input_layernorm\.": r"\1attention_norm.",
    r"model\.(layers\.\d+\.)post_attention_layernorm\.": r"\1ffn_norm.",
    r"model\.(layers\.\d+\.)self_attn\.(\w)_proj\.": r"\1attention.w\2.",
    r"model\.(layers\.\d+\.)mlp\.gate_proj\.": r"\1feed_forward.w1.",
    r"model\.(layers\.\d+\.)mlp\.down_proj\.": r"\1feed_forward.w2.",
    r"model\.(layers\.\d+\.)mlp\.up_proj\.": r"\1feed_forward.w3.",
    r"model\.(layers\.\d+\.)block_sparse_moe\.": r"\1feed_forward.",
}
WIDE = r"tok_embeddings\.|.*\.attention\.wo\.|.*\.feed_forward\.w2\."  # cut by the width
SIZES = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "vocab_size": 96, "rms_norm_eps": 1e-5}
SCALED = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
META = {"dim": 48, "n_layers": 2, "n_heads": 6, "norm_eps": 1e-5}
MISTRAL = {**META, "hidden_dim": 56, "vocab_size": 96, "n_kv_heads": 2, "head_dim": 16}
# The family, what sets the configuration apart, params.json, the number of files, and how the embedding is cut.
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int, str]] = {
    # int(2 * 4 * 48 / 3) = 128, rounded up to a multiple of 36
    "llama 2": ("llama", {"num_key_value_heads": 6, "intermediate_size": 144, "head_dim": 8},
                {**META, "multiple_of": 36, "vocab_size": -1}, 2, WIDE),
    # int(1.3 * 128) = 166, rounded up to a multiple of 8; the embedding is cut by its rows
    "llama 3": ("llama", {"num_key_value_heads": 3, "intermediate_size": 168, "head_dim": 8,
                          "rope_parameters": SCALED, "max_position_embeddings": 131072},
                {**META, "multiple_of": 8, "ffn_dim_multiplier": 1.3, "n_kv_heads": 3, "vocab_size": 96,
                 "rope_theta": 500000.0, "use_scaled_rope": True}, 3, WIDE.partition("|")[2]),
    "llama, one file": ("llama", {"num_key_value_heads": 6, "intermediate_size": 128, "head_dim": 8},
                        {"model": {**META, "multiple_of": 1}, "vocab_size": 96}, 1, WIDE),
    "mistral": ("mistral", {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 56, "sliding_window": 7},
                {**MISTRAL, "sliding_window": "7"}, 0, WIDE),
    "mistral, pickled": ("mistral", {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 56,
                                     "sliding_window": None, "rope_parameters": {"rope_type": "default",
                                                                                  "rope_theta": 1000000.0}},
                         MISTRAL, 1, WIDE),
    "mixtral": ("mixtral", {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 56, "num_local_experts": 5,
                            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
                {**MISTRAL, "moe": {"num_experts": 5, "num_experts_per_tok": 2}}, 0, WIDE),
}  # fmt: skip


def renamed(folder: Path, heads: dict[str, int]) -> dict[str, Tensor]:
    """The tensors of a folder of transformers as a maker has them: consecutive pairs of q and k turn together."""
    found = {}
    for name, values in load_file(folder / "model.safetensors").items():
        (pattern,) = (each for each in NAMES if re.match(each, name))
        new = re.sub(pattern, NAMES[pattern], name)
        if part := re.search(r"attention\.w([qk])\.", new):
            values = values.view(heads[part[1]], 2, -1, values.shape[1]).transpose(1, 2).reshape(values.shape)
        found[new] = values.contiguous()
    return found


def write(folder: Path, tensors: dict[str, Tensor], count: int, wide: str) -> None:
    """The files of a maker: none for safetensors, else so many with a part of each matrix."""
    if not count:
        return save_file(tensors, folder / "consolidated.safetensors")
    for i in range(count):
        parts = {
            name: values if values.dim() == 1 else values.chunk(count, 1 if re.match(wide, name) else 0)[i].clone()
            for name, values in tensors.items()
        }
        torch.save({**parts, "rope.freqs": torch.ones(4)}, folder / f"consolidated.{i:02}.pth")
    return None


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Any]:
    """A folder in a maker's layout, and the model of transformers."""
    family, overrides, params, count, wide = VARIANTS[request.param]
    model = tiny.save(tmp_path / "theirs", family, {**SIZES, **overrides})
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    heads = {"q": 6, "k": overrides["num_key_value_heads"]}
    write(folder, renamed(tmp_path / "theirs", heads), count, wide)
    return folder, model


@pytest.mark.parametrize("made", VARIANTS, indirect=True)
def test_the_model_is_the_same(made: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Logits in fp32, text of a quantised copy, and nothing that is not understood."""
    folder, model = made
    llm = minillm.load(folder, "float32", "cpu", "reference")
    assert capsys.readouterr().err == ""
    tokens = tiny.tokens(96, 2, 40)
    with torch.no_grad():
        assert (llm.model(tokens) - tiny.logits(model, tokens)).abs().max() <= 2e-5
    assert explain.main(["--weights", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    faults = ("unknown_config_keys", "unclaimed_tensors", "unfilled_parameters", "misshapen_tensors", "other_faults")
    assert [said[key] for key in faults] == [[]] * 5
    quantize.quantize(folder, tmp_path / "small", ints.scheme("int8"))
    small = minillm.load(tmp_path / "small", "float32", "cpu", "reference")
    assert small.spec == llm.spec
    with torch.no_grad():
        assert 0 < (small.model(tokens) - llm.model(tokens)).abs().mean() < 0.05  # of logits of size 1


# What the makers publish for these, beside the config.json that the shared material has.
LLAMA3 = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024,
          "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0}  # fmt: skip
LLAMA31 = {**LLAMA3, "use_scaled_rope": True}
MISTRAL7 = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
            "norm_eps": 1e-05}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama__Llama-2-7b-hf": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05,
                                  "vocab_size": -1},
    "meta-llama__Meta-Llama-3-8B-Instruct": LLAMA3,
    "meta-llama__Llama-3.1-8B": LLAMA31,
    "meta-llama__Llama-3.1-70B": {**LLAMA31, "dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096},
    "meta-llama__Llama-3.1-405B": {**LLAMA31, "dim": 16384, "n_layers": 126, "n_heads": 128, "multiple_of": 4096,
                                   "ffn_dim_multiplier": 1.2},
    "meta-llama__Llama-3.2-1B-Instruct": {**LLAMA31, "dim": 2048, "n_layers": 16, "multiple_of": 256,
                                          "ffn_dim_multiplier": 1.5},
    "meta-llama__Llama-3.2-3B-Instruct": {**LLAMA31, "dim": 3072, "n_layers": 28, "n_heads": 24, "multiple_of": 256,
                                          "ffn_dim_multiplier": 1.0},
    "mistralai__Mistral-7B-v0.1": {**MISTRAL7, "sliding_window": 4096, "vocab_size": 32000},
    "mistralai__Mistral-7B-Instruct-v0.3": {**MISTRAL7, "rope_theta": 1000000.0, "vocab_size": 32768},
    "mistralai__Mixtral-8x7B-v0.1": {**MISTRAL7, "vocab_size": 32000,
                                     "moe": {"num_experts_per_tok": 2, "num_experts": 8}},
    "mistralai__Devstral-Small-2507": {},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_params(name: str) -> None:
    """The model is that of the published config.json; how far its positions reach, Mistral's files do not say."""
    folder = shared(f"real-configs/{name}")
    theirs, _, _ = families.resolve(read_json(folder / "config.json"))
    params = PUBLISHED[name] or read_json(folder / "params.json")
    head = None if theirs.tied else (32000, 4096)
    ours, _, read = families.resolve(layouts.config(params, lambda: head))
    assert read.unread == []
    if "hidden_dim" in params:
        ours = dataclasses.replace(ours, context=theirs.context)
    assert ours == theirs


def test_yarn_and_what_nobody_asks_for() -> None:
    """Scores are scaled where apply_scale says so; keys that are not known are passed on, so that users are told."""
    yarn = {"factor": 16.0, "original_max_position_embeddings": 64, "beta": 32.0, "alpha": 1.0}
    found = []
    for apply in (False, True):
        params = {**MISTRAL, "yarn": {**yarn, "apply_scale": apply}, "sink": 3, "dtype": "bfloat16"}
        spec, _, read = families.resolve(layouts.config(params, lambda: None))
        found.append(spec.layers[0].attention.rope.scaling)
        assert (read.unread, read.dtype) == (["params.json:sink"], "bfloat16")
    assert [each.attention_factor for each in found] == [1.0, pytest.approx(1.27725887)]
    assert (found[0].factor, found[0].original_positions) == (16.0, 64)
    assert (found[0].beta_fast, found[0].beta_slow) == (32.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": ...}, "neither multiple_of, as Meta's, nor hidden_dim, as Mistral's"),
        ({"kv_lora_rank": 512}, "kv_lora_rank is 512: latent attention as in Mistral Large 3"),
        ({"moe": {"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1}}, "moe has num_shared_experts"),
        ({"moe": 8}, "moe is 8, expected an object"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "give an unquantised checkpoint"),
        ({"llama_4_scaling": {"beta": 0.1}}, "queries that grow"),
        ({"yarn": {"mscale": 1}}, "expected an object with factor"),
        ({"sliding_window": [4096, None]}, "one number for all layers"),
        ({"model_type": "mamba"}, "transformer is supported"),
        ({"dim": "48"}, "dim is '48', expected a whole number"),
        ({"norm_eps": 0}, "norm_eps is 0, expected a number"),
        ({"tied_embeddings": 1}, "tied_embeddings is 1, expected true or false"),
        ({"multiple_of": 8, "moe_args": {"num_experts": 16}}, "Llama 4"),
        ({"multiple_of": 8, "quantization_args": {"group_size": 32}}, "give the unquantised model"),
    ],
)
def test_what_is_no_family_here(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    params = {key: value for key, value in {**MISTRAL, **changes}.items() if value is not ...}
    (tmp_path / "params.json").write_text(json.dumps(params))
    torch.save({"output.weight": torch.ones(96, 48)}, tmp_path / "consolidated.00.pth")
    refused(tmp_path, f"{tmp_path}: params.json", message)


@pytest.mark.parametrize("made", ["llama 2"], indirect=True)
def test_files_that_do_not_fit(made: tuple[Path, Any]) -> None:
    """A part that is missing, of another model, or damaged is named."""
    folder, _ = made
    right = torch.load(folder / "consolidated.01.pth")
    for changes, message in (
        ({"norm.weight": right["norm.weight"] + 1}, "norm.weight is not the same in all files"),
        ({"layers.0.attention.wq.weight": torch.ones(8, 48)}, "layers.0.attention.wq.weight is F32 [24, 48], F32 [8"),
        ({"output.bias": torch.ones(4)}, "'output.bias' is not in both consolidated.00.pth and consolidated.01.pth"),
    ):
        torch.save({**right, **changes}, folder / "consolidated.01.pth")
        refused(folder, message)
    for i in range(2):
        torch.save({"gates.weight": torch.ones(4, 4)}, folder / f"consolidated.0{i}.pth")
    refused(folder, "gates.weight is cut in 2 parts, and how is not known")
    (folder / "consolidated.01.pth").rename(folder / "consolidated.02.pth")
    refused(folder, "consolidated.01.pth is missing")


@pytest.mark.parametrize("made", ["mistral"], indirect=True)
def test_what_stands_beside(made: tuple[Path, Any]) -> None:
    """An index with shards; tensors that read images, which are left out; and a config.json does not matter, but
    weights in the usual layout do."""
    folder, model = made
    tensors = {**load_file(folder / "consolidated.safetensors"), "vision_encoder.patch_conv.weight": torch.ones(2, 2)}
    (folder / "consolidated.safetensors").unlink()
    names = [f"consolidated-0000{i}-of-00002.safetensors" for i in (1, 2)]
    located = {name: names[i % 2] for i, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name in tensors if located[name] == file}, folder / file)
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    (folder / "config.json").write_text("{}")
    tokens = tiny.tokens(96, 1, 20)
    with torch.no_grad():
        assert (minillm.load(folder).model(tokens) - tiny.logits(model, tokens)).abs().max() <= 2e-5
    (folder / "model.safetensors").write_bytes((folder.parent / "theirs/model.safetensors").read_bytes())
    assert read_json(hub.resolve(folder.parent / "theirs") / "config.json")["model_type"] == "mistral"
