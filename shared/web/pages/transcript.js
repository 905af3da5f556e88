// Messages, answers, usage and cost as DOM elements.

import { amount, bounds, knownCost, pluralize } from "./amounts.js";
import { element } from "./elements.js";
import { markdown } from "./markdown.js";

const COPIED_MS = 2_000; // how long the button says Copied
const DRAW_PAUSE_FACTOR = 4; // times the duration of the last drawing, until the next one

// The user's message, or a tool result sent by a program.
export function questionView(message) {
  const label = message.role === "tool" ? "Tool result" : "You";
  return element(
    "article",
    { className: "question", "aria-label": label },
    element("div", { className: "text" }, messageText(message)),
  );
}

// An answer, while it streams in and afterwards.
export class AnswerView {
  #text = element("div", { className: "text" });
  #notes = element("div", { className: "notes" });
  #figures = element("footer");
  #pending = null;
  #pausedUntil = 0; // ms
  article = element("article", { className: "answer", "aria-label": "Answer" }, this.#text, this.#notes, this.#figures);

  // Draws at most once per frame, and less often if drawing is slow, so that the page stays responsive.
  write(text) {
    this.article.setAttribute("aria-busy", "true");
    this.#pending ??= requestAnimationFrame(() => this.#frame());
    this.markdown = text;
  }

  finish(text = this.markdown ?? "") {
    this.markdown = text;
    this.#draw();
    for (const block of this.#text.querySelectorAll("pre")) block.replaceWith(copyable(block));
    this.article.removeAttribute("aria-busy");
  }

  // Accepts a stored turn or an answer: both have the same fields for usage and cost.
  figures(turn) {
    const parts = [turn.model ?? turn.deployment];
    if (turn.usage) parts.push(tokens(turn.usage), amount(turn.cost_usd));
    if (turn.finish_reason === "length") parts.push("cut off at the token limit");
    if (turn.finish_reason === "content_filter") parts.push("stopped by the content filter");
    this.#figures.replaceChildren(...parts.flatMap((each, index) => (index ? [" · ", each] : [each])));
  }

  note(...content) {
    this.#notes.append(element("p", {}, ...content));
  }

  clearNotes() {
    this.#notes.replaceChildren();
  }

  #frame() {
    const began = performance.now();
    if (began < this.#pausedUntil) return (this.#pending = requestAnimationFrame(() => this.#frame()));
    this.#draw();
    this.#text.getBoundingClientRect(); // forces the layout, most of the work, into the measured time
    const now = performance.now();
    this.#pausedUntil = now + DRAW_PAUSE_FACTOR * (now - began);
  }

  #draw() {
    if (this.#pending !== null) cancelAnimationFrame(this.#pending);
    this.#pending = null;
    this.#text.replaceChildren(markdown(this.markdown));
  }
}

// The text of a message, with a placeholder for each image and tool call.
export function messageText({ content, refusal, tool_calls: calls, function_call: legacy }) {
  const parts = typeof content === "string" ? [content] : (content ?? []).map((part) => part.text ?? "[image]");
  const tools = [...(calls ?? []).map((call) => call.function ?? call.custom), ...(legacy ? [legacy] : [])];
  const placeholders = tools.map(({ name, arguments: args, input }) => `[calls ${name}(${args ?? input})]`);
  return [...parts, refusal, ...placeholders].filter(Boolean).join("\n\n");
}

const UNACCOUNTED = "may have been billed. It is counted as unaccounted, not in the cost.";
const STATES = {
  failed: "This turn failed and cost nothing.",
  abandoned: "This turn was abandoned before the model was called. It cost nothing.",
  unaccounted: `This turn was interrupted and ${UNACCOUNTED}`,
  open: "This answer is not complete yet.",
};

// What to say of a stopped turn. Accepts a stored turn or an answer.
export function stoppedNote({ usage, stopped_at_least_usd: lower, stopped_at_most_usd: upper }) {
  if (lower !== undefined) return ["Stopped. It costs ", ...bounds(lower, upper), ", counted apart from the total cost."];
  return [usage ? "Stopped." : "Stopped before the model was called. It cost nothing."];
}

// Why a stored turn has no complete answer or no cost; undefined if it has both.
function stateNote({ state, finish_reason: reason, messages }) {
  if (state === "settled" && reason === "error") return "The answer broke off. Its cost is counted.";
  if (state !== "unaccounted" || [null, "error"].includes(reason)) return STATES[state];
  if (messages.at(-1)?.role === "assistant") return `The model service reported no usage: this turn ${UNACCOUNTED}`;
  return `The content filter stopped this message. It ${UNACCOUNTED}`;
}

// A stored turn.
export function turnViews(turn) {
  const questions = turn.messages.filter((message) => message.role !== "assistant").map(questionView);
  const view = new AnswerView();
  const answer = turn.messages.find((message) => message.role === "assistant");
  view.finish(answer ? messageText(answer) : "");
  view.figures(turn);
  const note = turn.finish_reason === "stopped" ? stoppedNote(turn) : [stateNote(turn) ?? []].flat();
  if (note.length) view.note(...note);
  return { articles: [...questions, view.article], view };
}

export function totals(session) {
  const { turns, total_tokens, cost_usd, unpriced_turns, unaccounted_calls, unaccounted_usd, stopped_calls } = session;
  const cost = amount(knownCost(cost_usd, unpriced_turns));
  const parts = [pluralize(turns, "turn"), " · ", pluralize(total_tokens, "token"), " · ", cost];
  if (unpriced_turns) parts.push(` · ${pluralize(unpriced_turns, "turn")} of unknown price`);
  if (unaccounted_calls) {
    parts.push(` · ${pluralize(unaccounted_calls, "call")} unaccounted, `);
    parts.push(unaccounted_usd === null ? "" : "at most ", amount(unaccounted_usd));
  }
  if (stopped_calls) {
    parts.push(` · ${pluralize(stopped_calls, "call")} stopped, `);
    parts.push(...bounds(session.stopped_at_least_usd, session.stopped_at_most_usd));
  }
  return parts;
}

function tokens({ prompt_tokens: sent, completion_tokens: received, total_tokens: total, cached_tokens: cached }) {
  const title = `${pluralize(sent, "token")} sent (${cached} of them cached), ${pluralize(received, "token")} received`;
  return element("span", { title }, pluralize(total, "token"));
}

function copyable(block) {
  const button = element("button", { type: "button", "aria-label": "Copy the code" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(block.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Copy failed";
    }
    setTimeout(() => (button.textContent = "Copy"), COPIED_MS);
  });
  return element("div", { className: "code" }, button, block.cloneNode(true));
}
