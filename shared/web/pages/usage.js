// The usage page: cost by day, model and caller, and budgets.

import { Access } from "./access.js";
import { amount, bounds, formatInteger, isZero, knownCost, sumUsd } from "./amounts.js";
import { Api, ApiError, ConnectionLost } from "./api.js";
import { budgetTable, monthLine } from "./budgets.js";
import { COLOURS, bar, columns } from "./chart.js";
import { byId, element } from "./elements.js";
import { number, table } from "./tables.js";

const DEFAULT_DAYS = 14;
const DAY_MS = 86_400_000;
const FORBIDDEN = "forbidden"; // code of the error

const utcDate = (time) => new Date(time).toISOString().slice(0, 10);
const today = () => utcDate(Date.now());

const usageKey = { name: "usage-key", label: "Usage key", headers: (key) => ({ Authorization: `Bearer ${key}` }) };
const access = new Access(() => [usageKey]);
const api = new Api(access);

let visit = 0; // incremented for every date range: an outdated response has an older number
let range = { days: [], cost_usd: "0" };
let details = new Map(); // by date; only days with calls
let chosen = null; // a date; null for all days

async function show() {
  const ownVisit = ++visit;
  byId("status").textContent = "Loading…";
  try {
    const response = await api.json(`usage/daily?from=${byId("from").value}&to=${byId("to").value}`);
    if (ownVisit !== visit) return;
    [range, details, chosen] = [response, new Map(), null];
    draw();
    drawBudgets((await api.json("usage/limits")).limits);
    for (const { date } of response.days.filter(({ calls }) => calls)) {
      const day = await api.json(`usage/daily/${date}`);
      if (ownVisit !== visit) return;
      details.set(date, day);
    }
    const day = details.get(today()) ?? (await api.json(`usage/daily/${today()}`));
    if (ownVisit !== visit) return;
    byId("month").replaceChildren(...monthLine(day));
    byId("status").textContent = "";
    draw();
  } catch (error) {
    if (!(error instanceof ApiError || error instanceof ConnectionLost)) throw error;
    if (ownVisit !== visit) return;
    byId("status").textContent = error.message;
    if (error.code === FORBIDDEN) offerKey();
  }
}

// To a person who is no administrator. It is hidden again before the next request.
function offerKey() {
  byId("keys").textContent = "Use a key";
  byId("keys").hidden = false;
}

function draw() {
  const models = shares("by_model", [...details.values()]);
  const colours = new Map(models.map(({ name }, index) => [name, Math.min(index, COLOURS - 1)]));
  const unpriced = range.days.some((day) => day.unpriced_turns);
  byId("total").replaceChildren("Cost per day (UTC): ", amount(knownCost(range.cost_usd, unpriced)));
  const width = Math.max(byId("chart").clientWidth, 280);
  byId("chart").replaceChildren(
    columns(
      range.days.map((day) => drawable(day, colours)),
      { width, chosen, choose },
    ),
  );
  byId("legend").replaceChildren(
    ...models.map(({ name }) => element("li", { className: `colour-${colours.get(name)}` }, name)),
  );
  drawShares(colours);
  byId("days").replaceChildren(dayTable());
}

function drawBudgets(limits) {
  const created = budgetTable(limits);
  byId("budgets").replaceChildren(created ?? "");
  byId("budgets").closest("section").hidden = created === null;
}

function drawable(day, colours) {
  const detail = details.get(day.date);
  const parts = detail ? shares("by_model", [detail]) : [{ name: "all models", usd: day.cost_usd }];
  return {
    date: day.date,
    usd: knownCost(day.cost_usd, day.unpriced_turns),
    parts: parts.filter(({ usd }) => !isZero(usd)).map((part) => ({ ...part, colour: colours.get(part.name) ?? 0 })),
  };
}

function drawShares(colours) {
  const days = chosen ? [details.get(chosen)].filter(Boolean) : [...details.values()];
  byId("which").textContent = chosen ?? "All days";
  byId("all").hidden = chosen === null;
  byId("models").replaceChildren(shareTable("Model", shares("by_model", days), (name) => colours.get(name)));
  byId("callers").replaceChildren(shareTable("Caller", shares("by_caller", days), () => 0));
}

const NAMES = {
  by_model: ({ deployment, model }) => (deployment === model ? model : `${deployment}, ${model}`),
  by_caller: ({ caller }) => caller,
};

// Totals by model or caller over these days, highest cost first.
function shares(kind, days) {
  const groups = Map.groupBy(
    days.flatMap((day) => day[kind]),
    NAMES[kind],
  );
  const total = (rows, field) => rows.reduce((subtotal, row) => subtotal + row[field], 0);
  return [...groups]
    .map(([name, rows]) => ({
      name,
      usd: sumUsd(rows.map((row) => row.cost_usd)),
      calls: total(rows, "calls"),
      tokens: total(rows, "prompt_tokens") + total(rows, "completion_tokens"),
      unpriced: rows.some((row) => row.unpriced_turns),
    }))
    .sort((a, b) => Number(b.usd) - Number(a.usd));
}

function shareTable(title, rows, colour) {
  const total = sumUsd(rows.map(({ usd }) => usd));
  const cells = rows.map(({ name, usd, calls, tokens, unpriced }) => [
    name,
    element("td", { className: "share" }, bar([{ usd, colour: colour(name) ?? 0 }], total)),
    number(amount(knownCost(usd, unpriced))),
    number(formatInteger(calls)),
    number(formatInteger(tokens)),
  ]);
  const created = table([title, "", "Cost", "Settled calls", "Tokens"], cells, `By ${title.toLowerCase()}`);
  created.className = "shares";
  return created;
}

// The unaccounted and the stopped calls are not in the cost: their bounds are beside them.
const HEADINGS = [
  "Day",
  "Cost",
  "Turns",
  "Tokens",
  "Unaccounted calls",
  "Upper bound",
  "Stopped calls",
  "Bounds",
  "Turns of unknown price",
];

function dayTable() {
  const rows = range.days
    .toReversed()
    .map((day) => [
      day.final ? day.date : `${day.date} (not final)`,
      number(amount(knownCost(day.cost_usd, day.unpriced_turns))),
      number(formatInteger(day.turns)),
      number(formatInteger(day.usage.total_tokens)),
      number(formatInteger(day.unaccounted_calls)),
      number(day.unaccounted_calls ? amount(day.unaccounted_usd) : ""),
      number(formatInteger(day.stopped_calls)),
      number(...(day.stopped_calls ? bounds(day.stopped_at_least_usd, day.stopped_at_most_usd) : [])),
      number(formatInteger(day.unpriced_turns)),
    ]);
  return table(HEADINGS, rows, "Day by day");
}

function choose(date) {
  chosen = date === chosen ? null : date;
  draw();
  byId("chart").querySelector('[aria-pressed="true"]')?.focus();
}

byId("range").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
addEventListener("resize", () => range.days.length && draw());
byId("all").addEventListener("click", () => choose(chosen));
byId("keys").addEventListener("click", async () => (await access.ask("Keys")) && show());
byId("sign-out").addEventListener("click", () => access.signOut());

byId("from").value = utcDate(Date.now() - (DEFAULT_DAYS - 1) * DAY_MS);
byId("to").value = byId("from").max = byId("to").max = today();
await show();
