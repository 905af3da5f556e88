// The list of conversations in this browser's local storage, for callers without a name: session IDs and titles, never
// messages. `isRefused`: its session can't be taken over.

const STORAGE_KEY = "conversations";
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const OPENAI_ID = /^(?:conv_([0-9a-f]{32})|resp_([0-9a-f]{32})[0-9a-f]{8})$/;
const MAX_TITLE_LENGTH = 60;

// The session that an ID names: its own, or that of a conversation or response of openai/v1. Null if it is no ID.
export function sessionOf(text) {
  const [, ofConversation, ofResponse] = OPENAI_ID.exec(text) ?? [];
  return [ofConversation ?? ofResponse ?? text].find((id) => ID.test(id)) ?? null;
}

// What every list of conversations can do, and all that is listed until it is known whose list to show.
export class EmptyList {
  isOnServer = false;
  #note;

  constructor(note = "") {
    this.#note = note;
  }

  // What to say below the list; "" if it speaks for itself.
  get note() {
    return this.#note;
  }

  // [{name, rows: [{id, title, hint}]}], in the order to show. A `name` is a heading, or null.
  get groups() {
    return [];
  }

  // Null if it is not listed.
  titleOf() {
    return null;
  }

  // A session was opened; `title` is for lists that have none of their own.
  opened() {}

  // A turn has begun with this message; `isNew`: and with it the session.
  started() {}

  // That turn has ended. Throws ApiError or ConnectionLost.
  async ended() {}

  // Makes `changes` of {title, pinned, archived}, and returns the session's new properties. Throws likewise.
  async change() {}

  removed() {}
}

export class BrowserList extends EmptyList {
  renameHint = "The title is stored only in this browser.";

  // Newest first.
  get groups() {
    return [{ name: null, rows: stored() }];
  }

  titleOf(id) {
    return stored().find((each) => each.id === id)?.title ?? null;
  }

  opened({ session_id: id }, title) {
    if (this.titleOf(id) === null) save([{ id, title: shorten(title) }, ...stored()]);
  }

  started(id, message) {
    this.opened({ session_id: id }, message);
  }

  async change(id, { title }) {
    save(stored().map((each) => (each.id === id ? { ...each, title: shorten(title) } : each)));
    return { title };
  }

  removed(id) {
    save(stored().filter((each) => each.id !== id));
  }

  // Those that may be taken over.
  get claimable() {
    return stored().filter(({ isRefused }) => !isRefused);
  }

  refused(id) {
    save(stored().map((each) => (each.id === id ? { ...each, isRefused: true } : each)));
  }
}

// The list once had the conversations of people and client keys too, as `owned`. The server lists those.
export function forgetOwned() {
  if (localStorage.getItem(STORAGE_KEY) !== null) save(stored());
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORAGE_KEY)).filter(
      ({ id, title, owned }) => ID.test(id) && typeof title === "string" && !owned,
    );
  } catch {
    return [];
  }
}

const save = (list) => localStorage.setItem(STORAGE_KEY, JSON.stringify(list));

// A title, made from a message.
export function shorten(text) {
  const line = text.trim().replaceAll(/\s+/g, " ");
  const characters = [...line];
  return characters.length > MAX_TITLE_LENGTH ? `${characters.slice(0, MAX_TITLE_LENGTH - 1).join("")}…` : line;
}
