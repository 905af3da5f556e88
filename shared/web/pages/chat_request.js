// Sends one message, with retries. Every attempt carries the same Idempotency-Key, so a lost connection is not billed
// twice: the server returns the stored answer, or 409 while the first attempt is still running.

import { ApiError, ConnectionLost, events } from "./api.js";

const MAX_WAIT_MS = 240_000; // a turn takes at most 220 s; after a crash its session stays leased for 30 s
const MAX_PAUSE_MS = 2_000;

export class ChatRequest {
  #key = crypto.randomUUID();
  #mayBeRunning = false; // whether an earlier attempt may be the turn that keeps the session busy
  isPausing = false; // between two attempts
  turnNumbers = new Set(); // more than one if an attempt was interrupted

  constructor(api, body) {
    this.api = api;
    this.body = { ...body, stream: true };
    this.isNew = !body.session_id; // whether it begins a session
  }

  get sessionId() {
    return this.body.session_id ?? null;
  }

  // Stops the session's running turn. Returns the server's answer, whose state is stopped, stopping or idle. The request
  // is sent even if the tab is closed meanwhile.
  stop() {
    return this.api.json(`sessions/${this.sessionId}/stop`, { method: "POST", keepalive: true });
  }

  // Calls `view.onStart`, `view.onDelta` and, before each retry (the connection was lost, or the session is busy,
  // possibly with an earlier attempt), `view.onRetry`. Returns the answer.
  async send(view, signal) {
    const deadline = performance.now() + MAX_WAIT_MS;
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#attempt(view, signal);
      } catch (error) {
        if (signal.aborted || performance.now() > deadline || !this.#isRetryable(error)) throw error;
        view.onRetry(error, this.#mayBeRunning);
        this.isPausing = true;
        await pause(Math.min(250 * 2 ** attempt, (error.retryAfter ?? Infinity) * 1000, MAX_PAUSE_MS), signal);
        this.isPausing = false;
      }
    }
  }

  async #attempt(view, signal) {
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
        this.turnNumbers.add(data.turn);
        view.onStart(data);
      } else if (name === "delta") view.onDelta(data);
      else if (name === "done") return data;
      else if (name === "error") throw new ApiError(data);
    }
    throw new ConnectionLost();
  }

  #isRetryable(error) {
    if (error instanceof ConnectionLost) return (this.#mayBeRunning = true);
    return error.code === "session_busy" || (this.#mayBeRunning && error.code === "storage_unavailable");
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
