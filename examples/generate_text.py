"""Generate from Python: one prompt, a batch, a stream. Give a checkpoint folder, or nothing for the built-in demo."""

import sys

import minillm

llm = minillm.load(sys.argv[1] if len(sys.argv) > 1 else None)

result = llm.generate("Once upon a time there was a", max_new_tokens=30, temperature=0)
print(result.text, f"({len(result.token_ids)} tokens, {result.finish_reason})")

# A batch of prompts of several lengths gives what each gives alone.
for each in llm.generate(["Long ago", "One windy morning everything was"], max_new_tokens=12, temperature=0):
    print("-", each.text)

# Reproducible draws, cut at a stop string, piece by piece.
for piece in llm.stream("There once was a", max_new_tokens=60, temperature=0.8, top_p=0.9, seed=1, stop="\n"):
    print(piece, end="|", flush=True)
print()
