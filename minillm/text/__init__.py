"""From text to token ids and back: `tokenizer.py`, the chat template in `chat.py`, readable forms of single tokens in
`pieces.py`."""
