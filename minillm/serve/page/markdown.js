// Markdown to DOM nodes. Text of a model becomes text nodes and nothing else: there is no way from here to HTML. Images
// are links, as fetching one would tell its server what the model was asked. Each line is looked at a bounded number of
// times.

const MAX_DEPTH = 8;
const SAFE = /^(https?:\/\/|mailto:)/i;
const INLINE = new RegExp([
  "(?<escape>\\\\[!-/:-@\\[-`{-~])",
  "(?<code>(?<tick>`+)(?!`)(?<inner>[^`][^\\n]{0,2000}?)(?<!`)\\k<tick>(?!`))",
  "(?<link>!?\\[(?<label>[^\\[\\]\\n]{0,300})\\]\\((?<url>[^()\\s]{1,2000})(?: \"[^\"\\n]{0,200}\")?\\))",
  "(?<bare>https?://[^\\s<>\"'`)\\]]{1,2000})",
  "(?<strong>\\*\\*(?=\\S)(?<bold>[^\\n]{1,1000}?)(?<=\\S)\\*\\*)",
  "(?<struck>~~(?=\\S)(?<gone>[^\\n]{1,1000}?)(?<=\\S)~~)",
  "(?<em>\\*(?=[^\\s*])(?<slant>[^*\\n]{1,1000}?)(?<=\\S)\\*)",
  "(?<under>(?<![\\p{L}\\p{N}_])_(?=[^\\s_])(?<low>[^_\\n]{1,1000}?)(?<=\\S)_(?![\\p{L}\\p{N}_]))",
].join("|"), "gu");

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function inline(text, depth = 0) {
  if (depth > MAX_DEPTH) return [text];
  const found = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    const part = match.groups;
    if (match.index > at) found.push(text.slice(at, match.index));
    at = match.index + match[0].length;
    if (part.escape) found.push(part.escape[1]);
    else if (part.code) found.push(element("code", {}, part.inner));
    else if (part.link) found.push(link(part.url, inline(part.label || part.url, depth + 1), match[0]));
    else if (part.bare) {
      const url = part.bare.replace(/[.,;:!?*_~]+$/, "");
      found.push(link(url, [url], url), part.bare.slice(url.length));
    } else if (part.strong) found.push(element("strong", {}, ...inline(part.bold, depth + 1)));
    else if (part.struck) found.push(element("s", {}, ...inline(part.gone, depth + 1)));
    else found.push(element("em", {}, ...inline(part.slant ?? part.low, depth + 1)));
  }
  if (at < text.length) found.push(text.slice(at));
  return found;
}

function link(url, children, source) {
  if (!SAFE.test(url)) return source;
  return element("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

export function markdown(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])(?:[ \t]+|$)(.*)$/;
const RULE = /^ {0,3}(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/;
const HEAD = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*$/;
const COLUMNS = /^ *\|?(?: *:?-+:? *\|)+ *(?::?-+:? *)?$/;

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) at += 1;
    else if ((match = FENCE.exec(line))) at = fenced(lines, at, match, found);
    else if ((match = HEAD.exec(line))) {
      found.push(element(`h${match[1].length}`, {}, ...inline(match[2])));
      at += 1;
    } else if (RULE.test(line)) {
      found.push(element("hr"));
      at += 1;
    } else if (/^ {0,3}>/.test(line) && depth < MAX_DEPTH) at = quoted(lines, at, depth, found);
    else if (ITEM.test(line) && depth < MAX_DEPTH) at = list(lines, at, depth, found);
    else if (line.includes("|") && COLUMNS.test(lines[at + 1] ?? "")) at = table(lines, at, found);
    else at = paragraph(lines, at, found);
  }
  return found;
}

function fenced(lines, at, match, found) {
  const inner = [];
  const closes = new RegExp(`^ {0,3}${match[1][0]}{${match[1].length},}[ \\t]*$`);
  for (at += 1; at < lines.length && !closes.test(lines[at]); at += 1) inner.push(lines[at]);
  found.push(code(inner.join("\n"), match[2].trim().split(/\s/)[0]));
  return at + 1;
}

export function code(text, language) {
  const copy = element("button", { type: "button", class: "small", onclick: async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  } }, "Copy");
  const header = element("header", {}, element("span", { class: "grow" }, language), copy);
  return element("div", { class: "code" }, header, element("pre", { tabindex: "0" }, element("code", {}, text)));
}

function quoted(lines, at, depth, found) {
  const inner = [];
  for (; at < lines.length && /^ {0,3}>/.test(lines[at]); at += 1) inner.push(lines[at].replace(/^ {0,3}> ?/, ""));
  found.push(element("blockquote", {}, ...blocks(inner, depth + 1)));
  return at;
}

function list(lines, at, depth, found) {
  const first = ITEM.exec(lines[at]);
  const base = first[1].length;
  const made = element(first[2] ? "ul" : "ol", first[2] ? {} : { start: first[3] });
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[1].length < base || match[1].length > base + 1 || !match[2] !== !first[2]) break;
    const inner = [match[4]];
    for (at += 1; at < lines.length; at += 1) {
      const blank = !lines[at].trim();
      const follows = blank ? lines[at + 1] ?? "" : lines[at];
      if (!follows.startsWith(" ".repeat(base + 2)) && (blank || startsBlock(follows))) break;
      inner.push(blank ? "" : lines[at].replace(new RegExp(`^ {0,${base + (match[2] ? 2 : 3)}}`), ""));
    }
    const children = blocks(inner, depth + 1);
    const only = children.length && children[0].localName === "p";
    made.append(element("li", {}, ...(only ? [...children[0].childNodes, ...children.slice(1)] : children)));
    while (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at += 1;
  }
  found.push(made);
  return at;
}

function startsBlock(line) {
  return ITEM.test(line) || FENCE.test(line) || HEAD.test(line) || RULE.test(line) || /^ {0,3}>/.test(line);
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((each) => each.trim());
}

function table(lines, at, found) {
  const names = cells(lines[at]);
  const head = element("tr", {}, ...names.map((each) => element("th", {}, ...inline(each))));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) {
    const row = cells(lines[at]).slice(0, names.length);
    body.append(element("tr", {}, ...row.map((each) => element("td", {}, ...inline(each)))));
  }
  found.push(element("div", { class: "table" }, element("table", {}, element("thead", {}, head), body)));
  return at;
}

function paragraph(lines, at, found) {
  const made = element("p");
  for (let first = true; at < lines.length && lines[at].trim() && (first || !startsBlock(lines[at])); at += 1) {
    if (!first) made.append(lines[at - 1].endsWith("  ") ? element("br") : "\n");
    made.append(...inline(lines[at].trim()));
    first = false;
  }
  found.push(made);
  return at;
}
