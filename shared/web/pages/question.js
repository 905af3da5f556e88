// One message until it is answered: a lost connection is no reason to pay twice. Every attempt carries the same
// Idempotency-Key, so the service sends the answer again that it has stored, or says that it is still working on it.

import { ApiError, Lost, events } from "./api.js";

const PATIENCE = 240_000; // ms: a turn takes at most 220 s, and a crashed one holds its session for 30 s
const LONGEST_PAUSE = 2_000;

export class Question {
  #key = crypto.randomUUID();
  #mayBeOurs = false; // whether an attempt of ours may be what keeps the session busy
  turns = new Set(); // their numbers: more than one where an attempt was interrupted

  constructor(api, body) {
    this.api = api;
    this.body = { ...body, stream: true };
  }

  get sessionId() {
    return this.body.session_id ?? null;
  }

  // Calls `on.start`, `on.delta` and `on.again` (another attempt follows: the connection was lost, or the session is busy,
  // which may be with an attempt of ours); returns the answer.
  async answered(on, signal) {
    const until = performance.now() + PATIENCE;
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#asked(on, signal);
      } catch (error) {
        if (signal.aborted || performance.now() > until || !this.#maySettleItself(error)) throw error;
        on.again(error, this.#mayBeOurs);
        await pause(Math.min(250 * 2 ** attempt, (error.retryAfter ?? Infinity) * 1000, LONGEST_PAUSE), signal);
      }
    }
  }

  async #asked(on, signal) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": this.#key };
    const response = await this.api.request("chat", {
      method: "POST",
      headers,
      body: JSON.stringify(this.body),
      signal,
    });
    for await (const { name, data } of events(response)) {
      if (name === "start") {
        this.body.session_id = data.session_id;
        this.turns.add(data.turn);
        on.start(data);
      } else if (name === "delta") on.delta(data);
      else if (name === "done") return data;
      else if (name === "error") throw new ApiError(data);
    }
    throw new Lost();
  }

  #maySettleItself(error) {
    if (error instanceof Lost) return (this.#mayBeOurs = true);
    return error.code === "session_busy" || (this.#mayBeOurs && error.code === "storage_unavailable");
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, ms);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason);
      },
      { once: true },
    );
  });
}
