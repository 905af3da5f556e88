// HTTP requests to the server: errors, JSON and server-sent events.

import { parseJson, pluralize } from "./amounts.js";
import { localTime } from "./limits.js";

// An error response. The page shows no headers, so the message states the delay. `retryAfter`: seconds, or null.
export class ApiError extends Error {
  constructor({ code, message, status, retry_after, resets_at }) {
    super(shownMessage(message, retry_after, resets_at));
    Object.assign(this, { code, status, retryAfter: retry_after ?? null });
  }
}

function shownMessage(message, retryAfter, resetsAt) {
  const delayed = retryAfter ? message.replace("after Retry-After", `in ${pluralize(retryAfter, "second")}`) : message;
  return resetsAt ? delayed.replace(resetsAt, localTime(resetsAt)) : delayed;
}

// There is no connection, or it was lost; the server may still have received the request.
export class ConnectionLost extends Error {
  constructor(message = "The server can't be reached. Check your connection, then try again.") {
    super(message);
  }
}

export class Api {
  constructor(access) {
    this.access = access;
  }

  async json(path, options) {
    return parseJson(await text(await this.request(path, options)));
  }

  patch(path, changes) {
    const headers = { "Content-Type": "application/json" };
    return this.json(path, { method: "PATCH", headers, body: JSON.stringify(changes) });
  }

  // Returns a successful response. Throws ApiError, ConnectionLost, or the reason of an aborted signal.
  async request(path, { method = "GET", headers = {}, body, signal, keepalive = false } = {}) {
    for (;;) {
      const credentials = await this.access.headers();
      const allHeaders = { ...headers, ...credentials };
      const response = await connected(
        fetch(`/api/${path}`, { method, headers: allHeaders, body, signal, keepalive, cache: "no-store" }),
      );
      if (response.ok) return response;
      const error = await apiError(response);
      if (response.status !== 401 || !(await this.access.replace(credentials, error))) throw error;
    }
  }
}

// What a route without authentication returns, as JSON. Throws ApiError or ConnectionLost.
export async function publicJson(path) {
  const response = await connected(fetch(`/api/${path}`, { cache: "no-store" }));
  if (!response.ok) throw await apiError(response);
  return parseJson(await text(response));
}

// The events of a stream as {name, data}. Throws ConnectionLost if the stream breaks off.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await connected(reader.read());
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
  return { name, data: parseJson(data) };
}

async function apiError(response) {
  const body = await text(response);
  let error = {
    code: null,
    message: DEFAULT_MESSAGES[response.status] ?? `The server returned HTTP ${response.status}. Try again later.`,
  };
  try {
    const parsed = JSON.parse(body).error;
    if (parsed.message) error = parsed;
  } catch {
    // The platform's error responses have no body; a gateway's have another format.
  }
  return new ApiError({
    ...error,
    status: response.status,
    retry_after: Number(response.headers.get("retry-after")) || null,
  });
}

// Role assignments take minutes to apply: docs/troubleshooting.md, "401, 403 or 503 after a deployment".
const JUST_DEPLOYED = "If the app was just deployed: wait some minutes, then run azd deploy.";

const DEFAULT_MESSAGES = {
  401: `A valid key is required. ${JUST_DEPLOYED}`,
  403: `The platform in front of the server refused (403). ${JUST_DEPLOYED}`,
  404: "The server does not have this route.",
  429: "The server is overloaded. Wait a moment, then try again.",
  503: `The server is not available (503). ${JUST_DEPLOYED}`,
};

const text = (response) => connected(response.text());

async function connected(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error instanceof TypeError ? new ConnectionLost() : error; // fetch's error when there is no connection
  }
}
