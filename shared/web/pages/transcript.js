// What was said and what it cost, as elements.

import { amount, counted, known } from "./amounts.js";
import { element } from "./elements.js";
import { markdown } from "./markdown.js";

const COPIED_FOR = 2_000; // ms
const REST = 4; // times what drawing took, until it is drawn again

// The user's message, or the results of tools that a program sent.
export function questionView(message) {
  const who = message.role === "tool" ? "A tool's result" : "You";
  return element(
    "article",
    { className: "question", "aria-label": who },
    element("div", { className: "text" }, written(message)),
  );
}

// An answer, as it comes and once it is there.
export class AnswerView {
  #text = element("div", { className: "text" });
  #notes = element("div", { className: "notes" });
  #figures = element("footer");
  #pending = null;
  #restsUntil = 0; // ms
  article = element("article", { className: "answer", "aria-label": "Answer" }, this.#text, this.#notes, this.#figures);

  // Drawn once a frame, however many pieces come; less often where that takes long, or nothing else could be done.
  write(said) {
    this.article.setAttribute("aria-busy", "true");
    this.#pending ??= requestAnimationFrame(() => this.#frame());
    this.said = said;
  }

  finish(said = this.said ?? "") {
    this.said = said;
    this.#draw();
    for (const block of this.#text.querySelectorAll("pre")) block.replaceWith(copyable(block));
    this.article.removeAttribute("aria-busy");
  }

  // Takes a turn of the history, or an answer: both tell the same of what it used and cost.
  figures(turn) {
    const told = [turn.model ?? turn.deployment];
    if (turn.usage) told.push(tokens(turn.usage), amount(turn.cost_usd));
    if (turn.finish_reason === "length") told.push("cut off at the maximum of tokens");
    if (turn.finish_reason === "content_filter") told.push("stopped by the content filter");
    this.#figures.replaceChildren(...told.flatMap((each, index) => (index ? [" · ", each] : [each])));
  }

  note(...said) {
    this.#notes.append(element("p", {}, ...said));
  }

  unnoted() {
    this.#notes.replaceChildren();
  }

  #frame() {
    const began = performance.now();
    if (began < this.#restsUntil) return (this.#pending = requestAnimationFrame(() => this.#frame()));
    this.#draw();
    this.#text.getBoundingClientRect(); // or the layout, the better part of the work, would come after the clock
    const now = performance.now();
    this.#restsUntil = now + REST * (now - began);
  }

  #draw() {
    if (this.#pending !== null) cancelAnimationFrame(this.#pending);
    this.#pending = null;
    this.#text.replaceChildren(markdown(this.said));
  }
}

// A message's words; what is no text is named.
export function written({ content, refusal, tool_calls: calls, function_call: older }) {
  const parts = typeof content === "string" ? [content] : (content ?? []).map((part) => part.text ?? "[image]");
  const tools = [...(calls ?? []).map((call) => call.function ?? call.custom), ...(older ? [older] : [])];
  const called = tools.map(({ name, arguments: given, input }) => `[calls ${name}(${given ?? input})]`);
  return [...parts, refusal, ...called].filter(Boolean).join("\n\n");
}

const STATES = {
  failed: "This turn failed, and cost nothing.",
  abandoned: "This turn was abandoned before the model was called, and cost nothing.",
  unaccounted: "This turn was interrupted. It may have been billed: it is counted as unaccounted, not in the cost.",
  open: "This answer is not finished.",
};

// A turn of the history.
export function turnViews(turn) {
  const asked = turn.messages.filter((message) => message.role !== "assistant").map(questionView);
  const view = new AnswerView();
  const answer = turn.messages.find((message) => message.role === "assistant");
  view.finish(answer ? written(answer) : "");
  view.figures(turn);
  if (turn.state in STATES) view.note(STATES[turn.state]);
  return { articles: [...asked, view.article], view };
}

export function totals({ turns, total_tokens, cost_usd, unpriced_turns, unaccounted_calls, unaccounted_usd }) {
  const cost = amount(known(cost_usd, unpriced_turns));
  const told = [counted(turns, "turn"), " · ", counted(total_tokens, "token"), " · ", cost];
  if (unpriced_turns) told.push(` · ${counted(unpriced_turns, "turn")} of unknown price`);
  if (unaccounted_calls) {
    told.push(` · ${counted(unaccounted_calls, "call")} unaccounted, `);
    told.push(unaccounted_usd === null ? "" : "at most ", amount(unaccounted_usd));
  }
  return told;
}

function tokens({ prompt_tokens: sent, completion_tokens: got, total_tokens: all, cached_tokens: cached }) {
  const title = `${counted(sent, "token")} sent (${cached} of them cached), ${counted(got, "token")} received`;
  return element("span", { title }, counted(all, "token"));
}

function copyable(block) {
  const button = element("button", { type: "button", "aria-label": "Copy the code" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(block.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => (button.textContent = "Copy"), COPIED_FOR);
  });
  return element("div", { className: "code" }, button, block.cloneNode(true));
}
