"""What the page of `minillm.routes` does when it is pointed at. All text from outside is set as text, never as HTML."""

from __future__ import annotations

SCRIPT = r"""
const R = DATA.report, L = R.layers, D = R.drift, $ = id => document.getElementById(id);
// Both scales read alike with any colour vision: cividis, and orange to purple around what is even.
const CIVIDIS = [[0,32,77],[49,68,107],[102,105,112],[148,142,119],[203,186,105],[255,234,70]];
const PUOR = [[127,59,8],[224,130,20],[254,224,182],[247,247,247],[216,218,235],[128,115,172],[45,0,75]];
const f = (x, n = 2) => x === null || x === undefined ? "none" : x.toFixed(n);
const pc = (x, n = 1) => x === null || x === undefined ? "none" : (100 * x).toFixed(n) + " %";
const colour = (stops, t) => {
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
  return `rgb(${stops[i].map((v, c) => Math.round(v + (stops[i + 1][c] - v) * (at - i)))})`;
};
const even = l => 1 / l.num_experts;
const VIEWS = {
  "load": {rows: L.map(l => l.load.map(x => x / even(l))), stops: CIVIDIS, low: 0, text: x => f(x) + " of the mean"},
  "weighted load": {rows: L.map(l => l.weighted_load.map(x => x / even(l))), stops: CIVIDIS, low: 0,
    text: x => f(x) + " of the mean"},
};
if (D) VIEWS["change of load"] = {rows: D.layers.map(l => l.load_change.map(x => 100 * x)), stops: PUOR,
  text: x => f(x) + " points"};
for (const v of Object.values(VIEWS)) {
  const all = v.rows.flat(), most = Math.max(...all.map(Math.abs)) || 1;
  v.high = v.low === 0 ? Math.min(most, 4) : most;  // one that is far busier must not make all others look alike
  v.more = v.high < most ? " and more" : ""; v.low = v.low === undefined ? -most : v.low;
}
const W = Math.max(...L.map(l => l.num_experts)), LEFT = 36, TOP = 18;
const CW = Math.max(4, Math.min(64, Math.floor(1080 / W))), CH = L.length > 40 ? 12 : 20;
let view = "load", layer = Math.max(L.findIndex(l => l.layer === DATA.layer), 0), expert = 0;

function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio; canvas.height = height * ratio;
  canvas.style.width = width + "px"; canvas.style.height = height + "px";
  const g = canvas.getContext("2d"), css = getComputedStyle(document.documentElement);
  g.scale(ratio, ratio); g.clearRect(0, 0, width, height);
  g.font = "11px system-ui, sans-serif"; g.textBaseline = "middle"; g.textAlign = "center";
  return [g, css.getPropertyValue("--soft").trim(), css.getPropertyValue("--ink").trim()];
}
function map() {
  const v = VIEWS[view], [g, soft, ink] = sized($("map"), LEFT + W * CW + 2, TOP + L.length * CH + 2);
  v.rows.forEach((row, y) => row.forEach((x, e) => {
    g.fillStyle = colour(v.stops, (x - v.low) / (v.high - v.low));
    g.fillRect(LEFT + e * CW, TOP + y * CH, CW - (CW > 6), CH - (CW > 6));
  }));
  g.fillStyle = soft;
  const every = Math.ceil(24 / CW), down = Math.ceil(12 / CH);
  for (let e = 0; e < W; e += every) g.fillText(e, LEFT + (e + 0.5) * CW, TOP / 2);
  for (let y = 0; y < L.length; y += down) g.fillText(L[y].layer, LEFT / 2, TOP + (y + 0.5) * CH);
  g.strokeStyle = ink; g.lineWidth = 2;
  g.strokeRect(LEFT + expert * CW - 1, TOP + layer * CH - 1, CW + 2 - (CW > 6), CH + 2 - (CW > 6));
  const legend = $("legend").getContext("2d");
  for (let x = 0; x < 140; x++) { legend.fillStyle = colour(v.stops, x / 139); legend.fillRect(x, 0, 1, 10); }
  $("low").textContent = v.text(v.low); $("high").textContent = v.text(v.high) + v.more;
}
function cell(event, canvas, left, top, width, height) {
  const box = canvas.getBoundingClientRect();
  return [Math.floor((event.clientX - box.left - left) / width), Math.floor((event.clientY - box.top - top) / height)];
}
function fill(table, head, rows) {
  const line = (cells, kind) => {
    const tr = document.createElement("tr");
    for (const each of cells) tr.appendChild(Object.assign(document.createElement(kind), {textContent: each}));
    return tr;
  };
  table.replaceChildren(line(head, "th"), ...rows.map(r => line(r, "td")));
}
function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}
function histogram(margin) {
  const box = $("margins"), w = 320, h = 150;
  if (!margin) { box.textContent = "No token had anything else to choose."; return; }
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
  const make = (name, attributes, text) => {
    const each = document.createElementNS(ns, name);
    for (const [key, value] of Object.entries(attributes)) each.setAttribute(key, value);
    each.textContent = text || ""; svg.appendChild(each);
  };
  svg.setAttribute("width", w); svg.setAttribute("height", h + 20);
  const most = Math.max(...margin.histogram), wide = w / margin.histogram.length;
  margin.histogram.forEach((n, i) => make("rect", {class: "bar", x: i * wide, y: h - n / most * (h - 14),
    width: wide - 1, height: n / most * (h - 14)}));
  make("text", {x: 0, y: h + 14}, "0"); make("text", {x: w, y: h + 14, "text-anchor": "end"}, f(margin.max, 3));
  make("text", {x: w, y: 10, "text-anchor": "end"}, `tallest bar: ${most.toLocaleString("en")} tokens`);
  const p = document.createElement("p"); p.className = "soft";
  p.textContent = `smallest ${margin.min.toPrecision(2)}, median ${f(margin.p50, 4)}, ` +
    `${pc(margin.near_ties)} below ${R.tie}` +
    (margin.without_rival ? `, ${margin.without_rival} without a rival` : "");
  box.replaceChildren(svg, p);
}
function lift(a, b) {
  const p = DATA.pairs[L[layer].layer], [i, j] = a < b ? [a, b] : [b, a];
  const expected = p[i][0] * p[j][0] / R.tokens;
  return [p[i][j - i], expected, expected < 5 ? null : p[i][j - i] / expected];  // of fewer it is chance
}
function pairs() {
  const n = L[layer].num_experts, size = Math.max(2, Math.min(28, Math.floor(420 / n))), canvas = $("pairs");
  canvas.hidden = !DATA.pairs[L[layer].layer];
  $("pairsaid").textContent = canvas.hidden ?
    "The pairs of all layers are too many for a page: write it with --layer." :
    "Purple: more often than independence would give, orange: less, white: as often; grey: too few.";
  if (canvas.hidden) return;
  const [g, soft] = sized(canvas, LEFT + n * size + 2, TOP + n * size + 2), every = Math.ceil(28 / size);
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) {
    const times = lift(a, b)[2];
    g.fillStyle = a === b || times === null ? soft : colour(PUOR, times / 2);
    g.fillRect(LEFT + b * size, TOP + a * size, size - (size > 4), size - (size > 4));
  }
  g.fillStyle = soft;
  for (let e = 0; e < n; e += every) {
    g.fillText(e, LEFT + (e + 0.5) * size, TOP / 2); g.fillText(e, LEFT / 2, TOP + (e + 0.5) * size);
  }
  canvas.onmousemove = event => {
    const [b, a] = cell(event, canvas, LEFT, TOP, size, size);
    if (a < 0 || b < 0 || a >= n || b >= n || a === b) return;
    const [count, expected, times] = lift(a, b);
    const share = times === null ? "" : `, ${f(times)} times`;
    $("pairsaid").textContent = `${a} and ${b}: ${count} tokens for ${f(expected, 1)} expected${share}`;
  };
}
function numbers(y, e) {
  const l = L[y], change = D ? `, change ${f(100 * D.layers[y].load_change[e])} points` : "";
  return `layer ${l.layer}, expert ${e}: ${pc(l.load[e], 2)} of picks (${f(l.load[e] / even(l))} of the mean), ` +
    `${pc(l.weighted_load[e], 2)} of weights${change}`;
}
function show() {
  const l = L[layer];
  expert = Math.min(expert, l.num_experts - 1);
  options($("layer"), L.map((each, i) => [i, each.layer]), layer);
  options($("expert"), l.load.map((_, e) => [e, e]), expert);
  $("facts").textContent = numbers(layer, expert);
  const tokens = l.specialists[expert];
  fill($("shown"), ["lift", "token", "times"], tokens.map(t => [f(t.lift), JSON.stringify(t.token), t.count]));
  if (!tokens.length) $("shown").textContent = "No frequent token comes here more than expected.";
  map(); histogram(l.margin); pairs();
}
function choose(y, e) { layer = y; expert = e; show(); }

options($("view"), Object.keys(VIEWS).map(name => [name, name]), view);
$("view").onchange = event => { view = event.target.value; map(); };
$("layer").onchange = event => choose(+event.target.value, expert);
$("expert").onchange = event => choose(layer, +event.target.value);
const inside = (y, e) => y >= 0 && y < L.length && e >= 0 && e < L[y].num_experts;
$("map").onmousemove = event => {
  const [e, y] = cell(event, $("map"), LEFT, TOP, CW, CH);
  if (inside(y, e)) $("said").textContent = numbers(y, e);
};
$("map").onclick = event => {
  const [e, y] = cell(event, $("map"), LEFT, TOP, CW, CH);
  if (inside(y, e)) choose(y, e);
};
matchMedia("(prefers-color-scheme: dark)").onchange = show;
fill($("layers"), ["layer", "experts", "effective", "max / mean", "unused", "entropy per token", "top weight",
  "margin p50", "near ties", "groups per token"], L.map(l => [l.layer, `${l.top_k} of ${l.num_experts}`,
  f(l.effective_experts, 1), f(l.max_over_mean), l.never_used.length, f(l.token_entropy), f(l.top1_share),
  f(l.margin && l.margin.p50, 4), pc(l.margin && l.margin.near_ties), l.groups ? f(l.groups.used_per_token) : "none"]));
if (D) {
  $("drift").hidden = false;
  $("driftname").textContent = `Against ${D.against}: ${D.tokens.toLocaleString("en")} tokens, ${D.dtype}`;
  const run = D.kind === "run", more = run ? ["flipped", "experts kept", "margin if flipped", "margin if kept",
    "near ties flip", "others flip"] : [];
  fill($("drifts"), ["layer", "divergence in bits", ...more], D.layers.map(d => [d.layer, f(d.divergence_bits, 6),
    ...(run ? [pc(d.flipped, 2), pc(d.experts_kept, 2), f(d.margin_of_flipped, 5), f(d.margin_of_kept, 5),
    pc(d.flipped_of_near_ties), pc(d.flipped_of_others, 2)] : [])]));
}
choose(layer, L[layer].load.indexOf(Math.max(...L[layer].load)));
"""
