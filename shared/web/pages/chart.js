// Charts, drawn by hand. Heights and widths are floats; the amounts beside them are the digits that were sent.

import { exact, rounded } from "./amounts.js";
import { drawn } from "./elements.js";

const [HEIGHT, LEFT, BOTTOM, TOP] = [240, 72, 24, 10]; // px
const PLOT = HEIGHT - BOTTOM - TOP;
const LABEL = 56; // px that a date's label needs
export const COLOURS = 6;

// A column a day: {date, usd, parts: [{name, usd, colour}]}, the largest part at the bottom.
export function columns(days, { width, chosen, choose }) {
  const most = Math.max(...days.map(({ usd }) => Number(usd))) || 1;
  const step = (width - LEFT) / days.length;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": "Cost per day" });
  svg.append(...[0, 0.5, 1].flatMap((share) => gridLine(share, most, width)));
  days.forEach((day, index) => {
    const labelled = index % Math.ceil(LABEL / step) === 0;
    svg.append(column(day, LEFT + index * step, step, { most, labelled, pressed: day.date === chosen, choose }));
  });
  return svg;
}

function gridLine(share, most, width) {
  const y = TOP + PLOT * (1 - share);
  const label = share ? rounded(String(most * share)) : "$0";
  return [
    drawn("line", { class: "grid-line", x1: LEFT, x2: width, y1: y, y2: y }),
    drawn("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, label),
  ];
}

function column(day, x, width, { most, labelled, pressed, choose }) {
  const told = [`${day.date}: ${exact(day.usd)}`, ...day.parts.map(({ name, usd }) => `${name}: ${exact(usd)}`)];
  const hit = drawn("rect", { class: "hit", x, y: TOP, width, height: PLOT });
  const group = drawn("g", {
    class: "column",
    tabindex: 0,
    role: "button",
    "aria-pressed": pressed,
    "aria-label": told[0],
  });
  group.append(drawn("title", {}, told.join("\n")), hit);
  let y = TOP + PLOT;
  for (const { usd, colour } of day.parts) {
    const height = (PLOT * Number(usd)) / most;
    y -= height;
    group.append(drawn("rect", { class: `colour-${colour}`, x: x + width * 0.15, y, width: width * 0.7, height }));
  }
  if (labelled)
    group.append(drawn("text", { x: x + width / 2, y: HEIGHT - 6, "text-anchor": "middle" }, day.date.slice(5)));
  group.addEventListener("click", () => choose(day.date));
  group.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(day.date);
  });
  return group;
}

// How large a share of the whole something is.
export function bar(usd, whole, colour) {
  const width = Number(whole) ? (100 * Number(usd)) / Number(whole) : 0;
  const svg = drawn("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(drawn("rect", { class: `colour-${colour}`, width, height: 8 }));
  return svg;
}
