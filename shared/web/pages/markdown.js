// Converts Markdown to DOM nodes. Model output only becomes text inside the elements created here: no HTML is parsed,
// and the only attributes are a link's href (http and https only), the start of a list and the alignment of a column.
// Every step takes (nearly) linear time, so that no answer can freeze the page.

import { inline } from "./inline.js";

const MAX_DEPTH = 6; // of nested quotes and lists; deeper ones become text
const ITEM = /^(\s*)([-*+]|(\d{1,9})[.)])(?: {1,4}(?=\S)|\s|$)/;

// Removed, because changing the text direction can disguise a link's target.
export const DIRECTION_CONTROLS = /[\u202a-\u202e\u2066-\u2069]/g;

export function markdown(text) {
  const fragment = document.createDocumentFragment();
  blocks(fragment, text.replaceAll(DIRECTION_CONTROLS, "").split(/\r\n?|\n/), 0);
  return fragment;
}

// If such a block begins at the line `at`, each adds it and returns the line after it; else it returns `at`.
const BLOCKS = [fence, heading, rule, quote, list, table];

function blocks(parent, lines, depth) {
  for (let at = 0; at < lines.length;) {
    if (isBlank(lines[at])) at++;
    else at = anyBlock(parent, lines, at, depth) ?? paragraph(parent, lines, at);
  }
}

function anyBlock(parent, lines, at, depth) {
  for (const block of BLOCKS) {
    const next = block(parent, lines, at, depth);
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
  inline(add(parent, `h${Math.min(marks.length + 2, 6)}`), (text ?? "").trim()); // the page itself uses h1 and h2
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
  for (; depth < MAX_DEPTH && at < lines.length && isQuote(lines[at]); at++)
    quoted.push(lines[at].replace(/^ {0,3}> ?/, ""));
  if (quoted.length) blocks(add(parent, "blockquote"), quoted, depth + 1);
  return at;
}

const isQuote = (line) => /^ {0,3}>/.test(line);

function list(parent, lines, at, depth) {
  const first = depth < MAX_DEPTH ? itemOf(lines[at]) : null;
  if (!first) return at;
  const created = add(parent, first.ordered ? "ol" : "ul");
  if (first.ordered && first.number !== 1) created.start = first.number;
  for (let item = first; item?.ordered === first.ordered; item = itemOf(lines[at] ?? "")) {
    const [content, next] = itemContent(lines, at, item);
    blocks(add(created, "li"), content, depth + 1);
    at = afterBlanks(lines, next);
  }
  return at;
}

function itemOf(line) {
  const match = isRule(line) ? null : ITEM.exec(line);
  return match && { width: match[0].length, ordered: match[3] !== undefined, number: Number(match[3]) };
}

// The item's lines without its marker and indentation, and the line after it.
function itemContent(lines, at, { width }) {
  const content = [lines[at].slice(width).replace(/^\[[ x]\](?=\s)/i, (box) => (box === "[ ]" ? "☐" : "☑"))];
  for (at++; at < lines.length; at++) {
    const line = expandTabs(lines[at]);
    if (isBlank(line)) {
      const next = afterBlanks(lines, at);
      if (next === lines.length || indentOf(expandTabs(lines[next])) < Math.min(width, 2)) return [content, at];
      content.push(...lines.slice(at, next));
      at = next - 1;
    } else if (indentOf(line) >= Math.min(width, 2)) content.push(line.slice(Math.min(indentOf(line), width)));
    else if (beginsBlock(lines, at)) return [content, at];
    else content.push(line);
  }
  return [content, at];
}

function table(parent, lines, at) {
  if (!isTable(lines, at)) return at;
  const created = add(parent, "table");
  const headings = cells(lines[at]);
  const alignments = cells(lines[at + 1]).map(alignmentOf);
  row(add(created, "thead"), "th", headings, alignments);
  const body = add(created, "tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++)
    row(body, "td", cells(lines[at]).slice(0, headings.length), alignments);
  return at;
}

const isTable = (lines, at) =>
  lines[at].includes("|") &&
  (lines[at + 1] ?? "").includes("|") && // without a bar, dashes are a rule
  cells(lines[at + 1]).every((cell) => /^:?-+:?$/.test(cell));

const cells = (line) =>
  line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "")
    .split(/(?<!\\)\|/)
    .map((cell) => cell.replaceAll("\\|", "|").trim());

const alignmentOf = (dashes) => (!dashes.endsWith(":") ? "" : dashes.startsWith(":") ? "center" : "right");

function row(parent, cellName, texts, alignments) {
  const created = add(parent, "tr");
  texts.forEach((text, at) => {
    const cell = add(created, cellName);
    if (alignments[at]) cell.className = alignments[at];
    inline(cell, text);
  });
}

function paragraph(parent, lines, at) {
  const first = at;
  for (at++; at < lines.length && !isBlank(lines[at]) && !beginsBlock(lines, at);) at++;
  inline(
    add(parent, "p"),
    lines
      .slice(first, at)
      .map((line) => line.trim())
      .join("\n"),
  );
  return at;
}

// Whether a line begins a block, and so ends the paragraph before it.
const beginsBlock = (lines, at) =>
  /^ {0,3}(?:`{3}|~{3}|#{1,6}\s|>)/.test(lines[at]) || isRule(lines[at]) || ITEM.test(lines[at]) || isTable(lines, at);

const isBlank = (line) => !line.trim();
const expandTabs = (line) => line.replace(/^\t+/, (tabs) => "    ".repeat(tabs.length));
const indentOf = (line) => line.length - line.trimStart().length;

function afterBlanks(lines, at) {
  while (at < lines.length && isBlank(lines[at])) at++;
  return at;
}

function add(parent, name) {
  return parent.appendChild(document.createElement(name));
}
