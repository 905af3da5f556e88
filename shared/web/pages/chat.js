// The chat page: one conversation at a time, its turns, and the list of the others.

import { Api, ApiError, Lost } from "./api.js";
import { conversations, forget, keep, titleOf } from "./conversations.js";
import { ask, asksKey, byId, element } from "./elements.js";
import { drawChoice, drawReading, drawTotals, follow, putAbove, showMenu, tell } from "./page.js";
import { Question } from "./question.js";
import { Reading } from "./reading.js";
import { questionView, turnViews } from "./transcript.js";

const PAGE = 20; // turns
const LOOK_AGAIN = 1_000; // ms
const COMPOSING = 229; // the code of a key that an input method took; in Safari only this tells of the last one
const OPEN = "open-conversation"; // of this tab, in the session's storage

const api = new Api({
  keptAs: "function-key",
  headers: (key) => ({ "x-functions-key": key }),
  askKey: asksKey("This service wants a key", "Function key"),
});

let shown = null; // the id of the conversation that is shown; null: a new one
let visit = 0; // goes up with every conversation that is opened, so that late answers know they are late
let reading = null; // the answer that is being read, of the conversation that is shown
let before = null; // the turn before which there is more history
let about = { deployment: null, deployments: [] };

// The list

function drawList() {
  const rows = conversations().map(({ id, title }) => {
    const button = element("button", { type: "button", onclick: () => open(id) }, title);
    if (id === shown) button.setAttribute("aria-current", "page");
    return element("li", {}, button);
  });
  byId("conversations").replaceChildren(...rows);
  byId("title").textContent = (shown && titleOf(shown)) ?? "New conversation";
  byId("actions").hidden = shown === null;
}

// A conversation

async function open(id) {
  const mine = ++visit;
  reading?.leave();
  reading = null;
  drawReading(false);
  show(id);
  byId("turns").replaceChildren();
  byId("totals").replaceChildren();
  byId("earlier").hidden = true;
  tell("");
  showMenu(false);
  byId("message").focus();
  if (id === null) return drawChoice(about.deployments, about.deployment ?? "");
  await attempt(id, mine, async () => {
    const [session, history] = await Promise.all([api.json(`sessions/${id}`), page(id)]);
    if (mine !== visit) return;
    drawTotals(session);
    drawChoice(about.deployments, session.deployment);
    const newest = drawTurns(history);
    follow(true);
    if (!session.busy || newest?.turn.state !== "open") return;
    const turn = await completed(id, newest.turn.turn, mine);
    if (turn) newest.view.article.replaceWith(turnViews(turn).articles.at(-1));
  });
}

function show(id) {
  shown = id;
  if (id === null) sessionStorage.removeItem(OPEN);
  else sessionStorage.setItem(OPEN, id);
  drawList();
}

const page = (id, from = "") => api.json(`sessions/${id}/messages?limit=${PAGE}${from}`);

// Puts a page of history above what is shown; returns the newest turn.
function drawTurns({ turns, next_before }) {
  const views = turns.map((turn) => ({ turn, ...turnViews(turn) }));
  putAbove(views.toReversed().flatMap(({ articles }) => articles));
  before = next_before;
  byId("earlier").hidden = before === null;
  return views[0];
}

async function earlier() {
  const [id, mine] = [shown, visit];
  await attempt(id, mine, async () => {
    const history = await page(id, `&before=${before}`);
    if (mine === visit) drawTurns(history);
  });
}

// Waits for a turn that the service is working on without us; null where the reader has gone elsewhere meanwhile.
async function completed(id, number, mine) {
  while (mine === visit) {
    const session = await api.json(`sessions/${id}`);
    if (session.busy && session.turns === number) {
      await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN));
      continue;
    }
    const [turn] = (await page(id, `&before=${number + 1}`)).turns;
    if (mine !== visit || turn?.turn !== number) return null;
    drawTotals(session);
    return turn;
  }
  return null;
}

