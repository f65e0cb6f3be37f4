// The page: what is typed goes to the server, what comes back is shown as it comes.

import { Failure, answers, models } from "./api.js";
import { look } from "./look.js";
import { element } from "./markdown.js";
import { drawMessage } from "./messages.js";
import { chats, keepChats, keepSettings, newChat, settings, title } from "./store.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_completion_tokens", "seed"];
let chat = chats[0] ?? newChat();
let running = null; // what stops the answer that is coming

const inside = () => $("inside").getAttribute("aria-pressed") === "true";

function say(text) {
  $("status").textContent = text;
}

function save() {
  if (!keepChats()) say("This browser has no room for more chats: delete some.");
}

async function askKey() {
  const dialog = $("key");
  $("key-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return $("key-value").value.trim();
}

function drawChats() {
  $("chats").replaceChildren(...chats.map((each) => {
    const open = element("button", { type: "button", onclick: () => openChat(each) }, title(each));
    const drop = element("button", { type: "button", class: "small", "aria-label": `Delete ${title(each)}`,
      onclick: () => deleteChat(each) }, "✕");
    return element("li", { "aria-current": each === chat ? "true" : null }, open, drop);
  }));
}

function openChat(which) {
  running?.abort();
  chat = which;
  document.body.classList.remove("menu");
  $("menu").setAttribute("aria-expanded", "false");
  drawChats();
  draw();
  $("text").focus();
}

function deleteChat(which) {
  chats.splice(chats.indexOf(which), 1);
  save();
  if (which === chat) openChat(chats[0] ?? newChat());
  else drawChats();
}

const acts = {
  edit(message, text) {
    cut(chat.messages.indexOf(message));
    send(text);
  },
  again(message) {
    cut(chat.messages.indexOf(message));
    answer();
  },
  result(message, call, text) {
    chat.messages.push({ role: "tool", content: text, id: call.id, name: call.name });
    const given = new Set(chat.messages.filter((each) => each.role === "tool").map((each) => each.id));
    if (message.calls.every((each) => given.has(each.id))) answer();
    else draw();
  },
  inside(message) {
    showInside(true, message);
  },
};

function cut(at) {
  running?.abort();
  chat.messages.splice(at);
}

function draw() {
  const hello = element("p", { class: "hello" }, "Ask something.");
  const shown = chat.messages.map((message) => drawMessage(message, chat.messages, acts));
  $("log").replaceChildren(...(shown.length ? shown : [hello]));
  $("log").scrollTop = $("log").scrollHeight;
  showInside(inside());
}

function showInside(on, message = [...chat.messages].reverse().find((each) => each.role === "assistant")) {
  $("inside").setAttribute("aria-pressed", String(on));
  $("look").hidden = !on;
  if (!on) return;
  const tokens = message?.tokens ?? [];
  look(tokens, $("tokens"), $("choices"));
  if (!tokens.length) $("tokens").textContent = "Tokens of the next answer appear here.";
}

// What the server is asked, of a chat and the settings.
function request() {
  const said = chat.messages.filter((each) => each.role !== "assistant" || each.content || each.calls.length);
  const messages = said.map((each) => {
    if (each.role === "tool") return { role: "tool", tool_call_id: each.id, content: each.content };
    const calls = (each.calls ?? []).map(({ id, name, text }) => (
      { id, type: "function", function: { name, arguments: text || "{}" } }));
    return { role: each.role, content: each.content, ...(calls.length ? { tool_calls: calls } : {}) };
  });
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system });
  const asked = { model: $("model").value, messages };
  for (const name of NUMBERS) if (settings[name]) asked[name] = Number(settings[name]);
  const stops = (settings.stop ?? "").split("\n").filter(Boolean).slice(0, 4);
  if (stops.length) asked.stop = stops;
  if (settings.tools?.trim()) asked.tools = JSON.parse(settings.tools);
  if (settings.thinking) asked.chat_template_kwargs = { enable_thinking: settings.thinking === "true" };
  if (inside()) Object.assign(asked, { logprobs: true, top_logprobs: 5 });
  return asked;
}

