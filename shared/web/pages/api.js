// The service over HTTP: its key, its errors, its JSON and its server-sent events.

import { counted, parsed } from "./amounts.js";

// What the service refused, in words for a reader, who sees no header. `retryAfter`: seconds, or null.
export class ApiError extends Error {
  constructor({ code, message, status, retry_after }) {
    super(retry_after ? message.replace("after Retry-After", `in ${counted(retry_after, "second")}`) : message);
    Object.assign(this, { code, status, retryAfter: retry_after ?? null });
  }
}

// The connection was lost, or there was none: what became of the request is not known.
export class Lost extends Error {
  constructor() {
    super("The service can't be reached.");
  }
}

export class Api {
  #asking = null;

  // `keptAs`: the key's name in the browser's session storage. `headers`: a key to the headers that carry it.
  // `askKey`: (what the service said, whether a key was refused) to a key, or null.
  constructor({ keptAs, headers, askKey }) {
    Object.assign(this, { keptAs, headers, askKey });
  }

  async json(path, options) {
    return parsed(await text(await this.request(path, options)));
  }

  // A response that is good. Throws ApiError and Lost, and what an aborted signal throws.
  async request(path, { method = "GET", headers = {}, body, signal } = {}) {
    for (;;) {
      const key = sessionStorage.getItem(this.keptAs);
      const sent = key ? { ...headers, ...this.headers(key) } : headers;
      const response = await reached(fetch(`/api/${path}`, { method, headers: sent, body, signal, cache: "no-store" }));
      if (response.ok) return response;
      const refused = await refusal(response);
      if (response.status !== 401 || !(await this.#newKey(key, refused.message))) throw refused;
    }
  }

  // Asked once, however many requests wait for it.
  async #newKey(refused, said) {
    if (sessionStorage.getItem(this.keptAs) !== refused) return true;
    this.#asking ??= this.askKey(said, refused !== null).finally(() => (this.#asking = null));
    const key = await this.#asking;
    if (key === null) return false;
    sessionStorage.setItem(this.keptAs, key.replace(/[^\x21-\x7e]/g, ""));
    return true;
  }
}

// The events of a stream as {name, data}. Throws Lost where it breaks off.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reached(reader.read());
      if (done) return;
      const blocks = (pending + value).split("\n\n");
      pending = blocks.pop();
      for (const block of blocks) if (!block.startsWith(":")) yield event(block);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function event(block) {
  const [, name, data] = /^event: ([^\n]*)\ndata: ([^\n]*)$/.exec(block); // a dot would stop at U+2028
  return { name, data: parsed(data) };
}

async function refusal(response) {
  const said = await text(response);
  let error = {
    code: null,
    message: ANSWERED[response.status] ?? `The service answered ${response.status}. Try again later.`,
  };
  try {
    const { error: told } = JSON.parse(said);
    if (told.message) error = told;
  } catch {
    // The platform's own refusals have no body, a gateway's another shape.
  }
  return new ApiError({
    ...error,
    status: response.status,
    retry_after: Number(response.headers.get("retry-after")) || null,
  });
}

const ANSWERED = {
  401: "The service wants a key.",
  404: "The service has no such page.",
  429: "The service has too much to do. Wait a moment, then try again.",
};

const text = (response) => reached(response.text());

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error instanceof TypeError ? new Lost() : error; // fetch's way to say that there was no connection
  }
}
