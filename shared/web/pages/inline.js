// Inline Markdown: emphasis, code, links and line breaks.

const MAX_DEPTH = 6; // of nested emphasis
const PLAIN = /[^\\\n`*_~![<h]+/y;
const URL_TEXT = /https?:\/\/(?:[^\s()<>"'`\\]|\([^\s()<>"'`\\]{0,200}\)){1,2000}/iy;
const LINK =
  /!?\[((?:[^[\]\\\n]|\\.){1,400})\]\(\s?<?(https?:\/\/(?:[^\s()<>]|\([^\s()<>]{0,200}\)){1,2000})>?(?:\s"[^"\n]{0,300}")?\s?\)/iy;
const MARKS = {
  "***": ["strong", "em"],
  "**": ["strong"],
  "*": ["em"],
  ___: ["strong", "em"],
  __: ["strong"],
  _: ["em"],
  "~~": ["del"],
};

// Appends the text to `parent`. `links`: false inside a link, because links cannot be nested.
export function inline(parent, text, depth = 0, links = true) {
  const unclosed = new Set(); // marks that are not closed in the rest of the text: each is searched for once
  for (let at = 0; at < text.length;) {
    const plain = matchAt(PLAIN, text, at);
    const parsed = plain ? [plain[0], at + plain[0].length] : span(text, at, { depth, links, unclosed });
    const [node, next] = parsed ?? [text[at], at + 1];
    parent.append(node);
    at = next;
  }
  parent.normalize();
}

// The node that begins at `at`, and the index after it; null if the character is plain text.
function span(text, at, context) {
  switch (text[at]) {
    case "\\":
      return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : null;
    case "\n":
      return [document.createElement("br"), at + 1];
    case "`":
      return code(text, at, context);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, context);
    default:
      return context.links ? link(text, at, context) : null;
  }
}

function code(text, at, { unclosed }) {
  const mark = /`+/y;
  mark.lastIndex = at;
  const [ticks] = mark.exec(text);
  const start = at + ticks.length;
  if (unclosed.has(ticks)) return [ticks, start];
  for (let end = text.indexOf(ticks, start); end >= 0; end = text.indexOf(ticks, end)) {
    let after = end;
    while (text[after] === "`") after++;
    if (after - end === ticks.length)
      return [textElement("code", unpadded(text.slice(start, end).replaceAll("\n", " "))), after];
    end = after;
  }
  unclosed.add(ticks);
  return [ticks, start];
}

const unpadded = (code) => (code.startsWith(" ") && code.endsWith(" ") && code.trim() ? code.slice(1, -1) : code);

function emphasis(text, at, { depth, links, unclosed }) {
  let start = at;
  while (text[start] === text[at]) start++;
  const mark = text.slice(at, start);
  const opens =
    mark in MARKS && depth < MAX_DEPTH && /\S/.test(text[start] ?? "") && !(mark[0] === "_" && isWord(text[at - 1]));
  const end = opens && !unclosed.has(mark) ? closing(text, start, mark) : -1;
  if (end < 0) {
    if (opens) unclosed.add(mark);
    return [mark, start];
  }
  const outer = document.createElement(MARKS[mark][0]);
  const inner = MARKS[mark].length > 1 ? outer.appendChild(document.createElement(MARKS[mark][1])) : outer;
  inline(inner, text.slice(start, end), depth + 1, links);
  return [outer, end + mark.length];
}

// The index of the closing mark: at the end of its run, so that nested emphasis can close in the same run. -1 if none.
function closing(text, from, mark) {
  for (let run = text.indexOf(mark, from + 1); run >= 0; run = text.indexOf(mark, run)) {
    let after = run;
    while (text[after] === mark[0]) after++;
    const length = after - run;
    const closes = /\S/.test(text[run - 1]) && !(mark[0] === "_" && isWord(text[after]));
    if (closes && (length === mark.length || length === 3)) return after - mark.length;
    run = after;
  }
  return -1;
}

function link(text, at, { depth }) {
  const labelled = /[![]/.test(text[at]) ? matchAt(LINK, text, at) : null;
  if (labelled) return anchor(labelled[2], labelled[1], at + labelled[0].length, depth);
  const bracketed = text[at] === "<" ? matchAt(URL_TEXT, text, at + 1) : null;
  if (bracketed && text[at + 1 + bracketed[0].length] === ">")
    return anchor(bracketed[0], null, at + bracketed[0].length + 2, depth);
  const bare = text[at] === "h" && !isWord(text[at - 1]) ? matchAt(URL_TEXT, text, at) : null;
  if (!bare) return null;
  const url = bare[0].replace(/[.,;:!?*_~\]]{1,20}$/, "");
  return anchor(url, null, at + url.length, depth);
}

function anchor(address, label, next, depth) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (url?.protocol !== "https:" && url?.protocol !== "http:") return null;
  const created = document.createElement("a");
  Object.assign(created, { href: url.href, rel: "noopener noreferrer", target: "_blank" });
  if (label === null) created.append(address);
  else inline(created, label, depth, false);
  return [created, next];
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

const isWord = (character) => /[\p{L}\p{N}_]/u.test(character ?? "");

function textElement(name, text) {
  const element = document.createElement(name);
  element.append(text);
  return element;
}
