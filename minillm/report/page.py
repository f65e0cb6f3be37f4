"""A report as one HTML file that asks nobody for anything: styles, scripts and data are inside, and a policy in its
head has the browser refuse the rest."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.guard.writing import complete
from minillm.report import output, picture

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

WIDTH, HEIGHT = 900, 320  # of curves
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fff; --soft: #6b6b76; --line: #d8d8de; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ee; --paper: #16161a; --soft: #a0a0ac; --line: #3a3a44; --accent: #56b4e9; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.soft { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 2px 8px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
"""


def check(path: Path) -> None:
    """Raises ValueError before anything is computed, where the page could not be written."""
    output.check("--html", path, "a page", ".html")


def write(path: Path, title: str, body: str, data: Any = None, style: str = "", script: str = "") -> None:
    """Write a page, complete or not at all. `body` is HTML, whose texts the caller has escaped (`html.escape`); `data`
    is what the script finds in the constant DATA."""
    # In a script "</script>" and "<!--" would end or change it wherever they stand; JSON allows < for each <.
    values = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n"
        f"<script>\nconst DATA = {values};\n{script}\n</script>\n</body>\n</html>\n"
    )
    with complete(path) as file:
        file.write(text.encode())


def curves(named: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Up to three lines over steps, by their names, as SVG that needs nothing."""
    points = [point for each in named.values() for point in each]
    last, low, high = max(s for s, _ in points), min(v for _, v in points), max(v for _, v in points)
    spread = (high - low) or 1.0

    def at(step: int, value: float) -> str:
        return f"{50 + (WIDTH - 60) * step / last:.1f},{10 + (HEIGHT - 40) * (high - value) / spread:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="loss over steps">']
    for number, (name, values) in enumerate(named.items()):
        colour = picture.COLOURS[(5, 0, 1)[number]]
        line = " ".join(at(*point) for point in values)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{1 + (number > 0)}"/>')
        parts.append(f'<text x="{60 + 110 * number}" y="{HEIGHT - 6}" fill="{colour}">{name}</text>')
    for value, y in ((high, 16), (low, HEIGHT - 32)):
        parts.append(f'<text x="2" y="{y}" fill="currentColor" font-size="12">{value:.3g}</text>')
    return "".join([*parts, f'<text x="{WIDTH - 90}" y="{HEIGHT - 6}" fill="currentColor">{last} steps</text></svg>'])
