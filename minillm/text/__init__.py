"""From text to token ids and back: `tokenizer.py`, the chat template in `chat.py`, single tokens as people read them in
`pieces.py`."""
