// USD amounts as the server sends them: decimal digits in strings, never converted to floats for display.

import { element } from "./elements.js";

// Parses the server's JSON. Amounts (fields whose names end in _usd) become strings with exactly the digits sent.
export function parseJson(json) {
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
const INTEGER = new Intl.NumberFormat("en-US");
const UNKNOWN = "price not known";

export const roundedUsd = (usd) => `$${isZero(usd) ? "0" : ROUNDED.format(usd)}`;
export const exactUsd = (usd) => (usd === null ? UNKNOWN : `$${usd}`);
export const formatInteger = (number) => INTEGER.format(number);
export const pluralize = (number, noun) => `${formatInteger(number)} ${number === 1 ? noun : `${noun}s`}`;
export const isZero = (usd) => !/[1-9]/.test(usd);

// Null if all of the cost is unpriced: it is then unknown, not zero.
export const knownCost = (usd, unpriced) => (unpriced && isZero(usd) ? null : usd);

// Shows the rounded amount; the title and the value are exact.
export function amount(usd) {
  if (usd === null) return element("span", { title: "Set PRICES, or use a model with a known list price." }, UNKNOWN);
  return element("data", { value: usd, title: exactUsd(usd) }, roundedUsd(usd));
}

// What a stopped call cost. `upper` is null if its price is not known.
export function bounds(lower, upper) {
  return upper === null ? ["at least ", amount(lower)] : ["between ", amount(lower), " and ", amount(upper)];
}

// The exact sum of amounts.
export function sumUsd(amounts) {
  const places = Math.max(0, ...amounts.map((usd) => decimals(usd).length));
  const total = amounts.reduce(
    (subtotal, usd) => subtotal + BigInt(usd.replace(".", "") + "0".repeat(places - decimals(usd).length)),
    0n,
  );
  const digits = String(total).padStart(places + 1, "0");
  return places ? `${digits.slice(0, -places)}.${digits.slice(-places)}` : digits;
}

const decimals = (usd) => usd.split(".")[1] ?? "";
