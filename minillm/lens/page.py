"""What `lens` shows, as one HTML page to click through: a token, a layer, a head. The script draws from the data."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.lens.script import SCRIPT, STYLE
from minillm.report import page
from minillm.text.pieces import visible

STEPS = 255  # of an attention weight in the page: one byte

BODY = """
<p class="soft" id="about"></p>
<h2>Prompt</h2>
<p><label>Colour by <select id="colour"><option value="surprisal">surprisal</option>
<option value="attention">what the chosen token looks at</option></select></label>
<span class="soft">Click a token, or move with the arrow keys.</span></p>
<div id="prompt" role="group" aria-label="tokens of the prompt"></div>
<h2>Next token</h2>
<p id="following" aria-live="polite"></p>
<table id="distribution"></table>
<h2>Logit lens</h2>
<p class="soft">The likeliest next token if the model ended behind that layer, in the colour of its probability. Arrow
keys move.</p>
<div class="scroll"><table id="lens" role="grid" aria-label="logit lens"></table></div>
<p id="cell" aria-live="polite"></p>
<h2>Attention</h2>
<p><label>Layer <select id="layer"></select></label> <label>Head <select id="head"></select></label>
<span class="soft" id="summary"></span></p>
<div class="scroll"><canvas id="map" tabindex="0" role="img"></canvas></div>
<p id="looks" aria-live="polite"></p>
<div id="pictures"></div>
<h2>Norms</h2>
<p class="soft">Euclidean lengths at the chosen token, on a logarithmic scale.</p>
<div id="norms"></div>
"""


def write(path: Path, report: Mapping[str, Any], maps: Sequence[Tensor]) -> None:
    """The report and its attention maps, each `[head, query, key]`, as a page."""
    texts = {token: visible(text) for token, text in report["texts"].items()}
    data = {**report, "weights": visible(report["weights"]), "texts": texts, "attention": [*map(_bytes, maps)]}
    page.write(path, f"Lens: {data['weights']}", BODY, data, STYLE, SCRIPT)


def _bytes(weights: Tensor) -> str:
    """One byte for each weight, in base64."""
    values = (weights * STEPS).round().byte().flatten().tolist()
    return base64.b64encode(bytes(values)).decode()
