"""The widths of a decoder's feed-forwards, and how experts are chosen, in the metadata of a GGUF
file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.spec import Decoder, MoE

SOFTMAX, SIGMOID = 1, 2  # what llama.cpp calls the scores of a router
# Whose experts have a width of their own; which say how many of their first layers are dense and how many experts every
# token goes to, or the width of the latter; which say how scores become weights.
FINE = """gemma4 qwen2moe qwen3moe qwen3vlmoe qwen3next qwen35moe gpt-oss deepseek deepseek2 minimax-m2 glm4moe dots1
    hy_v3 ernie4_5-moe mellum lfm2moe nemotron_h_moe hunyuan-moe""".split()
COUNTED = ("deepseek", "deepseek2", "glm4moe", "dots1")
SHARED_WIDTH = ("qwen2moe", "qwen3next", "qwen35moe", "hy_v3", "ernie4_5-moe", "nemotron_h_moe", "granitehybrid",
                "hunyuan-moe")  # fmt: skip
WEIGHED = (*COUNTED, "hy_v3", "nemotron_h_moe")
SCORED = ("deepseek2", "glm4moe", "dots1", "hy_v3", "minimax-m2", "lfm2moe", "nemotron_h_moe")
GROUPED = ("deepseek2", "glm4moe", "dots1", "nemotron_h_moe")


def widths(decoder: Decoder, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of an architecture says; of its config's `values` comes a width that mixtures leave unused."""
    ffns = [layer.ffn for layer in decoder.layers]
    moe = next((each for each in ffns if isinstance(each, MoE)), None)
    stated = values.get("intermediate_size")
    width = stated if type(stated) is int else next((each.intermediate_size for each in ffns if each), 0)
    said: dict[str, Any] = {"feed_forward_length": width}
    if moe is not None:
        return {**said, **_mixture(moe, name, next(i for i, each in enumerate(ffns) if isinstance(each, MoE)))}
    if name == "deepseek2":  # wants to know of experts all the same
        said |= {"expert_feed_forward_length": width, "expert_shared_count": 0}
        said["leading_dense_block_count"] = len(ffns)
    return said


def _mixture(moe: MoE, name: str, dense: int) -> dict[str, Any]:
    """Of the experts behind the first `dense` layers."""
    router, shared = moe.router, moe.shared.intermediate_size if moe.shared else 0
    said: dict[str, Any] = {"expert_count": router.num_experts, "expert_used_count": router.top_k}
    if name in FINE:
        said["expert_feed_forward_length"] = moe.intermediate_size
    if name in SHARED_WIDTH and shared:
        said["expert_shared_feed_forward_length"] = shared
    if name in COUNTED:
        said |= {"leading_dense_block_count": dense, "expert_shared_count": shared // moe.intermediate_size}
    if name == "lfm2moe":
        said["leading_dense_block_count"] = dense
    if name == "nemotron_h_moe":
        said["expert_shared_count"] = 1
    if name == "ernie4_5-moe":
        said |= {"leading_dense_block_count": dense, "interleave_moe_layer_step": 1}
    if name in WEIGHED:
        said |= {"expert_weights_scale": float(router.scale), "expert_weights_norm": router.renormalize}
    if name in SCORED:
        said["expert_gating_func"] = SIGMOID if router.score == "sigmoid" else SOFTMAX
    if name in GROUPED:
        said |= {"expert_group_count": router.num_groups, "expert_group_used_count": router.top_groups}
    return said
