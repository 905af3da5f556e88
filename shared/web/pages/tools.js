// Tool calls and their results, closed until the user opens them.

import { element } from "./elements.js";
import { DIRECTION_CONTROLS } from "./markdown.js";

const MAX_PREVIEW_LENGTH = 120;
const INEXACT = /\d{16}/; // numbers that JSON.parse may round

// The calls of a message: [{id, name, text}], with the arguments or the input as text.
export function toolCalls({ tool_calls: calls, function_call: legacy }) {
  const tools = (calls ?? []).map((call) => ({ id: call.id, ...(call.function ?? call.custom) }));
  return [...tools, ...(legacy ? [legacy] : [])].map(({ id, name, arguments: args, input }) => ({
    id,
    name,
    text: String(args ?? input ?? ""),
  }));
}

export const callView = ({ name, text }) => closed(`Calls ${name}`, text);

export const resultView = (name, text) => closed(name ? `Result of ${name}` : "Tool result", text);

// A text that is shown when the user opens it; until then its beginning.
export function closed(title, text) {
  const clean = text.replaceAll(DIRECTION_CONTROLS, "");
  const fields = fieldsOf(clean);
  const line = fields ? fields.map(([name, value]) => `${name}: ${value}`).join(", ") : clean;
  const preview = line.slice(0, MAX_PREVIEW_LENGTH).trim();
  const summary = element("summary", {}, element("strong", {}, title), preview && ` ${preview}`);
  return element("details", { className: "tool" }, summary, fields ? list(fields) : element("pre", {}, clean));
}

const list = (fields) =>
  element("dl", {}, ...fields.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));

// The fields of a JSON object as [name, text]; null if the text is none.
function fieldsOf(text) {
  if (INEXACT.test(text)) return null;
  try {
    const value = JSON.parse(text);
    if (value === null || typeof value !== "object" || Array.isArray(value)) return null;
    return Object.entries(value).map(([name, each]) => [
      name,
      typeof each === "string" ? each : JSON.stringify(each, null, 1),
    ]);
  } catch {
    return null;
  }
}
