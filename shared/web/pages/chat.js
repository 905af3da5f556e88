// The chat page: the list of conversations and one open conversation.

import { Access } from "./access.js";
import { AnswerStream } from "./answer_stream.js";
import { Api, ApiError, ConnectionLost } from "./api.js";
import { ChatRequest } from "./chat_request.js";
import {
  conversations,
  isOwned,
  removeConversation,
  saveConversation,
  sessionOf,
  titleOf,
} from "./conversations.js";
import { byId, element, showDialog } from "./elements.js";
import { drawButtons, drawChoice, drawTotals, prependTurns, scrollToEnd, showMenu, showStatus } from "./page.js";
import { messageText, questionView, toolNames, turnViews } from "./transcript.js";

const PAGE_TURNS = 20;
const POLL_MS = 1_000;
const COMPOSING = 229; // keyCode during input composition; Safari marks the Enter that ends it only with this code
const OPEN = "open-conversation"; // key in sessionStorage, so per tab
const DRAFT = "draft"; // likewise: the message while the page is left to sign in

const STORED_FOR_PEOPLE = "This browser stores titles and session IDs. Only your account opens your conversations.";

const CLIENT_KEY = "client-key";
const access = new Access(({ function_keys, client_keys }) => {
  const functionKey = { name: "function-key", label: "Function key", headers: (key) => ({ "x-functions-key": key }) };
  const clientKey = {
    name: CLIENT_KEY,
    label: "Client key",
    headers: (key) => ({ "api-key": key }),
    optional: function_keys,
    hint: "A client key opens the conversations that were begun with it.",
  };
  return [...(function_keys ? [functionKey] : []), ...(client_keys ? [clientKey] : [])];
}, keepDraft);
const api = new Api(access);

let shownId = null; // session ID of the open conversation; null for a new one
let visit = 0; // incremented whenever a conversation is opened: an outdated response has an older number
let stream = null; // the answer that is streaming in the open conversation
let stopped = null; // the last answer that was stopped in the open conversation; the server may not have ended it yet
let earlierBefore = null; // cursor of the next page of earlier turns
let about = { deployment: null, deployments: [] };

// The list

function drawList() {
  const rows = conversations().map(({ id, title }) => {
    const button = element("button", { type: "button", onclick: () => open(id) }, title);
    if (id === shownId) button.setAttribute("aria-current", "page");
    return element("li", {}, button);
  });
  byId("conversations").replaceChildren(...rows);
  byId("title").textContent = (shownId && titleOf(shownId)) ?? "New conversation";
  byId("actions").hidden = shownId === null;
}

// The open conversation

async function open(id) {
  const ownVisit = ++visit;
  stream?.detach();
  stopped?.detach();
  stream = stopped = null;
  drawButtons(false);
  show(id);
  byId("turns").replaceChildren();
  drawTotals(null);
  byId("earlier").hidden = true;
  showStatus("");
  showMenu(false);
  byId("message").focus();
  if (id === null) return drawChoice(about.deployments, about.deployment ?? "");
  await withErrorsShown(id, ownVisit, async () => {
    const [session, history] = await Promise.all([api.json(`sessions/${id}`), historyPage(id)]);
    if (ownVisit !== visit) return;
    if (titleOf(id) === null) saveConversation(id, firstQuestion(history) ?? id, access.isNamed(CLIENT_KEY));
    drawList();
    drawTotals(session);
    drawChoice(about.deployments, session.deployment);
    const newest = drawTurns(history);
    scrollToEnd(true);
    if (!session.busy || newest?.turn.state !== "open") return;
    const turn = await completedTurn(id, newest.turn.turn, ownVisit);
    if (turn) newest.view.article.replaceWith(turnViews(turn).articles.at(-1));
  });
}

function firstQuestion({ turns }) {
  const messages = turns.toReversed().flatMap((turn) => turn.messages);
  return messages.filter(({ role }) => role === "user").map(messageText)[0];
}

function show(id) {
  shownId = id;
  if (id === null) sessionStorage.removeItem(OPEN);
  else sessionStorage.setItem(OPEN, id);
  drawList();
}

