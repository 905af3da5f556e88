// The offer to take over the conversations that this browser lists from before it was known who calls.

import { pluralize } from "./amounts.js";
import { ApiError, ConnectionLost } from "./api.js";
import { BrowserList } from "./conversations.js";
import { byId } from "./elements.js";

const DECLINED = "take-over-declined"; // key in sessionStorage, so per tab
const BUSY = 409;
const REFUSALS = new Map([
  [404, "deleted, or of another owner"],
  [400, "an ID of your own choice, which others could guess"],
  [BUSY, "in use"],
]);

const browser = new BrowserList();

export class TakeOver {
  #api;
  #onDone;
  #caller = null;
  #isRunning = false;

  // `onDone`: called when a run has ended.
  constructor(api, onDone) {
    this.#api = api;
    this.#onDone = onDone;
    byId("take-over").addEventListener("click", () => this.#run());
    byId("not-now").addEventListener("click", decline);
  }

  // `caller`: who would own the conversations; null offers nothing.
  offer(caller) {
    this.#caller = caller;
    if (this.#isRunning) return;
    const { length } = browser.claimable;
    byId("offer").hidden = caller === null || !length || sessionStorage.getItem(DECLINED) !== null;
    const owned = length === 1 ? "It then belongs to you, on the server." : "They then belong to you, on the server.";
    draw(`Take over ${pluralize(length, "conversation")} of this browser? ${owned}`, "Take over", "Not now");
  }

  async #run() {
    const [caller, entries] = [this.#caller, browser.claimable];
    this.#isRunning = true;
    const outcomes = []; // true, or the status of a refusal
    let problem = "";
    for (const [index, entry] of entries.entries()) {
      draw(`Taking over ${index + 1} of ${entries.length}…`);
      try {
        await this.#claim(entry);
        outcomes.push(true);
      } catch (error) {
        if (!(error instanceof ApiError || error instanceof ConnectionLost)) throw error;
        if (!REFUSALS.has(error.status)) problem = error.message;
        else outcomes.push(error.status);
        if (REFUSALS.has(error.status) && error.status !== BUSY) browser.refused(entry.id);
      }
      if (problem || caller !== this.#caller) break;
    }
    this.#isRunning = false;
    if (caller !== this.#caller) return this.offer(this.#caller);
    const retry = problem || outcomes.includes(BUSY) ? "Try again" : "";
    draw([...summary(outcomes), problem].join(" "), retry, "Close");
    byId(retry ? "take-over" : "not-now").focus();
    this.#onDone();
  }

  // A title that was given in this browser goes along.
  async #claim({ id, title }) {
    const session = await this.#api.json(`sessions/${id}/claim`, { method: "POST" });
    const isGiven = session.title !== null && title !== id && !title.startsWith(session.title.replace(/…$/, ""));
    if (isGiven) await this.#api.patch(`sessions/${id}`, { title });
    browser.removed(id);
  }
}

function decline() {
  sessionStorage.setItem(DECLINED, "true");
  byId("offer").hidden = true;
  byId("message").focus();
}

// The button without a text is hidden.
function draw(text, takeOver = "", decline = "") {
  byId("offer-text").textContent = text;
  for (const [id, label] of Object.entries({ "take-over": takeOver, "not-now": decline })) {
    byId(id).textContent = label;
    byId(id).hidden = !label;
  }
}

function summary(outcomes) {
  const count = (outcome) => outcomes.filter((each) => each === outcome).length;
  const taken = `Took over ${pluralize(count(true), "conversation")}.`;
  const refused = [...REFUSALS].filter(([status]) => count(status));
  if (!refused.length) return [taken];
  const reasons = refused.map(([status, reason]) => `${count(status)} (${reason})`).join(", ");
  return [taken, `Not taken over: ${reasons}. They stay in this browser.`];
}
