// Messages, answers, usage and cost as DOM elements.

import { amount, bounds, formatInteger, knownCost, pluralize } from "./amounts.js";
import { element } from "./elements.js";
import { markdown } from "./markdown.js";
import { callView, closed, resultView, toolCalls } from "./tools.js";

const COPIED_MS = 2_000; // how long the button says Copied
const DRAW_PAUSE_FACTOR = 4; // times the duration of the last drawing, until the next one

// The user's message.
export function questionView(message) {
  const text = element("div", { className: "text" }, messageText(message));
  return element("article", { className: "question", "aria-label": "You" }, text);
}

// A message without figures. `names`: of the tools, by the IDs of their calls.
function messageView(message, names) {
  if (message.role === "user") return questionView(message);
  if (message.role === "assistant") return new AnswerView(message).article;
  const text = messageText(message);
  if (message.role === "system") return article("System message", closed("System message", text));
  return article("Tool result", resultView(message.name ?? names.get(message.tool_call_id), text));
}

const article = (label, ...content) => element("article", { "aria-label": label }, ...content);

// An answer, while it streams in and afterwards.
export class AnswerView {
  #text = element("div", { className: "text" });
  #tools = element("div", { className: "tools" });
  #notes = element("div", { className: "notes" });
  #figures = element("footer");
  #pending = null;
  #pausedUntil = 0; // ms
  article = element("article", { className: "answer", "aria-label": "Answer" });

  // `message`: if it is complete.
  constructor(message = null) {
    this.article.append(this.#text, this.#tools, this.#notes, this.#figures);
    if (message) this.show(message);
  }

  show(message) {
    this.#tools.replaceChildren(...toolCalls(message).map(callView));
    this.finish(messageText(message));
  }

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

const PARTS = { file: "[file]", input_audio: "[audio]" }; // any other without text is an image

// The text of a message, with a placeholder for each image and file.
export function messageText({ content, refusal }) {
  const parts = typeof content === "string" ? [content] : (content ?? []).map(partText);
  return [...parts, refusal].filter(Boolean).join("\n\n");
}

const partText = ({ type, text }) => text ?? PARTS[type] ?? "[image]";

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

// The names of the tools that the turns call, by the IDs of the calls.
export function toolNames(turns) {
  const calls = turns.flatMap(({ messages }) => messages).flatMap(toolCalls);
  return new Map(calls.map(({ id, name }) => [id, name]));
}

// A stored turn: its messages in their order, the last one being its answer. `names`: see toolNames.
export function turnViews(turn, names = toolNames([turn])) {
  if (turn.state === "added") return addedViews(turn, names);
  const answer = turn.messages.at(-1)?.role === "assistant" ? turn.messages.at(-1) : { content: "" };
  const questions = turn.messages.filter((message) => message !== answer);
  const view = new AnswerView(answer);
  view.figures(turn);
  const note = turn.finish_reason === "stopped" ? stoppedNote(turn) : [stateNote(turn) ?? []].flat();
  if (note.length) view.note(...note);
  return { articles: [...questions.map((message) => messageView(message, names)), view.article], view };
}

// A turn that adds messages to a conversation: it calls no model.
function addedViews({ messages }, names) {
  const note = element("footer", {}, "Added by a program, without an answer. It cost nothing.");
  const articles = messages.map((message) => messageView(message, names));
  articles.at(-1)?.append(note);
  return { articles, view: null };
}

// Those of a branch are the totals of its own turns.
export function totals(session) {
  const { turns, total_tokens, cost_usd, unpriced_turns, unaccounted_calls, unaccounted_usd, stopped_calls } = session;
  const cost = amount(knownCost(cost_usd, unpriced_turns));
  const since = session.parent ? `, ${formatInteger(turns - session.parent.turn)} since the branch` : "";
  const parts = [pluralize(turns, "turn"), since, " · ", pluralize(total_tokens, "token"), " · ", cost];
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
