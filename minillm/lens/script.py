"""The style and the script of `lens/page.py`. What comes from a checkpoint or a text is set as text, never as HTML."""

from __future__ import annotations

STYLE = """
#prompt { display: flex; flex-wrap: wrap; gap: 3px; }
#prompt button { font: inherit; color: inherit; border: 2px solid var(--line); border-radius: 4px; padding: 1px 5px;
  cursor: pointer; }
#prompt button[aria-pressed=true] { border-color: var(--ink); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
select { font: inherit; color: var(--ink); background: var(--paper); }
#lens td, #lens th { text-align: center; white-space: nowrap; padding: 2px 6px; cursor: pointer; }
#lens th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left; cursor: auto; }
#lens td[aria-selected=true] { outline: 2px solid var(--ink); outline-offset: -2px; }
#distribution td:last-child { text-align: left; width: 20rem; }
.bar { display: inline-block; height: .8em; background: var(--accent); min-width: 1px; }
svg text { fill: var(--ink); font-size: 12px; }
"""

SCRIPT = r"""
const $ = id => document.getElementById(id), T = DATA.tokens.length, levels = DATA.lens.ids.length;
const heads = layer => DATA.heads.entropy[layer].length, text = id => DATA.texts[id];
const maps = DATA.attention.map(each => Uint8Array.from(atob(each), c => c.charCodeAt(0)));
const attends = [...maps.keys()].filter(heads);  // the others are recurrent
const weight = (layer, head, query, key) => maps[layer][(head * T + query) * T + key] / 255;
const levelName = level => level ? `layer ${level - 1}` : "embedding";
const clamp = (value, most) => Math.max(0, Math.min(most, value));
const heat = share => `color-mix(in srgb, var(--accent) ${Math.round(65 * clamp(share, 1))}%, var(--paper))`;
const state = { at: T - 1, level: levels - 1, layer: 0, head: 0, key: null };

function make(parent, tag, content = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = content;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return parent.appendChild(node);
}

function choose(change, focus) {
  Object.assign(state, { key: null }, change);
  state.at = clamp(state.at, T - 1); state.level = clamp(state.level, levels - 1);
  state.layer = attends.find(layer => layer >= state.layer) ?? attends.at(-1);
  state.head = clamp(state.head, heads(state.layer) - 1);
  draw();
  try {
    history.replaceState(null, "", `#at=${state.at}&level=${state.level}&layer=${state.layer}&head=${state.head}`);
  } catch { /* Safari limits how often: the address stays behind */ }
  if (focus) focus().focus();
}

function drawPrompt() {
  const attention = $("colour").value === "attention";
  [...$("prompt").children].forEach((button, at) => {
    const nats = at ? DATA.following.nats[at - 1] : 0;
    const share = attention ? weight(state.layer, state.head, state.at, at) : nats / 8;
    button.style.background = heat(share);
    const surprisal = at ? `surprisal ${nats.toFixed(3)} nats` : "the first token";
    button.title = attention ? `weight ${share.toFixed(2)}` : surprisal;
    button.setAttribute("aria-pressed", at === state.at);
    button.tabIndex = at === state.at ? 0 : -1;
  });
}

function drawDistribution() {
  const { ids, probabilities, entropy } = DATA.distribution, at = state.at, next = DATA.following;
  const own = at + 1 < T ? `; what came is ${text(DATA.tokens[at + 1])}, ` +
    `probability ${next.probability[at].toFixed(4)}, rank ${next.rank[at]}` : "";
  $("following").textContent =
    `Behind ${text(DATA.tokens[at])} at position ${at}: entropy ${entropy[at].toFixed(3)} nats${own}.`;
  $("distribution").replaceChildren();
  ids[at].forEach((id, rank) => {
    const row = make($("distribution"), "tr"), p = probabilities[at][rank];
    make(row, "td", text(id)); make(row, "td", p.toFixed(4));
    make(make(row, "td"), "span", "", { class: "bar", style: `width: ${100 * p}%` });
  });
}

function buildLens() {
  const head = make($("lens"), "tr");
  make(head, "th");
  DATA.tokens.forEach((id, at) => make(head, "th", text(id), { scope: "col" }).onclick = () => choose({ at }));
  for (let level = levels - 1; level >= 0; level--) {
    const row = make($("lens"), "tr");
    make(row, "th", levelName(level), { scope: "row" });
    DATA.lens.ids[level].forEach((id, at) => {
      const cell = make(row, "td", text(id), { role: "gridcell" });
      cell.style.background = heat(DATA.lens.probability[level][at]);
      cell.onclick = () => choose({ at, level });
      cell.onmouseenter = () => describe(level, at);
    });
    row.onmouseleave = () => describe(state.level, state.at);
  }
}

const lensCell = () => $("lens").rows[levels - state.level].cells[state.at + 1];

function describe(level, at) {
  const of = key => DATA.lens[key][level][at];
  $("cell").textContent = `${levelName(level)}, behind ${text(DATA.tokens[at])}: ${text(of("ids"))} with probability ` +
    `${of("probability").toFixed(4)}; entropy ${of("entropy").toFixed(3)} nats, KL(final ‖ here) ` +
    `${of("kl").toFixed(3)} nats, rank of the final answer ${text(DATA.lens.ids[levels - 1][at])}: ${of("rank")}`;
}

function drawLens() {
  for (const cell of $("lens").querySelectorAll("td")) { cell.tabIndex = -1; cell.ariaSelected = "false"; }
  lensCell().tabIndex = 0; lensCell().ariaSelected = "true";
  const box = $("lens").parentElement, away = lensCell().offsetLeft - box.scrollLeft;
  if (away < 100 || away > box.clientWidth - 100) box.scrollLeft += away - box.clientWidth / 2;
  describe(state.level, state.at);
}

const size = clamp(Math.floor(640 / T), 28) || 1, margin = size < 12 ? 0 : 90;  // smaller cells have no labels

function drawLabels(pen, ink) {
  pen.fillStyle = ink;
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  DATA.tokens.forEach((id, at) => {
    const label = text(id).slice(0, 12), middle = (at + 0.5) * size;
    pen.textAlign = "right";
    pen.fillText(label, -6, middle, margin - 8);
    pen.save();
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "left";
    pen.fillText(label, 6, middle, margin - 8);
    pen.restore();
  });
}

function drawMap() {
  const { layer, head, at } = state, canvas = $("map"), side = margin + T * size;
  $("layer").value = layer;
  if ($("head").length !== heads(layer)) {
    $("head").replaceChildren();
    for (let i = 0; i < heads(layer); i++) make($("head"), "option", i);
  }
  $("head").value = head;
  const of = key => DATA.heads[key][layer][head];
  $("summary").textContent = `entropy ${of("entropy").toFixed(2)} nats, ${of("distance").toFixed(1)} positions back, ` +
    `${Math.round(100 * of("first"))} % on the first token` +
    (of("sink") ? `, ${Math.round(100 * of("sink"))} % on the sink` : "");
  const scale = window.devicePixelRatio || 1;
  canvas.width = canvas.height = side * scale;
  canvas.style.width = canvas.style.height = `${side}px`;
  canvas.setAttribute("aria-label", `attention of layer ${layer}, head ${head}: queries down, keys across`);
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  pen.scale(scale, scale);
  pen.translate(margin, margin);
  if (margin) drawLabels(pen, style.getPropertyValue("--ink"));
  pen.fillStyle = style.getPropertyValue("--accent");
  for (let query = 0; query < T; query++) for (let key = 0; key <= query; key++) {
    pen.globalAlpha = weight(layer, head, query, key);
    pen.fillRect(key * size, query * size, size, size);
  }
  pen.globalAlpha = 1;
  pen.strokeStyle = style.getPropertyValue("--line");
  pen.strokeRect(0.5, 0.5, T * size - 1, T * size - 1);
  pen.strokeStyle = style.getPropertyValue("--ink");
  pen.strokeRect(0.5, at * size + 0.5, T * size - 1, size - 1);
  if (state.key !== null) pen.strokeRect(state.key * size + 0.5, at * size + 0.5, size - 1, size - 1);
  drawLooks(at, state.key);
}

function drawLooks(query, key) {
  const of = key => weight(state.layer, state.head, query, key);
  const name = at => `${text(DATA.tokens[at])} (${at})`;
  const best = [...Array(query + 1).keys()].sort((a, b) => of(b) - of(a)).slice(0, 5);
  $("looks").textContent = key === null || key > query
    ? `${name(query)} looks at ${best.map(at => `${name(at)} ${of(at).toFixed(2)}`).join(", ")}`
    : `${name(query)} looks at ${name(key)}: ${of(key).toFixed(2)}`;
}

function svg(parent, tag, attributes, content = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = content;
  return parent.appendChild(node);
}

const PARTS = { residual: ["residual stream", "var(--accent)", ""], attention: ["attention adds", "#d55e00", "6 4"],
  ffn: ["feed-forward adds", "#009e73", "2 3"] };

function drawNorms() {
  const width = 760, height = 260, left = 60, right = 160, top = 12, bottom = 40;
  const values = Object.keys(PARTS).flatMap(part => DATA.norms[part].map(row => row[state.at])).filter(v => v > 0);
  const low = Math.floor(Math.log10(Math.min(...values, 1)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...values, 1))), low + 1);
  const x = level => left + level * (width - left - right) / Math.max(levels - 1, 1);
  const y = value => top + (high - Math.log10(Math.max(value, 10 ** low))) * (height - top - bottom) / (high - low);
  $("norms").replaceChildren();
  const chart = svg($("norms"), "svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img",
    style: `max-width: ${width}px`, "aria-label": "norms by layer" });
  for (let power = low; power <= high; power++) {
    svg(chart, "line", { x1: left, x2: width - right, y1: y(10 ** power), y2: y(10 ** power), stroke: "var(--line)" });
    const number = power < -3 || power > 5 ? `1e${power}` : `${Number((10 ** power).toPrecision(1))}`;
    svg(chart, "text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, number);
  }
  for (let level = 0; level < levels; level += Math.ceil(levels / 12))
    svg(chart, "text", { x: x(level), y: height - 18, "text-anchor": "middle" }, level ? level - 1 : "emb");
  svg(chart, "text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, "behind layer");
  Object.entries(PARTS).forEach(([part, [label, colour, dash]], row) => {
    const first = levels - DATA.norms[part].length;
    const points = DATA.norms[part].map((found, i) => [x(i + first), y(found[state.at])]);
    svg(chart, "polyline", { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": 2,
      "stroke-dasharray": dash });
    points.forEach(([cx, cy], i) => svg(svg(chart, "circle", { cx, cy, r: 4, fill: colour }), "title", {},
      `${label}, ${levelName(i + first)}: ${DATA.norms[part][i][state.at]}`));
    svg(chart, "line", { x1: width - right + 14, x2: width - right + 44, y1: 24 + 20 * row, y2: 24 + 20 * row,
      stroke: colour, "stroke-width": 2, "stroke-dasharray": dash });
    svg(chart, "text", { x: width - right + 50, y: 28 + 20 * row }, label);
  });
}

function buildPictures() {
  if (!DATA.pictures) return;
  make($("pictures"), "h2", "Pictures");
  make($("pictures"), "p", "What the chosen token looks at in this layer and head, bright where it is most.",
    { class: "soft" });
  for (const each of DATA.pictures) {
    const label = `${each.name}, ${each.columns} by ${each.rows} tokens`;
    each.canvas = make($("pictures"), "canvas", "", { width: each.width, height: each.height, role: "img" });
    each.canvas.setAttribute("aria-label", label);
    each.canvas.style.width = "min(100%, 26rem)";
    each.note = make($("pictures"), "p");
    each.levels = Uint8Array.from(atob(each.rgb), c => c.charCodeAt(0));
  }
}

function drawPictures() {
  for (const each of DATA.pictures || []) {
    const given = each.at.map(key => weight(state.layer, state.head, state.at, key));
    const most = Math.max(...given) || 1, all = given.reduce((sum, one) => sum + one, 0);
    const image = new ImageData(each.width, each.height);
    for (let y = 0; y < each.height; y++) for (let x = 0; x < each.width; x++) {
      const row = Math.floor(y * each.rows / each.height), column = Math.floor(x * each.columns / each.width);
      const at = y * each.width + x, share = Math.sqrt(given[row * each.columns + column] / most);
      for (let c = 0; c < 3; c++) image.data[4 * at + c] = each.levels[3 * at + c] * (0.2 + 0.8 * share);
      image.data[4 * at + 3] = 255;
    }
    each.canvas.getContext("2d").putImageData(image, 0, 0);
    each.note.textContent = `${each.name}: ${(100 * all).toFixed(1)} % of the weight of ` +
      `${text(DATA.tokens[state.at])} at position ${state.at}, in layer ${state.layer}, head ${state.head}; ` +
      `${(100 * Math.max(...given)).toFixed(1)} % in the largest cell.`;
  }
}

function draw() { drawPrompt(); drawDistribution(); drawLens(); drawMap(); drawPictures(); drawNorms(); }

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
function arrows(node, moved) {
  node.addEventListener("keydown", event => {
    if (!ARROWS[event.key]) return;
    event.preventDefault();
    moved(...ARROWS[event.key]);
  });
}

function read() {
  const given = [...new URLSearchParams(location.hash.slice(1))].filter(([key]) => key in state && key !== "key");
  choose(Object.fromEntries(given.map(([key, value]) => [key, Math.trunc(Number(value)) || 0])));
}

$("about").textContent = `${T} tokens, ${maps.length} layers, ${DATA.dtype}`;
DATA.tokens.forEach((id, at) => {
  make($("prompt"), "button", text(id), { type: "button" }).onclick = () => choose({ at });
});
attends.forEach(layer => make($("layer"), "option", layer));
buildPictures(); buildLens();
arrows($("prompt"), (x, y) => choose({ at: state.at + x - y }, () => $("prompt").children[state.at]));
arrows($("lens"), (x, y) => choose({ at: state.at + x, level: state.level + y }, lensCell));
arrows($("map"), (x, y) => {
  const at = clamp(state.at - y, T - 1);
  choose({ at, key: clamp((state.key ?? state.at) + x, at) });
});
$("colour").onchange = draw;
$("layer").onchange = () => choose({ layer: Number($("layer").value) });
$("head").onchange = () => choose({ head: Number($("head").value) });
const pointed = event =>
  [event.offsetY, event.offsetX].map(each => clamp(Math.floor((each - margin) / size), T - 1));
$("map").onmousemove = event => drawLooks(...pointed(event));
$("map").onmouseleave = () => drawLooks(state.at, state.key);
$("map").onclick = event => { const [at, key] = pointed(event); choose({ at, key }); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("hashchange", read);
read();
"""
