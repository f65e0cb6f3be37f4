"""PLaMo-13B and PLaMo 3, which transformers has no class for, out of classes that it has.

PLaMo-13B is a Llama with as many kv heads as query heads, its matrices of k and v repeated one under the other, in
layers that add attention and MLP of one norm. PLaMo 3 is a Gemma 3 with silu and without the embedding's factor, whose
norms' weights are stored less other constants.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers import oracles_openelm, oracles_searched

IDS = " bos_token_id eos_token_id pad_token_id"
STATE = "oracle/state.safetensors"


def parallel(values: dict[str, Any]) -> Any:
    """PLaMo-13B."""

    def forward(self: Any, hidden_states: Tensor, **others: Any) -> Tensor:
        normed = self.input_layernorm(hidden_states)
        return hidden_states + self.self_attn(hidden_states=normed, **others)[0] + self.mlp(normed)

    config = transformers.LlamaConfig(**{**values, "num_key_value_heads": values["num_attention_heads"]})
    config._attn_implementation, config.n_shared_head = "eager", values["n_shared_head"]
    model = transformers.LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.forward = forward.__get__(layer)
        layer.post_attention_layernorm = nn.Identity()
    return model


def write_parallel(model: Any, folder: Path) -> None:
    shared, published = model.config.n_shared_head, dict[str, Tensor]()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            tensor = tensor[: len(tensor) // shared].clone()
            state[name].copy_(tensor.tile(shared, 1))  # in the model, as it is what the file means
        published[name.replace("model.layers.", "model.layers.layers.").replace("input_layernorm", "norm")] = tensor
    keys = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    keys += "n_shared_head max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings"
    write(folder, model, state, published, keys)


def sandwiched(values: dict[str, Any]) -> Any:
    """PLaMo 3."""
    values = {key: value for key, value in values.items() if key != "hidden_act"}
    values |= {"query_pre_attn_scalar": values["head_dim"], "hidden_activation": "silu"}
    config = transformers.Gemma3TextConfig(**values, final_logit_softcapping=None)
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForCausalLM(config)
    model.model.embed_tokens.embed_scale.fill_(1.0)
    return model


# Gemma 3's name of a norm -> PLaMo 3's, and what its stored weight is less than the one that counts.
NORMS = {
    "input_layernorm": ("pre_mixer_norm", 1.0),
    "post_attention_layernorm": ("post_mixer_norm", 1 / 5),
    "pre_feedforward_layernorm": ("pre_mlp_norm", 1.0),
    "post_feedforward_layernorm": ("post_mlp_norm", 1 / 5**1.5),
}


def write_sandwiched(model: Any, folder: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    published = {}
    for name, tensor in state.items():
        made = name.replace("model.layers.", "model.layers.layers.").replace("self_attn", "mixer")
        kind = made.split(".")[-2]
        if kind in NORMS:
            published[made.replace(kind, NORMS[kind][0])] = tensor + 1 - NORMS[kind][1]
        elif kind in ("q_proj", "gate_proj"):
            parts = ("q_proj", "k_proj", "v_proj") if kind == "q_proj" else ("gate_proj", "up_proj")
            fused = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}[kind]
            published[made.replace(kind, fused)] = torch.cat([state[name.replace(kind, part)] for part in parts])
        elif kind not in ("k_proj", "v_proj", "up_proj"):
            published[made] = tensor
    keys = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    keys += (
        "head_dim sliding_window layer_types max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings"
    )
    write(folder, model, state, published, keys)


def write(folder: Path, model: Any, state: dict[str, Tensor], published: dict[str, Tensor], keys: str) -> None:
    (folder / "oracle").mkdir()
    if model.config.tie_word_embeddings:
        del published["lm_head.weight"], state["lm_head.weight"]
    save_file(state, folder / STATE)
    save_file({name: tensor.clone() for name, tensor in published.items()}, folder / "model.safetensors")
    config = model.config.to_dict()
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in (keys + IDS).split()}))


BUILD = {"plamo": parallel, "plamo3": sandwiched, "openelm": oracles_openelm.build,
         "nemotron-nas": oracles_searched.build}  # fmt: skip
WRITE = {"plamo": write_parallel, "plamo3": write_sandwiched, "openelm": oracles_openelm.write,
         "nemotron-nas": oracles_searched.write}  # fmt: skip


def load(folder: Path, family: str) -> Any:
    model = BUILD[family](json.loads((folder / "config.json").read_text()))
    missing, extra = model.load_state_dict(load_file(folder / STATE), strict=False)
    assert (set(missing) <= {"lm_head.weight"}, extra) == (True, [])
    model.tie_weights()
    return model
