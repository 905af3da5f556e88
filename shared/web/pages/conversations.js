// The list of conversations in this browser's local storage: session IDs and titles, never messages. `owned`: it was begun
// or opened with a client key, so it may not be found with another one.

const STORAGE_KEY = "conversations";
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const OPENAI_ID = /^(?:conv_([0-9a-f]{32})|resp_([0-9a-f]{32})[0-9a-f]{8})$/;
const MAX_TITLE_LENGTH = 60;

// The session that an ID names: its own, or that of a conversation or response of openai/v1. Null if it is no ID.
export function sessionOf(text) {
  const [, ofConversation, ofResponse] = OPENAI_ID.exec(text) ?? [];
  return [ofConversation ?? ofResponse ?? text].find((id) => ID.test(id)) ?? null;
}

// Newest first.
export function conversations() {
  try {
    return JSON.parse(localStorage.getItem(STORAGE_KEY)).filter(
      ({ id, title }) => ID.test(id) && typeof title === "string",
    );
  } catch {
    return [];
  }
}

export const titleOf = (id) => listed(id)?.title ?? null;
export const isOwned = (id) => listed(id)?.owned === true;

// A renamed conversation keeps its place; a new one goes to the top.
export function saveConversation(id, title, owned = isOwned(id)) {
  const list = conversations();
  const existing = list.find((each) => each.id === id);
  if (existing) existing.title = shorten(title);
  else list.unshift({ id, title: shorten(title), ...(owned && { owned }) });
  localStorage.setItem(STORAGE_KEY, JSON.stringify(list));
}

export function removeConversation(id) {
  localStorage.setItem(STORAGE_KEY, JSON.stringify(conversations().filter((each) => each.id !== id)));
}

const listed = (id) => conversations().find((each) => each.id === id);

function shorten(text) {
  const line = text.trim().replaceAll(/\s+/g, " ");
  const characters = [...line];
  return characters.length > MAX_TITLE_LENGTH ? `${characters.slice(0, MAX_TITLE_LENGTH - 1).join("")}…` : line;
}
