// The inside of a paragraph: emphasis, code, links and line breaks.

const DEEPEST = 6; // of emphasis in each other
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

// Appends the text to `parent`. Within a link there are no others.
export function inline(parent, text, depth = 0, links = true) {
  const unclosed = new Set(); // marks that nothing closes from here on, so that each is looked for once
  for (let at = 0; at < text.length;) {
    const plain = matched(PLAIN, text, at);
    const found = plain ? [plain[0], at + plain[0].length] : span(text, at, { depth, links, unclosed });
    const [node, next] = found ?? [text[at], at + 1];
    parent.append(node);
    at = next;
  }
  parent.normalize();
}

// What begins at `at`: its node and where it ends; null where the character stands for itself.
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
      return [made("code", unpadded(text.slice(start, end).replaceAll("\n", " "))), after];
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
    mark in MARKS && depth < DEEPEST && /\S/.test(text[start] ?? "") && !(mark[0] === "_" && isWord(text[at - 1]));
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

// Where a run of marks that is long enough closes: at its end, so that what is inside may close with the same run.
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
  const named = /[![]/.test(text[at]) ? matched(LINK, text, at) : null;
  if (named) return anchored(named[2], named[1], at + named[0].length, depth);
  const bracketed = text[at] === "<" ? matched(URL_TEXT, text, at + 1) : null;
  if (bracketed && text[at + 1 + bracketed[0].length] === ">")
    return anchored(bracketed[0], null, at + bracketed[0].length + 2, depth);
  const bare = text[at] === "h" && !isWord(text[at - 1]) ? matched(URL_TEXT, text, at) : null;
  if (!bare) return null;
  const url = bare[0].replace(/[.,;:!?*_~\]]{1,20}$/, "");
  return anchored(url, null, at + url.length, depth);
}

function anchored(address, label, next, depth) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (url?.protocol !== "https:" && url?.protocol !== "http:") return null;
  const anchor = document.createElement("a");
  Object.assign(anchor, { href: url.href, rel: "noopener noreferrer", target: "_blank" });
  if (label === null) anchor.append(address);
  else inline(anchor, label, depth, false);
  return [anchor, next];
}

function matched(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

const isWord = (character) => /[\p{L}\p{N}_]/u.test(character ?? "");

function made(name, text) {
  const element = document.createElement(name);
  element.append(text);
  return element;
}