const historyPage = (id, cursor = "") => api.json(`sessions/${id}/messages?limit=${PAGE_TURNS}${cursor}`);

// Inserts a page of history at the top; returns its newest turn.
function drawTurns({ turns, next_before }) {
  const names = toolNames(turns);
  const views = turns.map((turn) => ({ turn, ...turnViews(turn, names) }));
  prependTurns(views.toReversed().flatMap(({ articles }) => articles));
  earlierBefore = next_before;
  byId("earlier").hidden = earlierBefore === null;
  return views[0];
}

async function showEarlier() {
  const [id, ownVisit] = [shownId, visit];
  await withErrorsShown(id, ownVisit, async () => {
    const history = await historyPage(id, `&before=${earlierBefore}`);
    if (ownVisit === visit) drawTurns(history);
  });
}

// Polls until the server has completed the turn, and returns it; null if another conversation was opened meanwhile.
async function completedTurn(id, number, ownVisit) {
  while (ownVisit === visit) {
    const session = await api.json(`sessions/${id}`);
    if (session.busy && session.turns === number) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      continue;
    }
    const [turn] = (await historyPage(id, `&before=${number + 1}`)).turns;
    if (ownVisit !== visit || turn?.turn !== number) return null;
    drawTotals(session);
    return turn;
  }
  return null;
}

// Shows an error of `action` in the status line.
async function withErrorsShown(id, ownVisit, action) {
  try {
    await action();
  } catch (error) {
    if (ownVisit !== visit) return;
    if (!(error instanceof ApiError || error instanceof ConnectionLost)) throw error;
    if (error.code !== "session_not_found") return showStatus(error.message);
    await closeMissing(id, titleOf(id));
  }
}

// The open conversation does not exist, or not for the account or client key.
async function closeMissing(id, title) {
  const other = access.byPeople ? "another account or client key" : "another client key";
  if (title === null) {
    await open(null);
    const hint = access.byPeople ? "" : ": see Keys";
    return showStatus(`There is no conversation with this ID, or it belongs to ${other}${hint}.`);
  }
  if (isOwned(id) && !access.isNamed(CLIENT_KEY)) {
    if (await access.ask(`“${title}” needs its client key`)) return open(id);
    await open(null);
    return showStatus(`“${title}” needs its client key: see Keys.`);
  }
  const text = `It was deleted, or it belongs to ${other}.`;
  const options = { title: `“${title}” was not found`, text, action: "Remove from the list" };
  if (isOwned(id) && !(await showDialog(options))) return open(null);
  removeConversation(id);
  await closeDeleted(title);
}

// The open conversation was deleted elsewhere: a message with its ID would start a new conversation.
async function closeDeleted(title) {
  await open(null);
  showStatus(`“${title}” was deleted and is no longer listed.`);
}

// Called when another tab has changed the list.
function listChanged() {
  const listed = byId("conversations").querySelector("[aria-current]");
  if (listed && titleOf(shownId) === null) closeDeleted(listed.textContent);
  else drawList();
}

// Sending

async function send() {
  const text = byId("message").value;
  if (!text.trim() || stream) return;
  byId("message").value = "";
  const chosen = about.deployments.length > 1 ? { deployment: byId("deployment").value } : {};
  const request = new ChatRequest(api, { message: text, ...chosen, ...(shownId && { session_id: shownId }) });
  byId("turns").append(questionView({ role: "user", content: text }));
  await streamAnswer(request);
}

async function streamAnswer(request) {
  const ownVisit = visit;
  const conversation = {
    isShown: () => ownVisit === visit,
    sessionStarted: (id) => sessionStarted(id, request, ownVisit),
    retry,
  };
  const own = new AnswerStream(request, conversation, stopped);
  [stream, stopped] = [own, null];
  byId("turns").append(own.view.article);
  scrollToEnd(true);
  drawButtons(true);
  try {
    await own.run();
  } finally {
    if (stream === own) stream = null;
    if (stopped === own) stopped = null;
    drawButtons(stream !== null);
  }
  const id = request.sessionId;
  if (ownVisit !== visit || own.isAnswered || id === null) return;
  await withErrorsShown(id, ownVisit, async () => {
    if (!own.isStopped || !request.turnNumbers.size) return drawTotals(await api.json(`sessions/${id}`));
    const turn = await completedTurn(id, Math.max(...request.turnNumbers), ownVisit);
    if (turn) own.showCompleted(turn);
  });
}

