"""A decoder from a spec written by hand: layers that look back over a window, and every third one over everything.

No checkpoint, no config: `spec/` is the vocabulary, a model is a tuple of layers. One training step shows that it
learns, a greedy continuation that the cache, with its rings of 16 slots, agrees with the model.
"""

import torch

from minillm.engine.inference import decode, prefill
from minillm.model.cache import Cache
from minillm.model.decoder import Decoder
from minillm.spec import GQA, GatedMLP, Layer, Norm, QKNorm, Rope
from minillm.spec import Decoder as Spec

norm = Norm(eps=1e-6)
local = GQA(num_heads=4, num_kv_heads=2, head_dim=16, rope=Rope(dim=16, theta=1e4), window=16, qk_norm=QKNorm(norm))
everywhere = GQA(num_heads=4, num_kv_heads=1, head_dim=16, rope=Rope(dim=16, theta=1e6), qk_norm=QKNorm(norm))
spec = Spec(
    vocab_size=256,
    hidden_size=64,
    layers=tuple(Layer(norm, everywhere if i % 3 == 2 else local, norm, GatedMLP(160)) for i in range(6)),
    final_norm=norm,
    tied=True,
    context=1024,
)

torch.manual_seed(0)
model = Decoder(spec)
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

text = torch.tensor(list(b"The quick brown fox jumps over the lazy dog. " * 6))[None]
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for step in range(241):
    loss = model.loss(text)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 80 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

with torch.inference_mode():
    prompt = list(b"The quick")
    cache = Cache(spec, batch=1, capacity=len(prompt) + 40, dtype=torch.float32)
    token = int(prefill(model, [prompt], cache).argmax())
    for _ in range(36):
        prompt.append(token)
        token = int(decode(model, [token], cache).argmax())
print(bytes(prompt).decode())
