// The published contract, readably: every route with what it takes and gives, and the objects that they are made of.

import { byId, element } from "./elements.js";

const HEADINGS = ["Name", "Type", "Notes"];

const nameOf = (reference) => reference.split("/").pop();

// A schema in a few words and links; what it says beside that goes into the notes.
function kind(schema) {
  if (schema.$ref) return [element("a", { href: `#${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  if (schema.const !== undefined) return [element("code", {}, JSON.stringify(schema.const))];
  if (schema.enum) return [element("code", {}, schema.enum.map((value) => JSON.stringify(value)).join(" | "))];
  if (schema.contentSchema) return ["JSON of ", ...kind(schema.contentSchema)];
  const either = schema.anyOf ?? (schema.properties ? null : schema.oneOf);
  if (either) return either.flatMap((one, at) => (at ? [" or ", ...kind(one)] : kind(one)));
  if (schema.type === "array") return ["list of ", ...kind(schema.items ?? {})];
  return [schema.format ? `${schema.type} (${schema.format})` : (schema.type ?? "anything")];
}

function notes(schema) {
  const limits = {
    minimum: "at least",
    maximum: "at most",
    exclusiveMaximum: "below",
    minLength: "characters, at least",
    minItems: "items, at least",
    maxItems: "items, at most",
    pattern: "matches",
    default: "default",
  };
  const told = Object.entries(limits).filter(([name]) => schema[name] !== undefined && schema[name] !== null);
  const words = told.map(([name, said]) => `${said} ${schema[name]}`);
  return [schema.description, ...words, ...(schema.anyOf ?? []).map(notes)].filter(Boolean).join("; ");
}

function row(name, required, schema) {
  const title = element("code", {}, name);
  return element(
    "tr",
    {},
    element("td", {}, title, required ? " (required)" : ""),
    element("td", {}, ...kind(schema)),
    element("td", {}, notes(schema)),
  );
}

function table(caption, rows) {
  if (!rows.length) return "";
  const head = element("tr", {}, ...HEADINGS.map((name) => element("th", { scope: "col" }, name)));
  const drawn = element("table", {}, element("caption", {}, caption));
  drawn.append(element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { className: "scroll" }, drawn);
}

function fields(caption, schema) {
  const required = schema.required ?? [];
  const rows = Object.entries(schema.properties ?? {}).map(([name, each]) => row(name, required.includes(name), each));
  return table(caption, rows);
}

// What one kind of content is: a list of events, or an object.
function content(type, schema) {
  const line = element("p", {}, element("code", {}, type), ": ");
  if (type !== "text/event-stream") line.append(...kind(schema), schema.description ? ` – ${schema.description}` : "");
  else
    for (const { properties } of schema.oneOf ?? [schema])
      line.append(" ", ...(properties.event ? kind(properties.event) : []), " ", ...kind(properties.data));
  return line;
}

function response(status, { description, content: kinds = {} }) {
  const shown = status < "400" ? Object.entries(kinds).map(([type, { schema }]) => content(type, schema)) : [];
  return element("li", {}, element("strong", {}, status), ` ${description}`, ...shown);
}

function operation(path, method, said) {
  const parameters = (said.parameters ?? []).map(({ name, in: place, required, schema }) =>
    row(`${name} (${place})`, required, schema),
  );
  const body = said.requestBody?.content["application/json"].schema;
  const keys = (said.security ?? []).map((each) => Object.keys(each).join(" and ")).join(", or ");
  const id = `${method}-${path}`;
  return element(
    "section",
    { className: "card", "aria-labelledby": id },
    element("h2", { id }, element("code", {}, `${method.toUpperCase()} ${path}`)),
    element("p", {}, said.summary, ". ", keys ? `Key: ${keys}.` : "Open to anyone."),
    table("Parameters", parameters),
    body ? element("p", {}, "Body: ", ...kind(body)) : "",
    element("ul", {}, ...Object.entries(said.responses).map(([status, each]) => response(status, each))),
  );
}

function model(name, schema) {
  const heading = element("h3", { id: name }, name);
  return element("div", {}, heading, element("p", {}, schema.description ?? ""), fields(name, schema));
}

try {
  const answer = await fetch("/api/openapi.json");
  if (!answer.ok) throw new Error(`it answered ${answer.status}`);
  const { info, paths, components } = await answer.json();
  byId("about").textContent = info.description;
  for (const [path, methods] of Object.entries(paths))
    for (const [method, said] of Object.entries(methods)) byId("operations").append(operation(path, method, said));
  byId("schemas").append(...Object.entries(components.schemas).map(([name, schema]) => model(name, schema)));
  byId("models").parentElement.hidden = false;
  byId("status").hidden = true;
  if (location.hash) location.replace(location.hash); // the browser looked for the place before it was there
} catch (error) {
  byId("status").textContent = `The contract can't be read: ${error.message}. Reload the page to try again.`;
}
