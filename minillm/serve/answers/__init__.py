"""Answers of models, as text with special tokens in it, taken apart: content, reasoning and calls of tools.

Read `styles.py` first, the table of formats; then `reader.py`, which goes through an answer; `jsoncalls.py` and
`bodies.py`, which read what a call consists of; `grammar.py`, which makes a model write nothing else. `described.py`
has formats that a checkpoint describes itself.
"""

from minillm.serve.answers.pieces import Piece
from minillm.serve.answers.reader import Reader
from minillm.serve.answers.styles import Style, style_of, styles

__all__ = ["Piece", "Reader", "Style", "style_of", "styles"]
