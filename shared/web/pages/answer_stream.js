// Shows one answer while it streams in, and stops it.

import { ApiError, ConnectionLost } from "./api.js";
import { byId, element } from "./elements.js";
import { remainingNote } from "./limits.js";
import { drawTotals, scrollToEnd, showStatus } from "./page.js";
import { AnswerView, messageText, stoppedNote, turnViews } from "./transcript.js";

const MAX_CANCEL_MS = 2_000; // how long a stopped attempt behind another turn may still be accepted

export class AnswerStream {
  #controller = new AbortController();
  #text = "";
  #isQueued = false; // another turn of the session is running, so the server has not started this one
  #isStopRequested = false;
  #released = Promise.withResolvers();
  #cancelNote = NOT_ACCEPTED;
  #mayBeRunning = false; // an attempt whose connection was lost before its first event
  #conversation;
  #before; // the stopped answer that this one waits for, or null
  #next = null; // the answer that waits for this one
  #isBehindElsewhere = false;
  view = new AnswerView();
  isAnswered = false;
  isStopped = false;
  isElsewhere = false; // another instance of the server runs the turn, and stops it within 10 s

  // `conversation`: {isShown(): the page still shows it, sessionStarted(id), retry(this)}
  constructor(request, conversation, before) {
    this.request = request;
    this.#conversation = conversation;
    this.#before = before;
    if (before) before.#next = this;
  }

  // Returns once the answer is complete, has failed, or is stopped or detached.
  async run() {
    showStatus("Answering…");
    try {
      await this.#untilSendable();
      const answer = await this.request.send(this, this.#controller.signal);
      if (this.#conversation.isShown()) this.#succeed(answer);
    } catch (error) {
      if (this.#conversation.isShown()) this.#fail(error);
    } finally {
      this.#released.resolve();
    }
  }

  // Stops the turn. The display ends at once; `run` returns when the server has stopped the turn.
  stop() {
    this.isStopped = true;
    showStatus("");
    this.view.finish();
    this.view.note("Stopping…");
    const hasTurn = this.request.turnNumbers.size || this.#mayBeRunning;
    if (hasTurn && this.request.sessionId !== null) this.#requestStop();
    else if (this.#before || this.request.isPausing) this.#controller.abort();
    else if (this.#isQueued) setTimeout(() => this.#cancelQueued(), MAX_CANCEL_MS);
    // Otherwise the session ID may be unknown: `onStart` or `onRetry` goes on.
  }

  // Aborts the request; the server completes the turn. Before the first event the session ID is unknown: `onStart` or
  // `onRetry` aborts it then.
  detach() {
    if (this.request.turnNumbers.size || this.#isQueued) this.#controller.abort();
  }

  // Shows the stored turn after `stop`. The server may have completed it before.
  showCompleted(turn) {
    this.view.clearNotes();
    const [article] = turnViews(turn).articles.slice(-1);
    if (turn.finish_reason === "stopped") return this.view.article.replaceWith(article);
    const button = element("button", { type: "button" }, "Show the full answer");
    button.addEventListener("click", () => this.view.article.replaceWith(article));
    this.view.figures(turn);
    this.view.note("Stopped too late: the server completed and counted the answer. ", button);
  }

  // A message after a stopped answer is sent once the server has handled the stop. It continues the same session.
  async #untilSendable() {
    if (!this.#before) return;
    await this.#before.#released.promise;
    this.#controller.signal.throwIfAborted();
    this.request.body.session_id ??= this.#before.request.sessionId ?? undefined;
    this.#isBehindElsewhere = this.#before.isElsewhere;
    this.#before = null;
  }

  async #requestStop() {
    if (this.#isStopRequested || this.request.sessionId === null) return;
    this.#isStopRequested = true;
    try {
      const { state } = await this.request.stop();
      this.isElsewhere = state === "stopping";
      if (this.isElsewhere) this.#replaceNotes((this.#cancelNote = ELSEWHERE));
    } catch (error) {
      if (!(error instanceof ApiError || error instanceof ConnectionLost)) throw error;
      this.#replaceNotes(`The answer could not be stopped: the server completes and counts it. ${error.message}`);
    } finally {
      if (this.request.isPausing) this.#controller.abort();
      this.#released.resolve();
    }
  }

  #cancelQueued() {
    if (this.request.turnNumbers.size) return;
    this.#cancelNote = UNKNOWN;
    this.#controller.abort();
  }

  #replaceNotes(...content) {
    if (this.isAnswered) return;
    this.view.clearNotes();
    this.view.note(...content);
  }

  // Callbacks of ChatRequest.send

  onStart({ session_id: id }) {
    this.#text = "";
    this.#conversation.sessionStarted(id);
    this.#isStopRequested = false; // an earlier stop was that of an earlier turn
    if (this.isStopped) this.#requestStop();
    if (!this.#conversation.isShown()) return this.#controller.abort();
    if (!this.isStopped) showStatus("Answering…");
  }

  onDelta(delta) {
    if (this.#isDetached) return;
    this.#text += messageText(delta);
    this.view.write(this.#text);
    scrollToEnd();
  }

  onRetry(error, mayBeRunning) {
    this.#mayBeRunning = mayBeRunning;
    if (mayBeRunning) this.#cancelNote = UNKNOWN;
    if (this.isStopped && mayBeRunning) this.#requestStop();
    if (this.#isDetached) return this.#controller.abort();
    this.#isQueued = !mayBeRunning;
    if (error instanceof ConnectionLost) showStatus(LOST);
    else if (mayBeRunning) showStatus(STILL_ANSWERING);
    else showStatus(this.#isBehindElsewhere ? WAITING_FOR_STOP : BUSY);
  }

  get #isDetached() {
    return this.isStopped || !this.#conversation.isShown();
  }

  #succeed(answer) {
    const isStopped = answer.finish_reason === "stopped";
    if (this.isStopped && !isStopped) return; // the stored turn is shown instead
    this.isAnswered = true;
    this.view.clearNotes();
    this.view.show(answer.message);
    this.view.figures(answer);
    if (isStopped) this.view.note(...stoppedNote(answer));
    if (answer.notice) this.view.note(answer.notice);
    if (answer.truncated) this.view.note(truncationNote(answer.truncated));
    if (this.request.turnNumbers.size > 1) this.view.note(INTERRUPTED);
    for (const budget of answer.limits ?? []) this.view.note(...remainingNote(budget));
    if (!this.#next?.isAnswered) drawTotals(answer.session);
    if (!this.#next) showStatus("");
    scrollToEnd();
  }

  #fail(error) {
    this.view.finish();
    if (!this.isStopped) showStatus("");
    if (this.isStopped && this.#controller.signal.aborted) return this.#replaceNotes(this.#cancelNote);
    if (!(error instanceof ApiError || error instanceof ConnectionLost)) throw error;
    this.view.clearNotes();
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
const NOT_ACCEPTED = "Stopped. The message was not accepted: it costs nothing.";
const UNKNOWN = "Stopped. If the server has accepted the message, it still completes and counts the answer.";
const ELSEWHERE = "Stopping. Another instance of the server runs this answer: it stops within 10 seconds.";
const WAITING_FOR_STOP = "The stopped answer ends within 10 seconds. Then this message is sent…";
const INTERRUPTED = "An earlier attempt was interrupted and may have been billed. It is counted as unaccounted.";
