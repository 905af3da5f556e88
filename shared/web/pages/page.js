// Parts of the chat page: status line, totals, buttons, scrolling, menu.

import { byId, element } from "./elements.js";
import { totals } from "./transcript.js";

const NEAR_END_PX = 80; // within this distance the page keeps scrolling along with the answer

export const showStatus = (text) => (byId("status").textContent = text);

let parent = null; // of the open conversation, if it is a branch

// `session`: a session, or the totals of one that is drawn; null clears them.
export function drawTotals(session) {
  parent = session && (session.parent ?? parent);
  byId("totals").replaceChildren(...(session ? totals({ ...session, parent }) : []));
}

// Swaps Send and Stop. The focus moves along; otherwise it would return to the top of the page.
export function drawButtons(isAnswering) {
  const [shown, hidden] = isAnswering ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
  const isFocused = document.activeElement === hidden;
  shown.hidden = false;
  hidden.hidden = true;
  if (isFocused) shown.focus();
}

// `session`: of the open conversation; null until it is loaded.
export function drawActions(isOpen, isOnServer, session) {
  byId("actions").hidden = !isOpen;
  for (const id of ["pin", "archive"]) {
    byId(id).hidden = !isOnServer;
    byId(id).disabled = session === null;
  }
  byId("pin").textContent = session?.pinned ? "Unpin" : "Pin";
  byId("archive").textContent = session?.archived ? "Unarchive" : "Archive";
}

// `chosen` is the session's deployment. It may be absent from `deployments`, or these may not be loaded yet.
export function drawChoice(deployments, chosen) {
  const names = deployments.length ? deployments : [chosen];
  byId("deployment").replaceChildren(...names.map((name) => element("option", { selected: name === chosen }, name)));
  byId("choice").hidden = names.length < 2;
}

// Does nothing if the user has scrolled away from the end, unless `always`.
export function scrollToEnd(always = false) {
  const box = byId("messages");
  const isNear = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PX;
  if (always || isNear) requestAnimationFrame(() => (box.scrollTop = box.scrollHeight));
}

// Inserts earlier turns without moving what is in view.
export function prependTurns(elements) {
  const box = byId("messages");
  const fromEnd = box.scrollHeight - box.scrollTop;
  byId("turns").prepend(...elements);
  box.scrollTop = box.scrollHeight - fromEnd;
}

export function showMenu(visible) {
  byId("sidebar").classList.toggle("open", visible);
  byId("menu").setAttribute("aria-expanded", String(visible));
  if (visible) byId("new").focus();
}
