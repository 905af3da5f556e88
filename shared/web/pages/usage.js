// The usage page: what each day cost, and by which model and caller.

import { amount, isZero, known, sum, whole } from "./amounts.js";
import { Api, ApiError, Lost } from "./api.js";
import { COLOURS, bar, columns } from "./chart.js";
import { asksKey, byId, element } from "./elements.js";

const DAYS = 14; // shown at first
const DAY = 86_400_000; // ms

const api = new Api({
  keptAs: "usage-key",
  headers: (key) => ({ Authorization: `Bearer ${key}` }),
  askKey: asksKey("A usage key is needed", "Usage key"),
});

let visit = 0; // goes up with every span that is asked for
let span = { days: [], cost_usd: "0" };
let details = new Map(); // by date, of the days that had calls
let chosen = null; // a date; null: all of them

async function show() {
  const mine = ++visit;
  byId("status").textContent = "Adding up…";
  try {
    const asked = await api.json(`usage/daily?from=${byId("from").value}&to=${byId("to").value}`);
    if (mine !== visit) return;
    [span, details, chosen] = [asked, new Map(), null];
    draw();
    for (const { date } of asked.days.filter(({ calls }) => calls)) {
      const day = await api.json(`usage/daily/${date}`);
      if (mine !== visit) return;
      details.set(date, day);
    }
    byId("status").textContent = "";
    draw();
  } catch (error) {
    if (!(error instanceof ApiError || error instanceof Lost)) throw error;
    if (mine === visit) byId("status").textContent = error.message;
  }
}

function draw() {
  const models = shares("by_model", [...details.values()]);
  const colours = new Map(models.map(({ name }, index) => [name, Math.min(index, COLOURS - 1)]));
  const unpriced = span.days.some((day) => day.unpriced_turns);
  byId("total").replaceChildren("Cost per day (UTC): ", amount(known(span.cost_usd, unpriced)));
  const width = Math.max(byId("chart").clientWidth, 280);
  byId("chart").replaceChildren(
    columns(
      span.days.map((day) => drawable(day, colours)),
      { width, chosen, choose },
    ),
  );
  byId("legend").replaceChildren(
    ...models.map(({ name }) => element("li", { className: `colour-${colours.get(name)}` }, name)),
  );
  drawShares(colours);
  byId("days").replaceChildren(dayTable());
}

function drawable(day, colours) {
  const detail = details.get(day.date);
  const parts = detail ? shares("by_model", [detail]) : [{ name: "all models", usd: day.cost_usd }];
  return {
    date: day.date,
    usd: known(day.cost_usd, day.unpriced_turns),
    parts: parts.filter(({ usd }) => !isZero(usd)).map((part) => ({ ...part, colour: colours.get(part.name) ?? 0 })),
  };
}

function drawShares(colours) {
  const some = chosen ? [details.get(chosen)].filter(Boolean) : [...details.values()];
  byId("which").textContent = chosen ?? "All of these days";
  byId("all").hidden = chosen === null;
  byId("models").replaceChildren(shareTable("Model", shares("by_model", some), (name) => colours.get(name)));
  byId("callers").replaceChildren(shareTable("Caller", shares("by_caller", some), () => 0));
}

const NAMES = {
  by_model: ({ deployment, model }) => (deployment === model ? model : `${deployment}, ${model}`),
  by_caller: ({ caller }) => caller,
};

// What each came to over these days, the costliest first.
function shares(kind, days) {
  const found = Map.groupBy(
    days.flatMap((day) => day[kind]),
    NAMES[kind],
  );
  const total = (rows, field) => rows.reduce((so_far, row) => so_far + row[field], 0);
  return [...found]
    .map(([name, rows]) => ({
      name,
      usd: sum(rows.map((row) => row.cost_usd)),
      calls: total(rows, "calls"),
      tokens: total(rows, "prompt_tokens") + total(rows, "completion_tokens"),
      unpriced: rows.some((row) => row.unpriced_turns),
    }))
    .sort((one, other) => Number(other.usd) - Number(one.usd));
}

function shareTable(what, rows, colour) {
  const all = sum(rows.map(({ usd }) => usd));
  const drawnRows = rows.map(({ name, usd, calls, tokens, unpriced }) => [
    name,
    element("td", { className: "share" }, bar(usd, all, colour(name) ?? 0)),
    number(amount(known(usd, unpriced))),
    number(whole(calls)),
    number(whole(tokens)),
  ]);
  const made = table([what, "", "Cost", "Settled calls", "Tokens"], drawnRows, `By ${what.toLowerCase()}`);
  made.className = "shares";
  return made;
}

function dayTable() {
  const rows = span.days
    .toReversed()
    .map((day) => [
      day.final ? day.date : `${day.date} (not final)`,
      number(amount(known(day.cost_usd, day.unpriced_turns))),
      number(whole(day.turns)),
      number(whole(day.usage.total_tokens)),
      number(whole(day.unaccounted_calls)),
      number(day.unaccounted_calls ? amount(day.unaccounted_usd) : ""),
      number(whole(day.unpriced_turns)),
    ]);
  return table(
    ["Day", "Cost", "Turns", "Tokens", "Unaccounted calls", "at most", "Turns of unknown price"],
    rows,
    "Day by day",
  );
}

const number = (content) => element("td", { className: "number" }, content);

function table(heads, rows, caption) {
  const head = element(
    "tr",
    {},
    ...heads.map((text, at) => element("th", { scope: "col", className: at && text ? "number" : "" }, text)),
  );
  const body = rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), ...rest));
  return element("table", { "aria-label": caption }, element("thead", {}, head), element("tbody", {}, ...body));
}

function choose(date) {
  chosen = date === chosen ? null : date;
  draw();
  byId("chart").querySelector('[aria-pressed="true"]')?.focus();
}

byId("span").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
addEventListener("resize", () => span.days.length && draw());
byId("all").addEventListener("click", () => choose(chosen));

const today = new Date().toISOString().slice(0, 10);
byId("from").value = new Date(Date.parse(today) - (DAYS - 1) * DAY).toISOString().slice(0, 10);
byId("to").value = byId("from").max = byId("to").max = today;
await show();
