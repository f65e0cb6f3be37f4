"""One model over several processes. Read `split.py` first, which says what each of them holds, and `cut.py`, how it is
read; then `ranks.py`, what crosses between them, `follow.py`, who says what is computed, and `launch.py`, how they are
started."""
