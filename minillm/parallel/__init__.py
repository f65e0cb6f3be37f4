"""One model over several processes. Read `split.py` first, which says what each of them holds of every layer, or
`stages.py`, where each has some of the layers, and `cut.py`, how it is read (`part.py` brings them together); then
`ranks.py`, what crosses between them, `follow.py`, who says what is computed, and `launch.py`, how they are started.
Training shares a model out otherwise: `sharded.py`."""
