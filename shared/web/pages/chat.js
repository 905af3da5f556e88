// The chat page: the list of conversations and one open conversation.

import { Access } from "./access.js";
import { AnswerStream } from "./answer_stream.js";
import { Api, ApiError, ConnectionLost } from "./api.js";
import { ChatRequest } from "./chat_request.js";
import { BrowserList, EmptyList, forgetOwned, sessionOf } from "./conversations.js";
import { byId, showDialog } from "./elements.js";
import {
  drawActions,
  drawButtons,
  drawChoice,
  drawTotals,
  prependTurns,
  scrollToEnd,
  showMenu,
  showStatus,
} from "./page.js";
import { SessionList } from "./session_list.js";
import { drawConversations, resetFilters } from "./sidebar.js";
import { TakeOver } from "./take_over.js";
import { messageText, questionView, toolNames, turnViews } from "./transcript.js";

const PAGE_TURNS = 20;
const POLL_MS = 1_000;
const COMPOSING = 229; // keyCode during input composition; Safari marks the Enter that ends it only with this code
const OPEN = "open-conversation"; // key in sessionStorage, so per tab
const MAX_TITLE_LENGTH = 200;
const DRAFT = "draft"; // likewise: the message while the page is left to sign in

const STORED_ON_SERVER = "Your conversations are on the server, and only your account or client key opens them.";
const SIGNED_OUT = "Sign in to see your conversations.";
const STORED_HERE = byId("stored").textContent;

function keyKinds({ function_keys, client_keys }) {
  const functionKey = { name: "function-key", label: "Function key", headers: (key) => ({ "x-functions-key": key }) };
  const clientKey = {
    name: "client-key",
    label: "Client key",
    headers: (key) => ({ "api-key": key }),
    optional: function_keys,
    isCaller: true,
    hint: "A client key opens the conversations that were begun with it.",
  };
  return [...(function_keys ? [functionKey] : []), ...(client_keys ? [clientKey] : [])];
}

const access = new Access(keyKinds, { onLeave: keepDraft, onCaller: callerChanged });
const api = new Api(access);
const takeOver = new TakeOver(api, () => list.load?.());

let list = new EmptyList(); // of conversations
let shown = null; // the open session as far as it is known: {title, pinned, archived}
let shownId = null; // session ID of the open conversation; null for a new one
let visit = 0; // incremented whenever a conversation is opened: an outdated response has an older number
let stream = null; // the answer that is streaming in the open conversation
let stopped = null; // the last answer that was stopped in the open conversation; the server may not have ended it yet
let earlierBefore = null; // cursor of the next page of earlier turns
let about = { deployment: null, deployments: [] };

// The list

// A named caller's is on the server. Where people sign in, there is no other.
function callerChanged(caller) {
  list.close?.();
  const isNamed = caller !== null;
  if (isNamed) list = new SessionList(api, (changed) => changed === list && drawList());
  else list = access.byPeople ? new EmptyList(SIGNED_OUT) : new BrowserList();
  byId("stored").textContent = isNamed || access.byPeople ? STORED_ON_SERVER : STORED_HERE;
  resetFilters();
  drawList();
  takeOver.offer(caller);
  list.load?.();
}

function drawList() {
  drawConversations(list, shownId, open);
  const title = shownId === null ? null : (list.titleOf(shownId) ?? shown?.title);
  byId("title").textContent = title ?? "New conversation";
  drawActions(shownId !== null && !isSignedOut(), list.isOnServer, shown);
}

// Where people sign in, nothing can be done without a caller.
const isSignedOut = () => access.byPeople && access.caller === null;

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
    list.opened(session, firstQuestion(history) ?? id);
    shown = { ...session, title: session.title ?? firstQuestion(history) ?? id };
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

function show(id, session = null) {
  [shownId, shown] = [id, session];
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
    await closeMissing(id, list.titleOf(id));
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
  list.removed(id);
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
  if (listed && list.titleOf(shownId) === null) closeDeleted(listed.textContent);
  else drawList();
  takeOver.offer(access.caller);
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
  if (id !== null) withErrorsShown(id, ownVisit, () => list.ended(id));
  if (ownVisit !== visit || own.isAnswered || id === null || isSignedOut()) return;
  await withErrorsShown(id, ownVisit, async () => {
    if (!own.isStopped || !request.turnNumbers.size) return drawTotals(await api.json(`sessions/${id}`));
    const turn = await completedTurn(id, Math.max(...request.turnNumbers), ownVisit);
    if (turn) own.showCompleted(turn);
  });
}

// Lists the new session, even if another conversation is open by now.
function sessionStarted(id, request, ownVisit) {
  const isOpened = ownVisit === visit && shownId === null;
  list.started(id, request.body.message, request.isNew);
  if (isOpened) show(id, { title: list.titleOf(id), pinned: false, archived: false });
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
  const options = { title: "Rename this conversation", text: list.renameHint, action: "Rename" };
  const fields = [{ label: "Title", value: byId("title").textContent, required: true, maxLength: MAX_TITLE_LENGTH }];
  const entered = await showDialog({ ...options, fields });
  if (entered !== null) await change(id, { title: entered[0] });
}

async function change(id, changes, done = "") {
  const ownVisit = visit;
  await withErrorsShown(id, ownVisit, async () => {
    const changed = await list.change(id, changes);
    if (ownVisit !== visit) return;
    shown = { ...shown, ...changed };
    drawList();
    if (done) showStatus(done);
  });
}

const pin = () => change(shownId, { pinned: !shown.pinned });
const archive = () => change(shownId, { archived: !shown.archived }, shown.archived ? "Unarchived." : "Archived.");

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
    list.removed(id);
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
  about = await api.json("about");
  byId("about").textContent = [about.deployment, about.region].filter(Boolean).join(" · ");
  drawChoice(about.deployments, byId("deployment").value || about.deployment);
}

// Nothing of the person's stays in the page.
function signOut() {
  callerChanged(null);
  open(null);
  byId("message").value = "";
  access.signOut();
}

const buttons = {
  open: openById,
  new: () => open(null),
  keys: enterKeys,
  "sign-out": signOut,
  rename,
  pin,
  archive,
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

forgetOwned();
restoreDraft();
open(sessionStorage.getItem(OPEN));
withErrorsShown(null, visit, showAbout);