// Lists the new session, even if another conversation is open by now.
function sessionStarted(id, request, ownVisit) {
  if (titleOf(id) === null) saveConversation(id, request.body.message, access.isNamed(CLIENT_KEY));
  if (ownVisit === visit && shownId === null) show(id);
  drawList();
}

function retry(failed) {
  if (stream) return;
  failed.view.article.remove();
  streamAnswer(failed.request);
}

// The next message can be written and sent at once; it waits until the server has handled the stop.
function stop() {
  if (!stream) return;
  [stopped, stream] = [stream, null];
  drawButtons(false);
  stopped.stop();
}

// Buttons

async function openById() {
  const text = "By the ID of its session, or by one that a program shows: conv_… or resp_….";
  const fields = [{ label: "ID", required: true }];
  const entered = await showDialog({ title: "Open a conversation", text, action: "Open", fields });
  if (entered === null) return;
  const id = sessionOf(entered[0]);
  if (id === null) return showStatus(`“${entered[0]}” is not the ID of a conversation.`);
  await open(id);
}

async function enterKeys() {
  let isEntered = false;
  await withErrorsShown(null, visit, async () => (isEntered = await access.ask("Keys")));
  if (isEntered) await Promise.all([open(shownId), withErrorsShown(null, visit, showAbout)]);
}

async function rename() {
  const id = shownId;
  const options = {
    title: "Rename this conversation",
    text: "The title is stored only in this browser.",
    action: "Rename",
  };
  const fields = [{ label: "Title", value: titleOf(id) ?? "", required: true }];
  const entered = await showDialog({ ...options, fields });
  if (entered === null) return;
  saveConversation(id, entered[0]);
  drawList();
}

async function clear() {
  const [id, ownVisit] = [shownId, visit];
  const text = "All messages are deleted, on the server too. Their cost stays in the totals.";
  if (!(await showDialog({ title: "Clear this conversation?", text, action: "Clear" }))) return;
  await withErrorsShown(id, ownVisit, async () => {
    await api.request(`sessions/${id}/messages`, { method: "DELETE" });
    if (ownVisit !== visit) return;
    await open(id);
    showStatus("Cleared.");
  });
}

async function deleteConversation() {
  const [id, ownVisit] = [shownId, visit];
  const text = "The conversation is deleted, on the server too. Its cost stays in the daily totals.";
  if (!(await showDialog({ title: "Delete this conversation?", text, action: "Delete" }))) return;
  await withErrorsShown(id, ownVisit, async () => {
    await api.request(`sessions/${id}`, { method: "DELETE" });
    removeConversation(id);
    if (ownVisit !== visit) return drawList();
    await open(null);
    showStatus("Deleted.");
  });
}

// Startup

// A message that is waiting for the sign-in was not accepted, so it can be sent again.
function keepDraft() {
  sessionStorage.setItem(DRAFT, byId("message").value || (stream?.request.body.message ?? ""));
}

function restoreDraft() {
  byId("message").value = sessionStorage.getItem(DRAFT) ?? "";
  sessionStorage.removeItem(DRAFT);
}

async function showAbout() {
  await access.ready();
  if (access.byPeople) byId("stored").textContent = STORED_FOR_PEOPLE;
  about = await api.json("about");
  byId("about").textContent = [about.deployment, about.region].filter(Boolean).join(" · ");
  drawChoice(about.deployments, byId("deployment").value || about.deployment);
}

const buttons = {
  open: openById,
  new: () => open(null),
  keys: enterKeys,
  "sign-out": () => access.signOut(),
  rename,
  clear,
  delete: deleteConversation,
  earlier: showEarlier,
  stop,
};
for (const [id, action] of Object.entries(buttons)) {
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

restoreDraft();
open(sessionStorage.getItem(OPEN));
withErrorsShown(null, visit, showAbout);