function take(message, chunk) {
  if (chunk.usage) message.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  message.content += delta.content ?? "";
  message.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
  for (const part of delta.tool_calls ?? []) {
    const call = (message.calls[part.index] ??= { id: "", name: "", text: "" });
    call.id = part.id ?? call.id;
    call.name = part.function?.name ?? call.name;
    call.text += part.function?.arguments ?? "";
  }
  message.tokens.push(...(choice.logprobs?.content ?? []));
  message.finish = choice.finish_reason ?? message.finish;
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", calls: [], tokens: [], busy: true };
  const mine = chat;
  const stop = new AbortController();
  mine.messages.push(message);
  running = stop;
  busy(true);
  draw();
  const began = performance.now();
  let drawn = false;
  let seen = 0;
  const redraw = () => {
    drawn = false;
    if (chat !== mine || !mine.messages.includes(message)) return;
    const log = $("log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    const open = log.lastElementChild?.querySelector("details")?.open;
    log.lastElementChild?.replaceWith(drawMessage(message, mine.messages, acts, open));
    if (atEnd) log.scrollTop = log.scrollHeight;
    if (inside() && message.tokens.length) seen = look(message.tokens, $("tokens"), $("choices"), seen);
  };
  try {
    for await (const chunk of answers(request(), askKey, stop.signal)) {
      take(message, chunk);
      if (message.content || message.reasoning || message.calls.length) message.first ??= performance.now() - began;
      if (!drawn) requestAnimationFrame(redraw);
      drawn = true;
    }
  } catch (error) {
    if (stop.signal.aborted) message.finish = "stopped";
    else message.error = error instanceof Failure ? error.message : "The server is not there.";
  }
  message.seconds = (performance.now() - began) / 1000;
  message.busy = false;
  redraw();
  save();
  drawChats();
  if (running === stop) {
    running = null;
    busy(false);
  }
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  say(on ? "Answering …" : "");
}

function send(text) {
  if (!text.trim() || running) return;
  chat.messages.push({ role: "user", content: text });
  chats.splice(chats.indexOf(chat), 1);
  chats.unshift(chat);
  drawChats();
  answer();
}

function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;
}

function listen() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    const text = $("text").value;
    $("text").value = "";
    grow();
    send(text);
  });
  // Enter that ends a composition, as of Japanese, chooses a word: it does not send.
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
  $("text").addEventListener("input", grow);
  $("stop").addEventListener("click", () => running?.abort());
  $("new").addEventListener("click", () => openChat(chats.find((each) => !each.messages.length) ?? newChat()));
  $("menu").addEventListener("click", () => {
    $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("menu")));
  });
  $("log").addEventListener("click", () => document.body.classList.remove("menu"));
  $("inside").addEventListener("click", () => showInside(!inside()));
  $("close-look").addEventListener("click", () => showInside(false));
  $("model").addEventListener("change", () => { settings.model = $("model").value; keepSettings(); });
  $("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    settings.theme = (settings.theme ?? dark) === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = settings.theme;
    keepSettings();
  });
  $("open-settings").addEventListener("click", openSettings);
  $("settings").querySelector("form").addEventListener("submit", closeSettings);
}

function openSettings() {
  const form = $("settings").querySelector("form");
  for (const field of form.elements) if (field.name) field.value = settings[field.name] ?? "";
  $("settings-error").textContent = "";
  $("settings").showModal();
}

function closeSettings(event) {
  const given = Object.fromEntries(new FormData(event.target));
  try {
    if (given.tools.trim() && !Array.isArray(JSON.parse(given.tools))) throw new SyntaxError("tools are no JSON list");
  } catch (error) {
    event.preventDefault();
    $("settings-error").textContent = `Tools: ${error.message}`;
    return;
  }
  Object.assign(settings, given);
  keepSettings();
}

async function start() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  listen();
  drawChats();
  draw();
  try {
    const names = await models(askKey);
    $("model").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    if (names.includes(settings.model)) $("model").value = settings.model;
  } catch (error) {
    say(error instanceof Failure ? error.message : "The server is not there.");
  }
}

start();
