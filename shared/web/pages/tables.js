// Tables of figures.

import { element } from "./elements.js";

export const number = (...content) => element("td", { className: "number" }, ...content);

// `rows`: [heading of the row, further cells…]. A heading without text is that of a column of bars.
export function table(headings, rows, caption) {
  const head = element(
    "tr",
    {},
    ...headings.map((text, at) => element("th", { scope: "col", className: at && text ? "number" : "" }, text)),
  );
  const body = rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), ...rest));
  return element("table", { "aria-label": caption }, element("thead", {}, head), element("tbody", {}, ...body));
}
