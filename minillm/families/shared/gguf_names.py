"""What llama.cpp calls the architectures of some families, their numbers and their tensors.

Its graph of an architecture is fixed, so that a file can say sizes but not, for example, that a layer has a window:
only a decoder that is layer by layer what llama.cpp computes has a description.
"""

from __future__ import annotations

from minillm.spec import GQA, Decoder, GatedMLP, Layer, Llama3Scaling, MoE, Norm, QKNorm, Rope, Router

# By whether q and k are normalised, q, k and v have biases, and the feed-forward is a mixture.
ARCHITECTURES = {
    (False, False, False): "llama",
    (False, False, True): "llama",
    (False, True, False): "qwen2",
    (True, False, False): "qwen3",
    (True, False, True): "qwen3moe",
}

# Its Llama pairs neighbours when it rotates, so that the rows of each head of q and k are stored the other way round.
TURNED = "(head half pair) ... -> (head pair half) ..., head={heads} pair=2"

# Rows of our parameters, as `Decoder.destinations` names them -> tensor; experts come one behind the other.
TENSORS = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
    "layers.{i}.attention_norm.weight": "blk.{i}.attn_norm.weight",
    "layers.{i}.attention.qkv.weight[q]": "blk.{i}.attn_q.weight",
    "layers.{i}.attention.qkv.weight[k]": "blk.{i}.attn_k.weight",
    "layers.{i}.attention.qkv.weight[v]": "blk.{i}.attn_v.weight",
    "layers.{i}.attention.qkv.bias[q]": "blk.{i}.attn_q.bias",
    "layers.{i}.attention.qkv.bias[k]": "blk.{i}.attn_k.bias",
    "layers.{i}.attention.qkv.bias[v]": "blk.{i}.attn_v.bias",
    "layers.{i}.attention.q_norm.weight": "blk.{i}.attn_q_norm.weight",
    "layers.{i}.attention.k_norm.weight": "blk.{i}.attn_k_norm.weight",
    "layers.{i}.attention.out.weight": "blk.{i}.attn_output.weight",
    "layers.{i}.ffn_norm.weight": "blk.{i}.ffn_norm.weight",
    "layers.{i}.ffn.gate_up.weight[gate]": "blk.{i}.ffn_gate.weight",
    "layers.{i}.ffn.gate_up.weight[up]": "blk.{i}.ffn_up.weight",
    "layers.{i}.ffn.down.weight": "blk.{i}.ffn_down.weight",
    "layers.{i}.ffn.router.weight": "blk.{i}.ffn_gate_inp.weight",
    "layers.{i}.ffn.experts.gate_up[{e}.gate]": "blk.{i}.ffn_gate_exps.weight",
    "layers.{i}.ffn.experts.gate_up[{e}.up]": "blk.{i}.ffn_up_exps.weight",
    "layers.{i}.ffn.experts.down[{e}]": "blk.{i}.ffn_down_exps.weight",
}
ROPE_FACTORS = "rope_freqs.weight"


def metadata(decoder: Decoder) -> dict[str, str | int | float]:
    """What a file says of a decoder, with a vocabulary without words. Raises ValueError for what llama.cpp lacks."""
    attention, ffn, norm = decoder.layers[0].attention, decoder.layers[0].ffn, decoder.final_norm
    name = _architecture(decoder)
    assert isinstance(attention, GQA)
    assert isinstance(ffn, (GatedMLP, MoE))
    assert isinstance(norm, Norm)
    experts = {}
    if isinstance(ffn, MoE):
        experts = {
            "expert_count": ffn.router.num_experts,
            "expert_used_count": ffn.router.top_k,
            "expert_feed_forward_length": ffn.intermediate_size,
        }
    values: dict[str, int | float] = {
        "vocab_size": decoder.vocab_size,
        "context_length": decoder.context,
        "embedding_length": decoder.hidden_size,
        "block_count": len(decoder.layers),
        "feed_forward_length": ffn.intermediate_size,
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": float(norm.eps),
        "rope.dimension_count": attention.rope.dim,
        "rope.freq_base": float(attention.rope.theta),
        **experts,
    }
    described = {f"{name}.{key}": value for key, value in values.items()}
    return {"general.architecture": name, "tokenizer.ggml.model": "none", **described}


def layout(decoder: Decoder, tensor: str) -> str | None:
    """How a tensor's rows lie, as `weights/layout.py` writes it; None where they lie as ours."""
    attention = decoder.layers[0].attention
    assert isinstance(attention, GQA)
    heads = {"attn_q": attention.num_heads, "attn_k": attention.num_kv_heads}
    part = tensor.split(".")[-2]
    turned = _architecture(decoder) == "llama" and part in heads
    return TURNED.format(heads=heads[part]) if turned else None


def _architecture(decoder: Decoder) -> str:
    """The name, where the decoder is as llama.cpp has it."""
    found, norm = decoder.layers[0], decoder.final_norm
    if isinstance(found.attention, GQA) and isinstance(found.ffn, (GatedMLP, MoE)) and isinstance(norm, Norm):
        attention, ffn, plain = found.attention, found.ffn, Norm(norm.eps)
        traits = (attention.qk_norm is not None, attention.qkv_bias, isinstance(ffn, MoE))
        name, rope = ARCHITECTURES.get(traits), attention.rope
        scaling = rope.scaling if name == "llama" and isinstance(rope.scaling, Llama3Scaling) else None
        same = GQA(
            attention.num_heads,
            attention.num_kv_heads,
            attention.head_dim,
            Rope(attention.head_dim, rope.theta, scaling=scaling),
            qkv_bias=attention.qkv_bias,
            qk_norm=QKNorm(plain) if attention.qk_norm else None,
        )
        mlp: GatedMLP | MoE = GatedMLP(ffn.intermediate_size)
        if isinstance(ffn, MoE):
            router = Router(ffn.router.num_experts, ffn.router.top_k, renormalize=True)
            mlp = MoE(router, ffn.intermediate_size)
        layers = (Layer(plain, same, plain, mlp),) * len(decoder.layers)
        known = Decoder(decoder.vocab_size, decoder.hidden_size, layers, plain, decoder.tied, decoder.context)
        if name and decoder == known:
            return name
    raise ValueError(
        "llama.cpp is given weights of plain Llama, Qwen2, Qwen3 and Qwen3-MoE layers only (no windows, no scaling of "
        "positions but llama3's), and this checkpoint has others; leave llama.cpp out of --against"
    )
