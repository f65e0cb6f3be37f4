"""Llama, except: attention and feed-forward read the same normalised x and are added to it together; query head i
shares kv head i mod K, where Llama's shares i div (H / K), and the config's `num_key_value_heads` is wrong: K is
num_attention_heads / n_shared_head.

    n = norm(x);  y = x + attention(n) + swiglu(n)

PLaMo-13B, PLaMo-13B-Instruct (Preferred Networks, 2023). Rearranging the heads of q, and what `o_proj` takes of each,
makes Llama's attention of it. Its tokenizer.model is read as that of any SentencePiece vocabulary, without the Python
class beside it.

PLaMo-2 is not covered: every other layer is a Mamba, which is no attention and needs a cache of another kind.
"""

from __future__ import annotations

from minillm.config import Config
from minillm.families import llama
from minillm.families.shared import common, rotary
from minillm.spec import GQA, Decoder

DEFAULTS = {
    **llama.DEFAULTS,
    "intermediate_size": 13312,
    "n_shared_head": 8,
}

LAYER = "model.layers.layers.{i}."


def rules(config: Config) -> dict[str, str]:
    shared = config.size("n_shared_head")
    heads = f"shared={shared} kv={config.size('num_attention_heads') // shared}"
    return {
        "model.embed_tokens.weight": "embedding.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "head.weight",
        f"{LAYER}norm.weight": "layers.{i}.attention_norm.weight",
        f"{LAYER}self_attn.q_proj.weight": "layers.{i}.attention.qkv.weight[q]: "
        f"(shared kv d) e -> (kv shared d) e, {heads}",
        f"{LAYER}self_attn.k_proj.weight": "layers.{i}.attention.qkv.weight[k]",
        f"{LAYER}self_attn.v_proj.weight": "layers.{i}.attention.qkv.weight[v]",
        f"{LAYER}self_attn.o_proj.weight": "layers.{i}.attention.out.weight: "
        f"e (shared kv d) -> e (kv shared d), {heads}",
        f"{LAYER}self_attn.rotary_emb.inv_freq": "DROP",
        f"{LAYER}mlp.gate_proj.weight": "layers.{i}.ffn.gate_up.weight[gate]",
        f"{LAYER}mlp.up_proj.weight": "layers.{i}.ffn.gate_up.weight[up]",
        f"{LAYER}mlp.down_proj.weight": "layers.{i}.ffn.down.weight",
    }


def spec(config: Config) -> Decoder:
    num_heads, shared = config.size("num_attention_heads"), config.size("n_shared_head")
    hidden_size = config.size("hidden_size")
    config.optional_size("num_key_value_heads")  # published, and wrong
    if num_heads % shared or hidden_size % num_heads:
        raise ValueError(
            f"config.json: num_attention_heads {num_heads} must be a multiple of n_shared_head {shared}, "
            f"and hidden_size {hidden_size} one of the former"
        )
    head_dim = hidden_size // num_heads
    attention = GQA(num_heads, num_heads // shared, head_dim, rotary.rope(config, head_dim))
    made = common.dense(config, [attention] * common.num_layers(config))
    return common.every_layer(made, ffn_norm=None, parallel=True)
