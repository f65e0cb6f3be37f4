"""The test of the tests: flip one field of the spec at a time, and the result must change or the load must fail.

Parity proves that the unmutated spec is right; here every field is shown to matter, so that a wrong one cannot hide.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import minillm
from minillm import spec as vocabulary
from minillm.config import read
from minillm.families import resolve
from minillm.model.decoder import skeleton
from minillm.spec import (
    GQA,
    KV,
    MLA,
    MLP,
    XIELU,
    AddedConv,
    BlockIndexer,
    CappedSwiGLU,
    ChannelDelta,
    ClampedSwiGLU,
    Compressed,
    DynamicScaling,
    Embedding,
    Entries,
    EntryIndexer,
    Fronted,
    Gate,
    GatedConv,
    GatedDeltaNet,
    GatedMLP,
    GatedRecurrence,
    HyperConnections,
    Indexer,
    Layer,
    LayerNorm,
    Learned,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    LowRank,
    MoE,
    Norm,
    PerLayer,
    ProportionalScaling,
    QKNorm,
    Relative,
    Rope,
    Router,
    Scores,
    SelectiveScan,
    SharedBlock,
    StateSpace,
    Streams,
    Ungated,
    Unturned,
    YarnScaling,
)
from minillm.spec import Decoder as Spec
from minillm.weights.checkpoint import Checkpoint
from minillm.weights.load import check, load
from minillm.weights.rules import plan
from tests.helpers import tiny
from tests.helpers.mixer_mutations import MIXERS, OTHER_NORM
from tests.helpers.specs import mutate

# (class, field) -> the row of tiny.ROWS to start from, and what to put in the field's place.
MUTATIONS: dict[tuple[type, str], tuple[str, Any]] = {
    (Norm, "eps"): ("llama", 1e-2),
    (Norm, "offset"): ("llama", 1.0),
    (Norm, "cast"): ("llama", "after_weight"),
    (Norm, "affine"): ("llama", False),
    (ProportionalScaling, "part"): ("gemma4", 0.25),
    (ProportionalScaling, "factor"): ("gemma4", 2.0),
    (LinearScaling, "factor"): ("llama-linear", 3.5),
    (DynamicScaling, "factor"): ("llama-dynamic-beyond", 2.0),
    (DynamicScaling, "original_positions"): ("llama-dynamic-beyond", 30),
    (Llama3Scaling, "factor"): ("llama-llama3", 7.0),
    (Llama3Scaling, "low_freq_factor"): ("llama-llama3", 0.5),
    (Llama3Scaling, "high_freq_factor"): ("llama-llama3", 6.0),
    (Llama3Scaling, "original_positions"): ("llama-llama3", 40),
    (YarnScaling, "factor"): ("llama-yarn", 3.0),
    (YarnScaling, "original_positions"): ("llama-yarn", 40),
    (YarnScaling, "attention_factor"): ("llama-yarn", 1.0),
    (YarnScaling, "beta_fast"): ("llama-yarn all", 2.5),
    (YarnScaling, "beta_slow"): ("llama-yarn all", 0.5),
    (YarnScaling, "truncate"): ("llama-yarn all", True),
    (LayerNorm, "eps"): ("phimoe", 1e-2),
    (LayerNorm, "affine"): ("phimoe", False),
    (LayerNorm, "bias"): ("cohere", True),
    (LayerNorm, "offset"): ("nemotron", 0.0),
    (LongRopeScaling, "short_factors"): ("phimoe-long", (1.0, 1.3, 1.6, 2.0)),
    (LongRopeScaling, "long_factors"): ("phimoe-long", (1.5, 2.4, 4.0, 7.0)),
    (LongRopeScaling, "original_positions"): ("phimoe-long", 90),
    (LongRopeScaling, "short_attention_factor"): ("phimoe-long", 1.2),
    (LongRopeScaling, "long_attention_factor"): ("phimoe-long", 1.2),
    (Rope, "dim"): ("llama", 4),
    (Rope, "theta"): ("llama", 9000.0),
    (Rope, "layout"): ("llama", "interleaved"),
    (Rope, "scaling"): ("llama", LinearScaling(2.0)),
    **MIXERS,
    (HyperConnections, "count"): ("deepseek_v4", 4),
    (HyperConnections, "norm"): ("deepseek_v4", OTHER_NORM),
    (HyperConnections, "rounds"): ("deepseek_v4", 1),
    (HyperConnections, "eps"): ("deepseek_v4", 0.1),
    (HyperConnections, "mean"): ("deepseek_v4", True),
    (HyperConnections, "most"): ("hy_v4", 1.0),
    (Router, "num_experts"): ("mixtral", 4),
    (Router, "top_k"): ("mixtral", 3),
    (Router, "score"): ("deepseek_v3", "softmax"),
    (Router, "renormalize"): ("mixtral", False),
    (Router, "scale"): ("deepseek_v3", 1.0),
    (Router, "bias"): ("deepseek_v3", False),
    (Router, "num_groups"): ("deepseek_v3", 2),
    (Router, "top_groups"): ("deepseek_v3", 3),
    (Router, "group_score"): ("deepseek_v3", "max"),
    (Router, "normalize"): ("tanuki", None),
    (Router, "jitter"): ("phimoe", 0.3),
    (Router, "logit_bias"): ("gpt_oss", False),
    (MoE, "router"): ("mixtral", Router(5, 1)),
    (MoE, "intermediate_size"): ("mixtral", 72),
    (MoE, "activation"): ("mixtral", "gelu"),
    (MoE, "shared"): ("deepseek_v3", None),
    (MoE, "shared_gate"): ("qwen2_moe", False),
    (MoE, "bias"): ("gpt_oss", False),
    (MoE, "norm"): ("gemma4-experts", None),
    (MoE, "own"): ("mixtral", (0, 4)),
    (MoE, "latent"): ("nemotron_h-latent", None),
    (MoE, "hashed"): ("deepseek_v4", None),
    (MoE, "weighed"): ("inkling_text", 0),
    (Ungated, "activation"): ("nemotron_h-latent", "relu"),
    (MoE, "weighs_input"): ("llama4", False),
    (ClampedSwiGLU, "alpha"): ("gpt_oss", 1.6),
    (ClampedSwiGLU, "limit"): ("gpt_oss-odd", 0.7),
    (CappedSwiGLU, "limit"): ("step3p7", 0.1),
    (ClampedSwiGLU, "shift"): ("gpt_oss", 0.0),
    (XIELU, "linear"): ("apertus", 0.6),
    (XIELU, "least"): ("apertus", -0.5),
    (MLP, "intermediate_size"): ("phi", 72),
    (MLP, "activation"): ("phi", "silu"),
    (MLP, "bias"): ("phi", False),
    (GatedMLP, "intermediate_size"): ("llama", 72),
    (GatedMLP, "activation"): ("llama", "gelu"),
    (GatedMLP, "bias"): ("llama-biases", False),
    (GatedMLP, "sparsity"): ("gemma3n", 0.5),
    (GatedMLP, "factors"): ("falcon_h1", (1.0, 1.0)),
    (Layer, "attention_norm"): ("llama", OTHER_NORM),
    (Layer, "attention"): ("llama", GQA(6, 2, 8, Rope(8, 50.0))),
    (Layer, "ffn_norm"): ("llama", OTHER_NORM),
    (Layer, "ffn"): ("llama", GatedMLP(80, "gelu")),
    (Layer, "post_attention_norm"): ("gemma2", None),
    (Layer, "post_ffn_norm"): ("gemma2", None),
    (Layer, "parallel"): ("gpt_neox", False),
    (Layer, "scaled"): ("gemma4", False),
    (Layer, "low_rank"): ("gemma3n", None),
    (Layer, "branch_scale"): ("granite", 1.0),
    (Layer, "conv"): ("inkling_text", None),
    (LowRank, "rank"): ("gemma3n", 5),
    (LowRank, "norm"): ("gemma3n", OTHER_NORM),
    (Streams, "count"): ("gemma3n", 3),
    (Streams, "norm"): ("gemma3n", OTHER_NORM),
    (Spec, "streams"): ("gemma3n", None),
    (PerLayer, "vocab_size"): ("gemma4", 98),
    (PerLayer, "layers"): ("gemma4", 3),
    (PerLayer, "size"): ("gemma4", 9),
    (PerLayer, "norm"): ("gemma4", OTHER_NORM),
    (PerLayer, "activation"): ("gemma4", "silu"),
    (Spec, "vocab_size"): ("llama", 96),
    (Spec, "hidden_size"): ("llama", 40),
    (Spec, "layers"): ("llama", ()),
    (Spec, "final_norm"): ("llama", OTHER_NORM),
    (Spec, "tied"): ("llama", True),
    (Spec, "context"): ("llama", 8),
    (Spec, "head_bias"): ("phimoe", False),
    (Spec, "embedding"): ("gemma", Embedding()),
    (Embedding, "scale"): ("gemma", 1.0),
    (Embedding, "positions"): ("gpt2", None),
    (Embedding, "norm"): ("bloom", None),
    (Learned, "count"): ("gpt2", 100),
    (Learned, "skipped"): ("opt", 0),
    (Spec, "logit_scale"): ("granite", 1.0),
    (Spec, "logit_softcap"): ("gemma2", None),
    (Spec, "per_layer"): ("gemma4", None),
    (Embedding, "rows"): ("llama", (0, 90)),
    (Embedding, "unused"): ("inkling_text-odd", 3),
}


# Fields that are the shape or the presence of a parameter: the checkpoint no longer fits.
MISFITS = {
    (GQA, "num_heads"), (GQA, "num_kv_heads"), (GQA, "head_dim"),
    (GQA, "qkv_bias"), (GQA, "out_bias"), (GQA, "qk_norm"), (QKNorm, "width"),
    (MLA, "num_heads"), (MLA, "q_rank"), (MLA, "kv_rank"), (MLA, "nope_dim"), (MLA, "v_dim"), (MLA, "bias"),
    (Compressed, "num_heads"), (Compressed, "head_dim"), (Compressed, "q_rank"), (Compressed, "groups"),
    (Compressed, "group_rank"), (Compressed, "entries"), (Entries, "span"), (Entries, "size"), (Entries, "overlaps"),
    (Entries, "indexer"), (EntryIndexer, "num_heads"), (EntryIndexer, "head_dim"), (HyperConnections, "count"),
    (HyperConnections, "mean"),
    (Router, "num_experts"), (Router, "bias"),
    (MoE, "intermediate_size"), (MoE, "shared"), (MoE, "shared_gate"), (Spec, "head_bias"),
    (MoE, "bias"), (Router, "logit_bias"),
    (GatedMLP, "intermediate_size"), (GatedMLP, "bias"), (MLP, "intermediate_size"), (MLP, "bias"),
    (GQA, "weakened"), (GatedDeltaNet, "num_k_heads"), (GatedDeltaNet, "num_v_heads"),
    (GatedDeltaNet, "k_dim"), (GatedDeltaNet, "v_dim"), (GatedDeltaNet, "conv_kernel"),
    (GatedConv, "channels"), (GatedConv, "conv_kernel"), (MLA, "gate"), (Unturned, "dim"),
    (ChannelDelta, "num_heads"), (ChannelDelta, "head_dim"), (ChannelDelta, "conv_kernel"), (ChannelDelta, "rank"),
    (StateSpace, "num_heads"), (StateSpace, "head_dim"), (StateSpace, "num_groups"), (StateSpace, "state_size"),
    (StateSpace, "conv_kernel"), (StateSpace, "conv_bias"), (StateSpace, "bias"), (MoE, "latent"),
    (Fronted, "block"), (Fronted, "recurrent"), (SharedBlock, "rank"), (SharedBlock, "changes_attention"),
    (SharedBlock, "of"),
    (GatedRecurrence, "num_blocks"), (GatedRecurrence, "block_size"), (GatedRecurrence, "conv_kernel"),
    (SelectiveScan, "channels"), (SelectiveScan, "state_size"), (SelectiveScan, "step_rank"),
    (SelectiveScan, "conv_kernel"), (SelectiveScan, "conv_bias"), (SelectiveScan, "bias"),
    (LayerNorm, "affine"), (Layer, "post_attention_norm"), (Layer, "post_ffn_norm"),
    (Gate, "width"), (Gate, "with_q"), (Gate, "sinks"), (KV, "v_dim"), (KV, "indexer"), (BlockIndexer, "head_dim"),
    (MLA, "indexer"), (Indexer, "num_heads"), (Indexer, "head_dim"),
    (GQA, "kv"), (KV, "v_is_k"), (KV, "layer"), (Norm, "affine"), (MoE, "norm"), (MoE, "own"), (Layer, "scaled"),
    (PerLayer, "vocab_size"), (PerLayer, "layers"), (PerLayer, "size"), (Spec, "per_layer"),
    (Spec, "vocab_size"), (Spec, "hidden_size"), (Spec, "layers"), (Spec, "tied"),
    (Embedding, "positions"), (Embedding, "norm"), (Learned, "count"), (Learned, "skipped"), (LayerNorm, "bias"),
    (Layer, "low_rank"), (LowRank, "rank"), (Streams, "count"), (Spec, "streams"), (Embedding, "rows"),
    (MoE, "hashed"), (MoE, "weighed"), (Layer, "conv"), (Scores, "relative"), (Relative, "dim"), (Relative, "extent"),
    (KV, "conv_kernel"), (AddedConv, "channels"), (AddedConv, "conv_kernel"), (Embedding, "unused"),
}  # fmt: skip


# Tokens of a sequence: beyond the original context of every row, or before it where that regime is asked for.
LENGTH = 80
SHORT = {(LongRopeScaling, "short_factors"): 40, (LongRopeScaling, "short_attention_factor"): 40}


def test_every_field_has_a_mutation() -> None:
    classes = [each for each in vars(vocabulary).values() if isinstance(each, type) and dataclasses.is_dataclass(each)]
    assert {(each, field.name) for each in classes for field in dataclasses.fields(each)} == set(MUTATIONS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for row in {row for row, _ in MUTATIONS.values()}:
        made[row] = tmp_path_factory.mktemp("mutation")
        tiny.save(made[row], *tiny.ROWS[row])
    return made


def run(folder: Path, spec: Spec, rules: Any, dtype: torch.dtype, length: int) -> torch.Tensor:
    model, checkpoint = skeleton(spec, dtype), Checkpoint(folder)
    planned = plan(checkpoint.info, rules, model.destinations())
    check(planned, checkpoint)
    parameters = load(checkpoint, planned, dict(model.named_parameters()), torch.device("cpu"))
    model.load_state_dict(parameters, assign=True)
    with torch.no_grad():
        return model(tiny.tokens(tiny.BASE["vocab_size"], 2, length)).float()


@pytest.mark.parametrize(("owner", "field"), list(MUTATIONS), ids=lambda value: getattr(value, "__name__", value))
def test_flipping_a_field_is_noticed(owner: type, field: str, folders: dict[str, Path]) -> None:
    row, new = MUTATIONS[owner, field]
    spec, rules, _ = resolve(read(folders[row]))
    mutated = mutate(spec, owner, field, new)
    assert mutated != spec
    if (owner, field) == (Spec, "context"):  # no number of the model: it limits the prompt
        llm = minillm.load(folders[row])
        llm.spec = llm.prompts.spec = mutated
        with pytest.raises(ValueError, match="context 8"):
            llm.generate(prompt_ids=[1] * 9, max_new_tokens=1)
        return
    dtype = torch.bfloat16 if field == "cast" else torch.float32  # the order of rounding shows in bf16 only
    length = SHORT.get((owner, field), LENGTH)
    original = run(folders[row], spec, rules, dtype, length)
    if (owner, field) in MISFITS:
        with pytest.raises(ValueError, match=r"do not fit config\.json"):
            run(folders[row], mutated, rules, dtype, length)
        return
    changed = run(folders[row], mutated, rules, dtype, length)
    assert (changed - original).abs().max() > 1e-3  # 50 times the parity budget: parity would be red
