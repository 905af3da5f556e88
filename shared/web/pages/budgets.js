// Budgets beside costs, and what the month will cost.

import { amount, sumUsd } from "./amounts.js";
import { bar } from "./chart.js";
import { element } from "./elements.js";
import { timeElement } from "./limits.js";
import { number, table } from "./tables.js";

const [SPENT, HELD] = [0, 2]; // colours
const CALLERS = { total: "All callers together", anonymous: "(no key)" };
const PERIODS = { usd_per_day: " a day", usd_per_month: " a month" };

// `limits`: of api/usage/limits. Null if there are no budgets.
export function budgetTable(limits) {
  const rows = limits.flatMap(({ caller, budgets }) => budgets.map((budget) => row(caller, budget)));
  if (!rows.length) return null;
  const created = table(["Caller", "", "Budget", "Spent", "Held", "Left", "Resets"], rows, "Budgets");
  created.className = "budgets";
  return created;
}

function row(caller, { name, limit_usd: limit, spent_usd: spent, held_usd: held, remaining_usd: left, resets_at }) {
  const parts = [
    { usd: spent, colour: SPENT },
    { usd: held, colour: HELD },
  ];
  const all = sumUsd([spent, held]);
  return [
    CALLERS[caller] ?? caller,
    element("td", { className: "share" }, bar(parts, Number(all) > Number(limit) ? all : limit)),
    number(amount(limit), PERIODS[name] ?? ""),
    number(amount(spent)),
    number(amount(held)),
    number(amount(left)),
    number(timeElement(resets_at)),
  ];
}

// `day`: today, of api/usage/daily/{date}. Empty while the month has no cost.
export function monthLine({ month_to_date_usd: soFar, month_forecast_usd: forecast }) {
  if (forecast === null) return [];
  return ["This month: ", amount(soFar), " so far, about ", amount(forecast), " at its end if it goes on like this."];
}
