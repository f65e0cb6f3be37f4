"""Where does a model first differ from transformers? Compare the hidden states behind every layer on the same tokens.

    python examples/first_divergent_layer.py PATH [--break LAYER]

`--break` damages one layer on purpose, to see the finding. Needs transformers (minillm[test]).
"""

import argparse

import torch
from transformers import AutoModelForCausalLM

import minillm
from minillm.hub import DEMO

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("weights", nargs="?", default=str(DEMO))
parser.add_argument("--break", dest="broken", type=int, metavar="LAYER")
arguments = parser.parse_args()

llm = minillm.load(arguments.weights, dtype="float32", device="cpu", kernels="reference")
theirs = AutoModelForCausalLM.from_pretrained(arguments.weights, dtype=torch.float32, attn_implementation="eager")
if arguments.broken is not None:
    llm.model.layers[arguments.broken].ffn_norm.weight.mul_(1.01)

ours: list[torch.Tensor] = []
for layer in llm.model.layers:
    layer.register_forward_hook(lambda module, inputs, output: ours.append(output))
tokens = torch.arange(1, 33)[None] % llm.spec.vocab_size
with torch.no_grad():
    logits = llm.model(tokens)
    reply = theirs(tokens, output_hidden_states=True)

first = None
# Their last hidden state is already normalised: the logits stand for it.
pairs = [*zip(ours[:-1], reply.hidden_states[1:-1], strict=True), (logits, reply.logits)]
for index, (a, b) in enumerate(pairs):
    difference, size = (a - b).abs().max().item(), b.abs().max().item()
    name = f"layer {index}" if index < len(ours) - 1 else f"layer {index}, norm and head"
    print(f"{name}: largest difference {difference:.1e} of {size:.1f}")
    if first is None and difference > 1e-5 * size:
        first = name
print(f"first divergent: {first}" if first else "no layer diverges")
