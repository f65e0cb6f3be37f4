// How likely each token of an answer was, and what else could have stood in its place.

import { element } from "./markdown.js";

const VISIBLE = { "\n": "↵\n", "\t": "⇥", "": "∅" };

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.01 ? "< 0.01 %" : `${share.toFixed(share < 10 ? 2 : share < 99 ? 0 : 1)} %`;
}

function shown(token) {
  return token.replace(/[\n\t]|^$/g, (each) => VISIBLE[each]);
}

function choices(entry) {
  const all = [...(entry.top_logprobs ?? [])];
  if (!all.some((each) => each.token === entry.token)) all.push(entry);
  const rows = all.map((each) => element("tr", { class: each.token === entry.token ? "chosen" : null },
    element("td", {}, shown(each.token).trimEnd() || "␣"),
    element("td", {}, element("meter", { min: 0, max: 1, value: Math.exp(each.logprob), "aria-hidden": "true" })),
    element("td", {}, percent(each.logprob))));
  return element("table", {}, element("tbody", {}, ...rows));
}

// Fill the panel with the tokens from `from` on; returns how many it shows.
export function look(tokens, panel, detail, from = 0) {
  if (from === 0) {
    panel.replaceChildren();
    detail.replaceChildren();
  }
  for (const entry of tokens.slice(from)) {
    const choose = () => {
      panel.querySelector('[aria-pressed="true"]')?.setAttribute("aria-pressed", "false");
      token.setAttribute("aria-pressed", "true");
      detail.replaceChildren(choices(entry));
    };
    const keys = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose();
    };
    // No button: those are boxes, in which text does not run on.
    const marks = { role: "button", tabindex: "0", "aria-pressed": "false", title: percent(entry.logprob) };
    const token = element("span", { ...marks, onclick: choose, onkeydown: keys }, shown(entry.token));
    token.style.setProperty("--odds", 1 - Math.exp(entry.logprob));
    panel.append(token);
  }
  return tokens.length;
}
