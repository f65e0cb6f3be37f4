"""The page of `minillm.routes`: layers by experts to point at, and behind each its pairs, margins and tokens."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.guard.screen import printable
from minillm.report import page
from minillm.routes.script import SCRIPT

MAX_CELLS = 2_000_000  # of all layers' pairs together, up to which a page holds them

STYLE = """
canvas { display: block; cursor: pointer; } .grid { display: grid; grid-template-columns: auto 1fr; gap: 0 8px; }
.parts { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; } .parts > div { min-width: 280px; }
#said { min-height: 3em; } select { font: inherit; margin-right: 1rem; }
.bar { fill: var(--accent); } svg text { fill: var(--soft); font-size: 11px; } h3 { font-size: 1rem; }
.legend { display: inline-block; width: 140px; height: 10px; margin: 0 6px; vertical-align: middle; }
#shown td:nth-child(2) { text-align: left; white-space: pre; }
"""

BODY = """
<p class="soft">{about}</p>
<p>Shown <select id="view"></select> <span class="soft"><span id="low"></span><canvas class="legend" id="legend"
width="140" height="10"></canvas><span id="high"></span></span></p>
<p id="said" class="soft">Point at a cell for its numbers; click one to see its layer and its expert below.</p>
<div class="scroll"><canvas id="map" role="img" aria-label="layers by experts"></canvas></div>
<h2>Layer <select id="layer" aria-label="layer"></select> expert <select id="expert" aria-label="expert"></select></h2>
<p id="facts"></p>
<div class="parts">
<div><h3>Tokens that the expert sees most</h3><table id="shown"></table></div>
<div><h3>Margins</h3><div id="margins"></div></div>
<div><h3>Experts that go together</h3><p id="pairsaid" class="soft"></p><div class="scroll"><canvas id="pairs"
role="img" aria-label="pairs of experts"></canvas></div></div>
</div>
<h2>All layers</h2><div class="scroll"><table id="layers"></table></div>
<div id="drift" hidden><h2 id="driftname"></h2><div class="scroll"><table id="drifts"></table></div></div>
"""


def write(path: Path, report: dict[str, Any], layer: int | None, counts: dict[int, Tensor]) -> None:
    """Write the page. `counts` are the pairs of the layers that have them on it, as `measure.together` does."""
    about = (
        f"{report['tokens']:,} tokens of {printable(', '.join(report['text']))}, windows of {report['context']} every "
        f"{report['stride']}, {report['dtype']}"
    )
    data = {"report": report, "layer": layer, "pairs": {each: _triangle(found) for each, found in counts.items()}}
    body = BODY.format(about=html.escape(about))
    page.write(path, printable(f"Routes of {Path(report['weights']).resolve().name}"), body, data, STYLE, SCRIPT)


def _triangle(counts: Tensor) -> list[list[int]]:
    """Row a holds its pairs with experts a, a + 1, …: half of what is symmetric."""
    return [row[at:] for at, row in enumerate(counts.tolist())]
