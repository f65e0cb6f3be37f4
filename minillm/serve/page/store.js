// Chats and settings, kept in this browser. What cannot be kept (no room, no permission) lives as long as the page.

const CHATS = "minillm.chats";
const SETTINGS = "minillm.settings";
const MOST = 100;

function load(name, otherwise) {
  try {
    const found = JSON.parse(localStorage.getItem(name));
    const right = found && typeof found === "object" && Array.isArray(found) === Array.isArray(otherwise);
    return right ? found : otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const settings = load(SETTINGS, {});
export const chats = load(CHATS, []).filter((chat) => chat && Array.isArray(chat.messages));

export function keepSettings() {
  return keep(SETTINGS, settings);
}

// Scores of tokens are large: they are not kept.
export function keepChats() {
  const plain = (message) => ({ ...message, tokens: undefined, busy: undefined });
  const kept = chats.filter((chat) => chat.messages.length).slice(0, MOST);
  return keep(CHATS, kept.map((chat) => ({ ...chat, messages: chat.messages.map(plain) })));
}

export function newChat() {
  const chat = { id: crypto.randomUUID?.() ?? String(Math.random()), messages: [] };
  chats.unshift(chat);
  return chat;
}

export function title(chat) {
  const first = chat.messages.find((message) => message.role === "user");
  return first ? first.content.trim().slice(0, 60) || "…" : "New chat";
}