// Errors of anything but a message are told below the conversation. One that is gone leaves the list.
async function attempt(id, mine, action) {
  try {
    await action();
  } catch (error) {
    if (mine !== visit) return;
    if (!(error instanceof ApiError || error instanceof Lost)) throw error;
    if (error.code !== "session_not_found") return tell(error.message);
    const title = titleOf(id);
    forget(id);
    await close(title);
  }
}

// What is shown has been erased elsewhere: a message to its id would begin another conversation.
async function close(title) {
  await open(null);
  tell(`“${title}” was erased, so it has left the list.`);
}

// Another tab has changed the list.
function listChanged() {
  const listed = byId("conversations").querySelector("[aria-current]");
  if (listed && titleOf(shown) === null) close(listed.textContent);
  else drawList();
}

// A message

async function send() {
  const text = byId("message").value;
  if (!text.trim() || reading) return;
  byId("message").value = "";
  const chosen = about.deployments.length > 1 ? { deployment: byId("deployment").value } : {};
  const question = new Question(api, { message: text, ...chosen, ...(shown && { session_id: shown }) });
  byId("turns").append(questionView({ role: "user", content: text }));
  await read(question);
}

async function read(question) {
  const mine = visit;
  const own = new Reading(question, {
    isOpen: () => mine === visit,
    began: (id) => began(id, question, mine),
    again,
  });
  reading = own;
  byId("turns").append(own.view.article);
  follow(true);
  drawReading(true);
  try {
    await own.run();
  } finally {
    if (reading === own) reading = null;
    drawReading(reading !== null);
  }
  const id = question.sessionId;
  if (mine !== visit || own.isAnswered || id === null) return;
  await attempt(id, mine, async () => {
    if (!own.isStopped || !question.turns.size) return drawTotals(await api.json(`sessions/${id}`));
    const turn = await completed(id, Math.max(...question.turns), mine);
    if (turn) own.completed(turn);
  });
}

// The session is known, whether or not it is still the one that is shown.
function began(id, question, mine) {
  if (titleOf(id) === null) keep(id, question.body.message);
  if (mine === visit && shown === null) show(id);
  drawList();
}

function again(own) {
  if (reading) return;
  own.view.article.remove();
  read(own.question);
}

function stop() {
  if (reading && !reading.isStopped) reading.stop();
}

// What the buttons do

async function rename() {
  const id = shown;
  const options = {
    title: "Rename this conversation",
    text: "The title is kept in this browser alone.",
    action: "Rename",
  };
  const title = await ask({ ...options, label: "Title", value: titleOf(id) ?? "" });
  if (title === null) return;
  keep(id, title);
  drawList();
}

async function clear() {
  const [id, mine] = [shown, visit];
  const text = "What was said is forgotten, by the service too. What it cost stays.";
  if (!(await ask({ title: "Clear this conversation?", text, action: "Clear" }))) return;
  await attempt(id, mine, async () => {
    await api.request(`sessions/${id}/messages`, { method: "DELETE" });
    if (mine !== visit) return;
    await open(id);
    tell("Cleared.");
  });
}

async function erase() {
  const [id, mine] = [shown, visit];
  const text = "The conversation is erased, by the service too. What it cost stays in the day's sum.";
  if (!(await ask({ title: "Delete this conversation?", text, action: "Delete" }))) return;
  await attempt(id, mine, async () => {
    await api.request(`sessions/${id}`, { method: "DELETE" });
    forget(id);
    if (mine !== visit) return drawList();
    await open(null);
    tell("Deleted.");
  });
}

// The page

async function tellAbout() {
  about = await api.json("about");
  byId("about").textContent = [about.deployment, about.region].filter(Boolean).join(" · ");
  drawChoice(about.deployments, byId("deployment").value || about.deployment);
}

for (const [id, action] of Object.entries({ new: () => open(null), rename, clear, delete: erase, earlier, stop })) {
  byId(id).addEventListener("click", action);
}
byId("menu").addEventListener("click", () => showMenu(true));
document.querySelector("main").addEventListener("pointerdown", () => showMenu(false));
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === COMPOSING) return;
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog")) return;
  showMenu(false);
  stop();
});
addEventListener("storage", listChanged);

open(sessionStorage.getItem(OPEN));
attempt(null, visit, tellAbout);
