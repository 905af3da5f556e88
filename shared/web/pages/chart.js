// SVG charts. Heights and widths are floats; labels show amounts with exactly the digits that the server sent.

import { exactUsd, roundedUsd } from "./amounts.js";
import { svgElement } from "./elements.js";

const [HEIGHT, LEFT, BOTTOM, TOP] = [240, 72, 24, 10]; // px
const PLOT = HEIGHT - BOTTOM - TOP;
const LABEL_WIDTH = 56; // px
export const COLOURS = 6;

// One column per day. `days`: [{date, usd, parts: [{name, usd, colour}]}], the largest part first, drawn at the bottom.
export function columns(days, { width, chosen, choose }) {
  const max = Math.max(...days.map(({ usd }) => Number(usd))) || 1;
  const step = (width - LEFT) / days.length;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": "Cost per day" });
  svg.append(...[0, 0.5, 1].flatMap((share) => gridLine(share, max, width)));
  days.forEach((day, index) => {
    const labelled = index % Math.ceil(LABEL_WIDTH / step) === 0;
    svg.append(column(day, LEFT + index * step, step, { max, labelled, pressed: day.date === chosen, choose }));
  });
  return svg;
}

function gridLine(share, max, width) {
  const y = TOP + PLOT * (1 - share);
  const label = share ? roundedUsd(String(max * share)) : "$0";
  return [
    svgElement("line", { class: "grid-line", x1: LEFT, x2: width, y1: y, y2: y }),
    svgElement("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, label),
  ];
}

function column(day, x, width, { max, labelled, pressed, choose }) {
  const lines = [`${day.date}: ${exactUsd(day.usd)}`, ...day.parts.map(({ name, usd }) => `${name}: ${exactUsd(usd)}`)];
  const clickArea = svgElement("rect", { class: "hit", x, y: TOP, width, height: PLOT });
  const group = svgElement("g", {
    class: "column",
    tabindex: 0,
    role: "button",
    "aria-pressed": pressed,
    "aria-label": lines[0],
  });
  group.append(svgElement("title", {}, lines.join("\n")), clickArea);
  let y = TOP + PLOT;
  for (const { usd, colour } of day.parts) {
    const height = (PLOT * Number(usd)) / max;
    y -= height;
    group.append(svgElement("rect", { class: `colour-${colour}`, x: x + width * 0.15, y, width: width * 0.7, height }));
  }
  if (labelled)
    group.append(svgElement("text", { x: x + width / 2, y: HEIGHT - 6, "text-anchor": "middle" }, day.date.slice(5)));
  group.addEventListener("click", () => choose(day.date));
  group.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(day.date);
  });
  return group;
}

// A horizontal bar. `parts`: [{usd, colour}], drawn one after the other, each as long as its share of `total`.
export function bar(parts, total) {
  const svg = svgElement("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  let x = 0;
  for (const { usd, colour } of parts) {
    const width = Number(total) ? (100 * Number(usd)) / Number(total) : 0;
    svg.append(svgElement("rect", { class: `colour-${colour}`, x, width, height: 8 }));
    x += width;
  }
  return svg;
}
