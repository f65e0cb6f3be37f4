"""How a picture becomes tokens: its size, patches, blocks and windows, and the coordinates of what follows.

    python examples/patches.py --plot patches.png

No model is needed: what is drawn are the functions that prompts are made with, at the sizes of Qwen2.5-VL.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from minillm.media.pictures import by_area
from minillm.media.places import coordinates
from minillm.model.tower import turning

SIDE, MERGE, WINDOW = 14, 2, 4  # pixels of a patch; patches, then blocks, on a side


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 200), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--plot", metavar="FILE")
    arguments = parser.parse_args(argv)
    wide, high = arguments.size
    height, width = by_area(high, wide, SIDE * MERGE, 56 * 56, 1_310_720)
    rows, columns = height // SIDE, width // SIDE
    blocks = rows // MERGE, columns // MERGE
    print(f"{wide} x {high} pixels are brought to {width} x {height}: {columns} x {rows} patches of {SIDE} pixels")
    count = f"{blocks[1]} x {blocks[0]} = {blocks[0] * blocks[1]} tokens"
    print(f"{rows * columns} patches in blocks of {MERGE} x {MERGE}: {count}")
    places, shift = coordinates([3, blocks, 2])
    at, number = places[:, -2].tolist(), places.shape[1] - 2
    print(f"the token behind 3 of text and the picture stands at {at}, not at {number}: shift {shift}")
    order, groups = turning.windows(turning.places(rows, columns, MERGE), WINDOW * MERGE)
    print("windows:", ", ".join(f"{count} of {size // MERGE**2} tokens" for count, size in groups))
    if arguments.plot:
        draw(rows, columns, order.tolist(), arguments.plot)


def draw(rows: int, columns: int, order: Sequence[int], path: str) -> None:
    """Each patch with its number in the order in which the tower has them; blocks and windows in heavier lines."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(columns * 0.4, rows * 0.4))
    places = turning.places(rows, columns, MERGE).tolist()
    for number, (row, column) in enumerate(places):
        token = number // MERGE**2
        window = (row // (WINDOW * MERGE) + column // (WINDOW * MERGE)) % 2
        axes.add_patch(plt.Rectangle((column, row), 1, 1, color=("#dbe9f6", "#fde8d0")[window]))
        axes.text(column + 0.5, row + 0.5, number, ha="center", va="center", fontsize=5, color="#888888")
        if number % MERGE**2 == 0:
            axes.text(column + 1, row + 1, token, ha="center", va="center", fontsize=11, weight="bold")
    for index in range(rows + 1):
        axes.axhline(index, color="#333333", linewidth=0.2 if index % MERGE else 1.2)
    for index in range(columns + 1):
        axes.axvline(index, color="#333333", linewidth=0.2 if index % MERGE else 1.2)
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], aspect="equal")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    print(f"wrote {path}; in windows the first patches are {order[:6]}")


if __name__ == "__main__":
    main()
