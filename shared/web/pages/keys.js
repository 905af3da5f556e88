// The API keys of a page. They are in sessionStorage, so until the tab is closed, and never in a URL.

import { showDialog } from "./elements.js";

const HINT = "Keys are stored until this tab is closed and are sent only to this server.";

export class Keys {
  #open = null;

  // `kinds`: [{name, label, headers, optional, hint, isCaller}], as `name` in sessionStorage, sent as `headers(key)`.
  // The platform requires the first one, the app checks the last one. `isCaller`: conversations belong to the key.
  constructor(...kinds) {
    this.kinds = kinds;
    this.hint = [HINT, ...kinds.map(({ hint }) => hint)].filter(Boolean).join(" ");
  }

  has(name) {
    return this.#stored(name) !== "";
  }

  // The key that conversations belong to; null without one.
  get caller() {
    const kind = this.kinds.find(({ isCaller }) => isCaller);
    return (kind && this.#stored(kind.name)) || null;
  }

  headers() {
    const sent = this.kinds.filter(({ name }) => this.has(name));
    return Object.assign({}, ...sent.map(({ name, headers }) => headers(this.#stored(name))));
  }

  // Asks for the key that the server has not accepted in a request with the headers `sent`; not if another request has
  // done so since. Returns false if the user cancels.
  async replace(sent, error) {
    if (JSON.stringify(this.headers()) !== JSON.stringify(sent)) return true;
    const refused = error.code === null ? this.kinds[0] : this.kinds.at(-1);
    const text = this.has(refused.name) ? `The key was rejected. ${error.message}` : this.hint;
    return this.ask(`A ${refused.label.toLowerCase()} is required`, { text, refused });
  }

  // Asks once, however many requests wait for it. `refused`: the kind whose key the server does not accept.
  async ask(title, { text = this.hint, refused = null } = {}) {
    this.#open ??= this.#ask(title, text, refused).finally(() => (this.#open = null));
    return this.#open;
  }

  async #ask(title, text, refused) {
    const fields = this.kinds.map((kind) => ({
      label: kind.optional ? `${kind.label} (optional)` : kind.label,
      type: "password",
      value: kind === refused ? "" : this.#stored(kind.name),
      required: kind === refused && !kind.optional,
      autofocus: kind === refused,
    }));
    const keys = await showDialog({ title, text, action: "Continue", fields });
    if (keys === null) return false;
    this.store(keys);
    return true;
  }

  // `keys`: one of each kind, or "".
  store(keys) {
    keys.forEach((key, index) => sessionStorage.setItem(this.kinds[index].name, key.replace(/[^\x21-\x7e]/g, "")));
  }

  #stored(name) {
    return sessionStorage.getItem(name) ?? "";
  }
}
