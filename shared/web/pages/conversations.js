// The list of conversations, kept in this browser: ids and titles, never what was said.

const KEPT_AS = "conversations";
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const LONGEST_TITLE = 60;

// Newest first.
export function conversations() {
  try {
    return JSON.parse(localStorage.getItem(KEPT_AS)).filter(
      ({ id, title }) => ID.test(id) && typeof title === "string",
    );
  } catch {
    return [];
  }
}

export const titleOf = (id) => conversations().find((one) => one.id === id)?.title ?? null;

// A conversation that is named anew keeps its place; one that is new comes first.
export function keep(id, title) {
  const known = conversations();
  const found = known.find((one) => one.id === id);
  if (found) found.title = shortened(title);
  else known.unshift({ id, title: shortened(title) });
  localStorage.setItem(KEPT_AS, JSON.stringify(known));
}

export function forget(id) {
  localStorage.setItem(KEPT_AS, JSON.stringify(conversations().filter((one) => one.id !== id)));
}

function shortened(text) {
  const line = text.trim().replaceAll(/\s+/g, " ");
  const letters = [...line];
  return letters.length > LONGEST_TITLE ? `${letters.slice(0, LONGEST_TITLE - 1).join("")}…` : line;
}
