// How a page identifies its user: by keys, or by a person's access token where people sign in.

import { publicJson } from "./api.js";
import { byId, showDialog } from "./elements.js";
import { Keys } from "./keys.js";
import { SignIn } from "./sign_in.js";

const HINT = "Use your organization's account.";

export class Access {
  #kinds;
  #onLeave;
  #onCaller;
  #caller; // as of the last call of `onCaller`
  #keys = null;
  #signIn = null; // null where people do not sign in
  #open = null;
  #read = null;

  // `kinds(accepted)`: the page's keys, as for Keys, given what the server accepts (api/sign-in). `onLeave`: called
  // before the page is left for the authority's. `onCaller(caller)`: called once it is known who calls,
  // and whenever that changes.
  constructor(kinds, { onLeave = () => {}, onCaller = () => {} } = {}) {
    this.#kinds = kinds;
    this.#onLeave = onLeave;
    this.#onCaller = onCaller;
  }

  // Reads how callers sign in here, and completes a sign-in. Throws ApiError or ConnectionLost; then the next call
  // repeats it.
  ready() {
    return (this.#read ??= this.#prepare().catch((error) => {
      this.#read = null;
      throw error;
    }));
  }

  async #prepare() {
    const accepted = await publicJson("sign-in");
    this.#keys = new Keys(...this.#kinds(accepted));
    if (accepted.people) {
      this.#signIn = new SignIn(accepted.people);
      await this.#signIn.complete().finally(() => this.#draw());
    }
    this.#draw();
  }

  get byPeople() {
    return this.#signIn !== null;
  }

  // The person or the client key that conversations belong to; null without one.
  get caller() {
    return this.#signIn?.name ?? this.#keys?.caller ?? null;
  }

  async headers() {
    await this.ready();
    const token = await this.#signIn?.token();
    this.#draw();
    return token ? { Authorization: `Bearer ${token}` } : this.#keys.headers();
  }

  // After a 401. Returns whether to repeat the request.
  async replace(sent, error) {
    if (!this.#signIn) return this.#keys.replace(sent, error);
    if (JSON.stringify(await this.headers()) !== JSON.stringify(sent)) return true;
    const text = this.#signIn.problem || (Object.keys(sent).length ? error.message : HINT);
    this.#signIn.problem = "";
    this.#open ??= this.#askPerson(text).finally(() => (this.#open = null));
    return this.#open;
  }

  // Asks for what the server accepts, unless a sign-in that was interrupted can be completed. Returns false if the user
  // cancels.
  async ask(title) {
    const isInterrupted = this.#read === null;
    await this.ready();
    if (!this.#signIn) return this.#keys.ask(title);
    if (isInterrupted && this.#signIn.name !== null) return true;
    if (!this.#keys.kinds.length) return this.#start();
    this.#open ??= this.#askPerson(HINT).finally(() => (this.#open = null));
    return this.#open;
  }

  async #askPerson(text) {
    const fields = this.#keys.kinds.map(({ label }) => ({
      label: `${label}, instead of an account`,
      type: "password",
    }));
    const entered = await showDialog({ title: "Sign in", text, action: "Sign in", fields, focusAction: true });
    if (entered === null) return false;
    if (!entered.some(Boolean)) return this.#start();
    this.#keys.store(entered);
    this.#signIn.forget();
    this.#draw();
    return true;
  }

  #start() {
    this.#onLeave();
    return this.#signIn.start();
  }

  signOut() {
    this.#signIn.signOut();
  }

  #draw() {
    const name = this.#signIn?.name ?? null;
    byId("person").textContent = name ?? "";
    byId("account").hidden = name === null;
    if (this.#signIn) {
      byId("keys").textContent = "Sign in";
      byId("keys").hidden = name !== null;
    }
    if (this.caller === this.#caller) return;
    this.#caller = this.caller;
    this.#onCaller(this.caller);
  }
}
