// Markdown to DOM nodes. What a model wrote becomes text inside the elements made here, and nothing else: no HTML is
// parsed, and the only attributes are a link's href (http and https alone), the number a list begins with and the side
// that a table's column is aligned to.
// Every step is linear in the text, or nearly: an answer must not be able to stop the page either.

import { inline } from "./inline.js";

const DEEPEST = 6; // of quotes and lists in each other; what is deeper is text
const ITEM = /^(\s*)([-*+]|(\d{1,9})[.)])(?: {1,4}(?=\S)|\s|$)/;

const TURNS = /[\u202a-\u202e\u2066-\u2069]/g; // the direction of what follows, and so could show a link as another

export function markdown(text) {
  const fragment = document.createDocumentFragment();
  blocks(fragment, text.replaceAll(TURNS, "").split(/\r\n?|\n/), 0);
  return fragment;
}

// Each looks at the line `at`, adds its block if one begins there, and returns the line after it, else `at`.
const KINDS = [fence, heading, rule, quote, list, table];

function blocks(parent, lines, depth) {
  for (let at = 0; at < lines.length;) {
    if (isBlank(lines[at])) at++;
    else at = anyBlock(parent, lines, at, depth) ?? paragraph(parent, lines, at);
  }
}

function anyBlock(parent, lines, at, depth) {
  for (const kind of KINDS) {
    const next = kind(parent, lines, at, depth);
    if (next > at) return next;
  }
  return null;
}

function fence(parent, lines, at) {
  const [, indent, mark, info] = /^( {0,3})(`{3,}|~{3,})(.*)$/.exec(lines[at]) ?? [];
  if (!mark || (mark[0] === "`" && info.includes("`"))) return at;
  const code = [];
  for (at++; at < lines.length && !closes(lines[at].trim(), mark); at++) {
    code.push(lines[at].slice(Math.min(indentOf(lines[at]), indent.length)));
  }
  add(add(parent, "pre"), "code").append(code.join("\n"));
  return at + 1;
}

const closes = (line, mark) => line.length >= mark.length && line === mark[0].repeat(line.length);

function heading(parent, lines, at) {
  const [, marks, text] = /^ {0,3}(#{1,6})(?:\s(.*))?$/.exec(lines[at]) ?? [];
  if (!marks) return at;
  inline(add(parent, `h${Math.min(marks.length + 2, 6)}`), (text ?? "").trim()); // the page has the first two levels
  return at + 1;
}

function rule(parent, lines, at) {
  if (!isRule(lines[at])) return at;
  add(parent, "hr");
  return at + 1;
}

const isRule = (line) => /^(?:-{3,}|\*{3,}|_{3,})$/.test(line.replaceAll(/\s/g, ""));

function quote(parent, lines, at, depth) {
  const quoted = [];
  for (; depth < DEEPEST && at < lines.length && isQuote(lines[at]); at++)
    quoted.push(lines[at].replace(/^ {0,3}> ?/, ""));
  if (quoted.length) blocks(add(parent, "blockquote"), quoted, depth + 1);
  return at;
}

const isQuote = (line) => /^ {0,3}>/.test(line);

function list(parent, lines, at, depth) {
  const first = depth < DEEPEST ? itemOf(lines[at]) : null;
  if (!first) return at;
  const made = add(parent, first.ordered ? "ol" : "ul");
  if (first.ordered && first.number !== 1) made.start = first.number;
  for (let item = first; item?.ordered === first.ordered; item = itemOf(lines[at] ?? "")) {
    const [own, next] = ofItem(lines, at, item);
    blocks(add(made, "li"), own, depth + 1);
    at = afterBlanks(lines, next);
  }
  return at;
}

function itemOf(line) {
  const found = isRule(line) ? null : ITEM.exec(line);
  return found && { width: found[0].length, ordered: found[3] !== undefined, number: Number(found[3]) };
}

// The item's lines without its marker and indentation, and the line after it.
function ofItem(lines, at, { width }) {
  const own = [lines[at].slice(width).replace(/^\[[ x]\](?=\s)/i, (box) => (box === "[ ]" ? "☐" : "☑"))];
  for (at++; at < lines.length; at++) {
    const line = untabbed(lines[at]);
    if (isBlank(line)) {
      const next = afterBlanks(lines, at);
      if (next === lines.length || indentOf(untabbed(lines[next])) < Math.min(width, 2)) return [own, at];
      own.push(...lines.slice(at, next));
      at = next - 1;
    } else if (indentOf(line) >= Math.min(width, 2)) own.push(line.slice(Math.min(indentOf(line), width)));
    else if (begins(lines, at)) return [own, at];
    else own.push(line);
  }
  return [own, at];
}

function table(parent, lines, at) {
  if (!isTable(lines, at)) return at;
  const made = add(parent, "table");
  const heads = cells(lines[at]);
  const sides = cells(lines[at + 1]).map(sideOf);
  row(add(made, "thead"), "th", heads, sides);
  const body = add(made, "tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++)
    row(body, "td", cells(lines[at]).slice(0, heads.length), sides);
  return at;
}

const isTable = (lines, at) =>
  lines[at].includes("|") &&
  (lines[at + 1] ?? "").includes("|") && // dashes alone are a rule
  cells(lines[at + 1]).every((cell) => /^:?-+:?$/.test(cell));

const cells = (line) =>
  line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "")
    .split(/(?<!\\)\|/)
    .map((cell) => cell.replaceAll("\\|", "|").trim());

const sideOf = (dashes) => (!dashes.endsWith(":") ? "" : dashes.startsWith(":") ? "center" : "right");

function row(parent, kind, texts, sides) {
  const made = add(parent, "tr");
  texts.forEach((text, at) => {
    const cell = add(made, kind);
    if (sides[at]) cell.className = sides[at];
    inline(cell, text);
  });
}

function paragraph(parent, lines, at) {
  const first = at;
  for (at++; at < lines.length && !isBlank(lines[at]) && !begins(lines, at);) at++;
  inline(
    add(parent, "p"),
    lines
      .slice(first, at)
      .map((line) => line.trim())
      .join("\n"),
  );
  return at;
}

// Whether a line ends the paragraph before it.
const begins = (lines, at) =>
  /^ {0,3}(?:`{3}|~{3}|#{1,6}\s|>)/.test(lines[at]) || isRule(lines[at]) || ITEM.test(lines[at]) || isTable(lines, at);

const isBlank = (line) => !line.trim();
const untabbed = (line) => line.replace(/^\t+/, (tabs) => "    ".repeat(tabs.length));
const indentOf = (line) => line.length - line.trimStart().length;

function afterBlanks(lines, at) {
  while (at < lines.length && isBlank(lines[at])) at++;
  return at;
}

function add(parent, name) {
  return parent.appendChild(document.createElement(name));
}
