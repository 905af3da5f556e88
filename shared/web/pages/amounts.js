// USD as the service wrote them: decimal digits in a string, which never become a float on their way to the reader.

import { element } from "./elements.js";

// The service's JSON, its amounts (fields whose names end in _usd) kept as the digits that were sent.
export function parsed(json) {
  return JSON.parse(json.replace(/"(\w+_usd)":\s*(-?\d+(?:\.\d+)?)/g, '"$1":"$2"'));
}

// At least two significant digits and two decimals: $1.23, $0.00058.
const ROUNDED = new Intl.NumberFormat("en-US", {
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
  minimumSignificantDigits: 2,
  maximumSignificantDigits: 2,
  roundingPriority: "morePrecision",
});
const WHOLE = new Intl.NumberFormat("en-US");

export const rounded = (usd) => `$${isZero(usd) ? "0" : ROUNDED.format(usd)}`;
export const exact = (usd) => (usd === null ? UNKNOWN : `$${usd}`);
export const whole = (number) => WHOLE.format(number);
export const counted = (number, one) => `${whole(number)} ${number === 1 ? one : `${one}s`}`;
export const isZero = (usd) => !/[1-9]/.test(usd);

const UNKNOWN = "price not known";

// The cost of what has one that is known, else null: what has no price was not free.
export const known = (usd, unpriced) => (unpriced && isZero(usd) ? null : usd);

// Rounded to read, exact on hover and for machines.
export function amount(usd) {
  if (usd === null) return element("span", { title: "Set PRICES, or use a model whose list price is known." }, UNKNOWN);
  return element("data", { value: usd, title: exact(usd) }, rounded(usd));
}

// The sum of amounts, digit for digit.
export function sum(amounts) {
  const places = Math.max(0, ...amounts.map((usd) => decimals(usd).length));
  const total = amounts.reduce(
    (so_far, usd) => so_far + BigInt(usd.replace(".", "") + "0".repeat(places - decimals(usd).length)),
    0n,
  );
  const digits = String(total).padStart(places + 1, "0");
  return places ? `${digits.slice(0, -places)}.${digits.slice(-places)}` : digits;
}

const decimals = (usd) => usd.split(".")[1] ?? "";
