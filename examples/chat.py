"""A conversation through the checkpoint's own chat template, with the history going along."""

import sys

import minillm

llm = minillm.load(sys.argv[1] if len(sys.argv) > 1 else None)
messages = []
for request in (
    "Tell me a story about an owl named Pip and a lamp.",
    "Tell me a story about a fox named Ruby and a drum.",
):
    messages.append({"role": "user", "content": request})
    result = llm.generate(messages=messages, max_new_tokens=140, temperature=0)
    print(f"> {request}\n{result.text}\n")
    messages.append({"role": "assistant", "content": result.text})
