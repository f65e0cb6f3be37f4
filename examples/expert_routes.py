"""Which experts does each token go to? The routes of the demonstration model in Mixtral's layout, or of a folder.

With `collect_routing=True` a model returns, next to the logits, each layer's chosen experts and their weights.
"""

import sys
from pathlib import Path

import torch

import minillm
from minillm.model.balance import expert_load

llm = minillm.load(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "demo_moe", dtype="float32")
text = llm.generate("Once upon a time there was a", max_new_tokens=60, temperature=0).text
print(text, "\n")

ids = llm.tokenizer.encode("Once upon a time there was a" + text)
with torch.no_grad():
    _, routing = llm.model(torch.tensor([ids]), collect_routing=True)
if not any(routing):
    sys.exit("this model has no experts")
layers = {index: routed for index, routed in enumerate(routing) if routed is not None}

print("token      " + "".join(f"layer {index:<10}" for index in layers))
for position, token in enumerate(ids[:20]):
    row = ""
    for routed in layers.values():
        pairs = zip(routed.experts[position].tolist(), routed.weights[position].tolist(), strict=True)
        row += f"{'  '.join(f'{expert} {weight:.2f}' for expert, weight in pairs):<16}"
    print(f"{llm.tokenizer.decode([token])!r:<11}{row}")

print(f"\ntokens of {len(ids)} on each expert")
for index, routed in layers.items():
    print(f"layer {index}:", *expert_load(routed.experts, routed.logits.shape[1]).tolist())
