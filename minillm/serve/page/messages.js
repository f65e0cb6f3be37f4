// One message as nodes: reasoning folded, content, calls of tools, and what can be done with it.

import { code, element, markdown } from "./markdown.js";

export function drawMessage(message, all, acts, open = false) {
  if (message.role === "user") return drawUser(message, acts);
  if (message.role === "tool") {
    return element("div", { class: "message" }, element("div", { class: "call" }, `Result of ${message.name}`,
      code(message.content, "")));
  }
  const made = element("div", { class: "message assistant", "aria-busy": String(Boolean(message.busy)) });
  if (message.reasoning) {
    const summary = message.busy && !message.content ? "Reasoning …" : "Reasoning";
    made.append(element("details", { class: "thought", open: open ? "" : null }, element("summary", {}, summary),
      element("div", {}, message.reasoning)));
  }
  made.append(element("div", { class: "body markdown" }, ...markdown(message.content)));
  for (const call of (message.calls ?? []).filter(Boolean)) made.append(drawCall(message, call, all, acts));
  if (message.error) made.append(element("p", { class: "error", role: "alert" }, message.error));
  if (!message.busy) made.append(drawActs(message, acts));
  return made;
}

function drawUser(message, acts) {
  const body = element("div", { class: "body" }, message.content);
  const edit = () => {
    const box = element("textarea", { rows: 4, "aria-label": "Edit the message" });
    box.value = message.content;
    const submit = (event) => {
      event.preventDefault();
      acts.edit(message, box.value);
    };
    const form = element("form", { onsubmit: submit }, box,
      element("button", { class: "main" }, "Send"),
      element("button", { type: "button", onclick: () => form.replaceWith(body) }, "Cancel"));
    body.replaceWith(form);
    box.focus();
  };
  return element("div", { class: "message user" }, body,
    element("div", { class: "acts" }, button("Edit", edit)));
}

function drawCall(message, call, all, acts) {
  const name = element("strong", {}, call.name);
  const made = element("div", { class: "call" }, name, code(pretty(call.text), "arguments"));
  if (!message.busy && !all.some((each) => each.role === "tool" && each.id === call.id)) {
    const box = element("input", { "aria-label": `Result of ${call.name}`, placeholder: "Its result" });
    made.append(element("form", { onsubmit: (event) => {
      event.preventDefault();
      acts.result(message, call, box.value);
    } }, box, element("button", {}, "Give")));
  }
  return made;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function drawActs(message, acts) {
  const made = element("div", { class: "acts" }, button("Again", () => acts.again(message)),
    button("Copy", () => navigator.clipboard.writeText(message.content)));
  if (message.tokens?.length) made.append(button("Look inside", () => acts.inside(message)));
  const words = [];
  if (message.usage && message.seconds) {
    const count = message.usage.completion_tokens;
    words.push(`${count} tokens, ${(count / message.seconds).toFixed(1)} a second`);
  }
  if (message.first) words.push(`first after ${(message.first / 1000).toFixed(2)} s`);
  if (message.finish === "length") words.push("cut off at the limit");
  if (message.finish === "stopped") words.push("stopped");
  made.append(element("span", { class: "stats" }, words.join(" · ")));
  return made;
}

function button(words, act) {
  return element("button", { type: "button", class: "small", onclick: act }, words);
}
