"""One model over several processes. Read `split.py` first, which says what each of them holds of every layer, or
`stages.py`, where each has some of the layers, and `cut.py`, how it is read (`part.py` brings them together, `share.py`
cuts adapters the same way); then `ranks.py`, what crosses between them, `gradients.py`, what of it on the way back,
`follow.py`, who says what is computed, and `launch.py`, how they are started."""
