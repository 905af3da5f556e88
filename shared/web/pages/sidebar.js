// The sidebar's list of conversations, with its search field, and more of it on scrolling.

import { byId, element } from "./elements.js";

const SEARCH_PAUSE_MS = 250; // after the last key

let list = null; // that is drawn
const box = byId("conversations");

// `open(id)`: called with the conversation that the user chose.
export function drawConversations(drawn, shownId, open) {
  list = drawn;
  const focused = document.activeElement ?? document.body;
  box.replaceChildren(...list.groups.flatMap((group, index) => groupElements(group, index, shownId, open)));
  byId("filters").hidden = !list.isOnServer;
  byId("list-note").textContent = list.note;
  drawMore(focused);
  if (focused.dataset.id) buttonOf(focused.dataset.id)?.focus({ preventScroll: true });
}

function groupElements({ name, rows }, index, shownId, open) {
  const items = rows.map(({ id, title, hint }) => {
    const tip = hint ? `${title}\n${hint}` : "";
    const button = element("button", { type: "button", title: tip, onclick: () => open(id) }, title);
    button.dataset.id = id;
    if (id === shownId) button.setAttribute("aria-current", "page");
    return element("li", {}, button);
  });
  if (name === null) return [element("ul", {}, ...items)];
  const heading = element("h3", { id: `group-${index}` }, name);
  return [heading, element("ul", { "aria-labelledby": heading.id }, ...items)];
}

const buttonOf = (id) => box.querySelector(`[data-id="${CSS.escape(id)}"]`);

// When the button goes, its focus moves to the last conversation.
function drawMore(focused) {
  const more = byId("more");
  const isFirst = list.isLoading && !box.querySelector("li") && focused !== more; // the note says so
  more.hidden = !list.hasMore || isFirst;
  more.textContent = list.problem ? "Try again" : list.isLoading ? "Loading…" : "More";
  if (more.hidden && focused === more) [...box.querySelectorAll("button")].at(-1)?.focus();
  if (!list.problem && !list.isLoading) watchMore();
}

// A new observation begins with a report, also if nothing has changed.
const watcher = new IntersectionObserver(([entry]) => {
  if (entry.isIntersecting && !list.problem) list.more();
});

function watchMore() {
  watcher.disconnect();
  watcher.observe(byId("more"));
}

export function resetFilters() {
  clearTimeout(searching);
  byId("search").value = "";
  byId("archived").setAttribute("aria-pressed", "false");
}

let searching = null;
byId("search").addEventListener("input", () => {
  clearTimeout(searching);
  searching = setTimeout(() => list.load({ search: byId("search").value.trim() }), SEARCH_PAUSE_MS);
});
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Escape" && byId("search").value) event.stopPropagation(); // it only clears the field
});
byId("archived").addEventListener("click", () => {
  byId("archived").setAttribute("aria-pressed", String(!list.archived));
  list.load({ archived: !list.archived });
});
byId("more").addEventListener("click", () => list.more());
