// Budgets and the times of their reset, in words.

import { amount, isZero } from "./amounts.js";
import { element } from "./elements.js";

// In the browser's time zone: Sun 29 Nov, 01:00.
const LOCAL = new Intl.DateTimeFormat("en-GB", {
  weekday: "short",
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const PERIODS = { usd_per_day: "daily budget", usd_per_month: "monthly budget" };

export const budgetName = (name) => PERIODS[name] ?? "budget";

export function localTime(utc) {
  const parts = Object.fromEntries(LOCAL.formatToParts(new Date(utc)).map(({ type, value }) => [type, value]));
  return `${parts.weekday} ${parts.day} ${parts.month}, ${parts.hour}:${parts.minute}`;
}

export const timeElement = (utc) => element("time", { dateTime: utc, title: `${utc} (UTC)` }, localTime(utc));

// What is left of a budget of the caller.
export function remainingNote({ name, remaining_usd, resets_at }) {
  const left = isZero(remaining_usd) ? ["Nothing"] : [amount(remaining_usd)];
  return [...left, ` of your ${budgetName(name)} is left until `, timeElement(resets_at), "."];
}
