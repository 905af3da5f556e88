// The chat page's own parts: what is told, what is in view, what may be used.

import { byId, element } from "./elements.js";
import { totals } from "./transcript.js";

const NEAR = 80; // px from the end, where the page keeps following what is written

export const tell = (words) => (byId("status").textContent = words);

export const drawTotals = (session) => byId("totals").replaceChildren(...totals(session));

// One button takes the other's place, and the focus with it, which would go back to the page's beginning.
export function drawReading(isReading) {
  const [coming, going] = isReading ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
  const isFocused = document.activeElement === going;
  coming.hidden = false;
  going.hidden = true;
  if (isFocused) coming.focus();
}

// The deployments that may be chosen. The session's own may be known before they are, or be none of them any more.
export function drawChoice(deployments, chosen) {
  const names = deployments.length ? deployments : [chosen];
  byId("deployment").replaceChildren(...names.map((name) => element("option", { selected: name === chosen }, name)));
  byId("choice").hidden = names.length < 2;
}

// Keeps the end in view, unless the reader has scrolled away from it.
export function follow(always = false) {
  const box = byId("messages");
  const near = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
  if (always || near) requestAnimationFrame(() => (box.scrollTop = box.scrollHeight));
}

// Puts elements above what is shown, and keeps in view what was.
export function putAbove(elements) {
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
