// A message on its way to its answer, as the page shows it.

import { ApiError, Lost } from "./api.js";
import { byId, element } from "./elements.js";
import { drawTotals, follow, tell } from "./page.js";
import { AnswerView, turnViews, written } from "./transcript.js";

export class Reading {
  #controller = new AbortController();
  #said = "";
  #isQueued = false; // behind another turn of its session, so that the service has not begun it
  #here;
  view = new AnswerView();
  isAnswered = false;
  isStopped = false;

  // `here`: {isOpen: whether its conversation is still shown, began: its session is known, again: read it once more}
  constructor(question, here) {
    this.question = question;
    this.#here = here;
  }

  // Until it is answered, refused, stopped or left.
  async run() {
    tell("Answering…");
    try {
      const answer = await this.question.answered(this, this.#controller.signal);
      if (this.#here.isOpen()) this.#answered(answer);
    } catch (error) {
      if (this.#here.isOpen()) this.#unanswered(error);
    }
  }

  // The reading ends; the turn does not. Without a word of the service's yet its session is not known: then at the first.
  stop() {
    this.isStopped = true;
    tell("Stopping…");
    this.leave();
  }

  leave() {
    if (this.question.turns.size || this.#isQueued) this.#controller.abort();
  }

  // What became of the turn after its reading was stopped.
  completed(turn) {
    const whole = element("button", { type: "button" }, "Show the whole answer");
    whole.addEventListener("click", () => this.view.article.replaceWith(turnViews(turn).articles.at(-1)));
    this.view.unnoted();
    this.view.figures(turn);
    this.view.note("You stopped reading. The answer was completed, and is counted. ", whole);
  }

  // The question tells these three.

  start({ session_id: id }) {
    this.#said = "";
    this.#here.began(id);
    if (this.#isOver) return this.#controller.abort();
    tell("Answering…");
  }

  delta(pieces) {
    if (this.#isOver) return;
    this.#said += written(pieces);
    this.view.write(this.#said);
    follow();
  }

  again(error, mayBeOurs) {
    if (this.#isOver) return this.#controller.abort();
    this.#isQueued = !mayBeOurs;
    if (error instanceof Lost) tell(LOST);
    else tell(mayBeOurs ? BUSY_WITH_THIS : BUSY_WITH_ANOTHER);
  }

  get #isOver() {
    return this.isStopped || !this.#here.isOpen();
  }

  #answered(answer) {
    this.isAnswered = true;
    this.view.finish(written(answer.message));
    this.view.figures(answer);
    if (answer.notice) this.view.note(answer.notice);
    if (answer.truncated) this.view.note("The answer was too long to be kept whole.");
    if (this.question.turns.size > 1) this.view.note(INTERRUPTED);
    drawTotals(answer.session);
    tell("");
    follow();
  }

  #unanswered(error) {
    this.view.finish();
    tell("");
    if (this.isStopped) return this.view.note(STOPPED);
    if (!(error instanceof ApiError || error instanceof Lost)) throw error;
    const again = error instanceof Lost || [409, 429, 500, 502, 503, 504].includes(error.status);
    this.view.note(error.message, " ", ...(again ? [this.#againButton(error.retryAfter ?? 0)] : []));
    if (!again && !byId("message").value) byId("message").value = this.question.body.message;
    follow();
  }

  // The same question with the same key, once the service may be asked again (seconds).
  #againButton(seconds) {
    const button = element("button", { type: "button", onclick: () => this.#here.again(this) });
    const countDown = () => {
      button.disabled = seconds > 0;
      button.textContent = seconds > 0 ? `Send again in ${seconds} s` : "Send again";
      if (seconds-- > 0) setTimeout(countDown, 1_000);
    };
    countDown();
    return button;
  }
}

const LOST = "The connection was lost. Trying again: an answer that is there is not paid for twice.";
const BUSY_WITH_THIS = "The service is still busy with this message. Waiting for it…";
const BUSY_WITH_ANOTHER = "Another turn of this conversation is still running. Waiting for its end…";
const STOPPED = "You stopped reading. If the message has reached the service, it completes the answer and counts it.";
const INTERRUPTED = "An earlier attempt was interrupted, and may have been billed: it is counted as unaccounted.";
