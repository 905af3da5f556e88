// The caller's list of sessions, which the server stores: as much of it as was loaded. Nothing of it is stored here.

import { ApiError, ConnectionLost } from "./api.js";
import { EmptyList, shorten } from "./conversations.js";

const PAGE_SESSIONS = 30; // each is a request to storage
const UNTITLED = "Untitled";
const TIME = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const MONTH = new Intl.DateTimeFormat("en-GB", { month: "long", year: "numeric" });

export class SessionList extends EmptyList {
  isOnServer = true;
  renameHint = "The title is stored with the conversation.";
  search = "";
  archived = false;
  problem = ""; // why the last page could not be loaded
  #api;
  #onChange;
  #sessions = [];
  #after = null; // of the next page; "" for the first one, null if there is none
  #isOutdated = false; // whether the next page replaces what is loaded
  #loading = null;
  #notListed = new Set(); // IDs of sessions that were used, and are in no page that is loaded

  // `onChange(list)`: called after every change.
  constructor(api, onChange) {
    super();
    this.#api = api;
    this.#onChange = onChange;
  }

  get groups() {
    return byDay(this.#sessions).map(({ name, sessions }) => ({ name, rows: sessions.map(row) }));
  }

  get hasMore() {
    return this.#after !== null;
  }

  get isLoading() {
    return this.#loading !== null;
  }

  get note() {
    if (this.problem) return this.problem;
    if (this.isLoading && (this.#isOutdated || !this.#sessions.length)) return "Loading…";
    if (this.#sessions.length) return "";
    const kind = this.archived ? "archived conversation" : "conversation";
    return this.search ? `No ${kind} has “${this.search}” in its title.` : `No ${kind}s yet.`;
  }

  // Loads the first page of the list. An outdated request is aborted.
  load({ search = this.search, archived = this.archived } = {}) {
    this.close();
    Object.assign(this, { search, archived });
    [this.#after, this.#isOutdated] = ["", true];
    return this.more();
  }

  // Loads the next page. A page may be empty although there are more.
  async more() {
    if (this.isLoading || !this.hasMore) return;
    const own = (this.#loading = new AbortController());
    this.problem = "";
    this.#onChange(this);
    try {
      while (this.hasMore) {
        const { search, archived } = this;
        const query = new URLSearchParams({ limit: PAGE_SESSIONS, after: this.#after, archived, search });
        const page = await this.#api.json(`sessions?${query}`, { signal: own.signal });
        if (own.signal.aborted) return;
        this.#add(page);
        if (page.sessions.length) break;
      }
    } catch (error) {
      if (own.signal.aborted) return;
      if (!(error instanceof ApiError || error instanceof ConnectionLost)) throw error;
      if (this.#isOutdated) this.#sessions = [];
      this.problem = error.message;
    } finally {
      if (this.#loading === own) this.close();
    }
    this.#onChange(this);
  }

  // Aborts what is being loaded.
  close() {
    this.#loading?.abort();
    this.#loading = null;
  }

  #add({ sessions, next_after }) {
    const before = this.#isOutdated ? [] : this.#sessions;
    const added = new Set(sessions.map(({ session_id }) => session_id));
    this.#set([...before.filter(({ session_id }) => !added.has(session_id)), ...sessions]);
    [this.#after, this.#isOutdated] = [next_after, false];
  }

  // The newest use first.
  #set(sessions) {
    this.#sessions = sessions.toSorted((a, b) => Date.parse(b.updated) - Date.parse(a.updated));
  }

  #listed(id) {
    return this.#sessions.find(({ session_id }) => session_id === id);
  }

  // Only a session that is listed is known to be the caller's.
  #update(session) {
    const others = this.#sessions.filter(({ session_id }) => session_id !== session.session_id);
    if (others.length === this.#sessions.length) return;
    this.#set(session.archived === this.archived ? [...others, session] : others);
    this.#onChange(this);
  }

  titleOf(id) {
    const session = this.#listed(id);
    return session ? (session.title ?? UNTITLED) : null;
  }

  opened(session) {
    this.#update(session);
  }

  started(id, message, isNew) {
    const updated = new Date().toISOString();
    const session = this.#listed(id);
    if (session) return this.#update({ ...session, updated });
    if (!isNew || this.archived || this.search) return;
    this.#set([
      { session_id: id, title: shorten(message), pinned: false, archived: false, updated, isNew },
      ...this.#sessions,
    ]);
    this.#onChange(this);
  }

  async ended(id) {
    const session = this.#listed(id);
    if (session?.isNew) return this.#update(await this.#api.json(`sessions/${id}`));
    if (session || this.archived || this.search || this.#notListed.has(id)) return;
    await this.load();
    if (!this.#listed(id)) this.#notListed.add(id);
  }

  async change(id, changes) {
    const session = await this.#api.patch(`sessions/${id}`, changes);
    this.#update(session);
    return session;
  }

  removed(id) {
    this.#sessions = this.#sessions.filter(({ session_id }) => session_id !== id);
    this.#onChange(this);
  }
}

// In the browser's time zone. `sessions`: the newest use first.
export function byDay(sessions, now = new Date()) {
  const midnight = (days) => new Date(now.getFullYear(), now.getMonth(), now.getDate() - days);
  const ages = [
    [midnight(0), "Today"],
    [midnight(1), "Yesterday"],
    [midnight(7), "Previous 7 days"],
    [midnight(30), "Previous 30 days"],
  ];
  const groups = Map.groupBy(sessions, ({ pinned, archived, updated }) => {
    if (pinned && !archived) return "Pinned";
    const used = new Date(updated);
    return ages.find(([since]) => used >= since)?.[1] ?? MONTH.format(used);
  });
  const pinnedFirst = [...groups].toSorted(([a], [b]) => (b === "Pinned") - (a === "Pinned"));
  return pinnedFirst.map(([name, group]) => ({ name, sessions: group }));
}

function row({ session_id: id, title, updated }) {
  return { id, title: title ?? UNTITLED, hint: `Last used ${TIME.format(new Date(updated))}` };
}
