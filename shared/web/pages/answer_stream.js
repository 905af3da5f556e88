// Shows one answer while it streams in.

import { ApiError, ConnectionLost } from "./api.js";
import { byId, element } from "./elements.js";
import { remainingNote } from "./limits.js";
import { drawTotals, scrollToEnd, showStatus } from "./page.js";
import { AnswerView, messageText, turnViews } from "./transcript.js";

export class AnswerStream {
  #controller = new AbortController();
  #text = "";
  #isQueued = false; // another turn of the session is running, so the server has not started this one
  #conversation;
  view = new AnswerView();
  isAnswered = false;
  isStopped = false;

  // `conversation`: {isShown(): the page still shows it, sessionStarted(id), retry(this)}
  constructor(request, conversation) {
    this.request = request;
    this.#conversation = conversation;
  }

  // Returns once the answer is complete, has failed, or is stopped or detached.
  async run() {
    showStatus("Answering…");
    try {
      const answer = await this.request.send(this, this.#controller.signal);
      if (this.#conversation.isShown()) this.#succeed(answer);
    } catch (error) {
      if (this.#conversation.isShown()) this.#fail(error);
    }
  }

  // Stops the display; the server completes the turn.
  stop() {
    this.isStopped = true;
    showStatus("Stopping…");
    this.detach();
  }

  // Aborts the request. Before the first event the session ID is unknown: `onStart` or `onRetry` aborts it then.
  detach() {
    if (this.request.turnNumbers.size || this.#isQueued) this.#controller.abort();
  }

  // Shows that the server completed the turn after `stop`.
  showCompleted(turn) {
    const button = element("button", { type: "button" }, "Show the full answer");
    button.addEventListener("click", () => this.view.article.replaceWith(turnViews(turn).articles.at(-1)));
    this.view.clearNotes();
    this.view.figures(turn);
    this.view.note("Stopped. The server completed and counted the answer. ", button);
  }

  // Callbacks of ChatRequest.send

  onStart({ session_id: id }) {
    this.#text = "";
    this.#conversation.sessionStarted(id);
    if (this.#isDetached) return this.#controller.abort();
    showStatus("Answering…");
  }

  onDelta(delta) {
    if (this.#isDetached) return;
    this.#text += messageText(delta);
    this.view.write(this.#text);
    scrollToEnd();
  }

  onRetry(error, mayBeRunning) {
    if (this.#isDetached) return this.#controller.abort();
    this.#isQueued = !mayBeRunning;
    if (error instanceof ConnectionLost) showStatus(LOST);
    else showStatus(mayBeRunning ? STILL_ANSWERING : BUSY);
  }

  get #isDetached() {
    return this.isStopped || !this.#conversation.isShown();
  }

  #succeed(answer) {
    this.isAnswered = true;
    this.view.finish(messageText(answer.message));
    this.view.figures(answer);
    if (answer.notice) this.view.note(answer.notice);
    if (answer.truncated) this.view.note(truncationNote(answer.truncated));
    if (this.request.turnNumbers.size > 1) this.view.note(INTERRUPTED);
    for (const budget of answer.limits ?? []) this.view.note(...remainingNote(budget));
    drawTotals(answer.session);
    showStatus("");
    scrollToEnd();
  }

  #fail(error) {
    this.view.finish();
    showStatus("");
    if (this.isStopped) return this.view.note(STOPPED);
    if (!(error instanceof ApiError || error instanceof ConnectionLost)) throw error;
    const mayPass = RETRYABLE.includes(error.status) && !FINAL.includes(error.code);
    const canRetry = error instanceof ConnectionLost || mayPass;
    this.view.note(error.message, " ", ...(canRetry ? [this.#retryButton(error.retryAfter ?? 0)] : []));
    if (!canRetry && !byId("message").value) byId("message").value = this.request.body.message;
    scrollToEnd();
  }

  // Sends the message again with the same Idempotency-Key; disabled for `seconds`.
  #retryButton(seconds) {
    const button = element("button", { type: "button", onclick: () => this.#conversation.retry(this) });
    const countDown = () => {
      button.disabled = seconds > 0;
      button.textContent = seconds > 0 ? `Send again in ${seconds} s` : "Send again";
      if (seconds-- > 0) setTimeout(countDown, 1_000);
    };
    countDown();
    return button;
  }
}

// `truncated`: what the stored turn lacks.
function truncationNote(truncated) {
  if (truncated.includes("content")) return "The answer is too long to store: only its beginning is kept.";
  return `The answer is too long to store: it is kept without ${truncated.join(", ")}.`;
}

const RETRYABLE = [409, 429, 500, 502, 503, 504];
const FINAL = ["budget_exceeded", "insufficient_quota"]; // although their status is 429
const LOST = "The connection was lost. Retrying as the same request, so it is not billed twice.";
const STILL_ANSWERING = "The server is still answering this message. Waiting…";
const BUSY = "Another turn of this conversation is still running. Waiting until it ends…";
const STOPPED = "Stopped. If the server has accepted the message, it still completes and counts the answer.";
const INTERRUPTED = "An earlier attempt was interrupted and may have been billed. It is counted as unaccounted.";
