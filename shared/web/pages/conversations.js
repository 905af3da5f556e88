// The list of conversations in this browser's local storage: session IDs and titles, never messages.

const STORAGE_KEY = "conversations";
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const MAX_TITLE_LENGTH = 60;

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

export const titleOf = (id) => conversations().find((each) => each.id === id)?.title ?? null;

// A renamed conversation keeps its place; a new one goes to the top.
export function saveConversation(id, title) {
  const list = conversations();
  const existing = list.find((each) => each.id === id);
  if (existing) existing.title = shorten(title);
  else list.unshift({ id, title: shorten(title) });
  localStorage.setItem(STORAGE_KEY, JSON.stringify(list));
}

export function removeConversation(id) {
  localStorage.setItem(STORAGE_KEY, JSON.stringify(conversations().filter((each) => each.id !== id)));
}

function shorten(text) {
  const line = text.trim().replaceAll(/\s+/g, " ");
  const characters = [...line];
  return characters.length > MAX_TITLE_LENGTH ? `${characters.slice(0, MAX_TITLE_LENGTH - 1).join("")}…` : line;
}
