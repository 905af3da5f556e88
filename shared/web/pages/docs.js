// The OpenAPI description as a page: every route with its parameters, body and responses, and all schemas.

import { byId, element } from "./elements.js";

const HEADINGS = ["Name", "Type", "Notes"];

const nameOf = (reference) => reference.split("/").pop();

// The type of a schema in a few words and links; `notes` has the rest.
function typeOf(schema) {
  if (schema.$ref) return [element("a", { href: `#${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  if (schema.const !== undefined) return [element("code", {}, JSON.stringify(schema.const))];
  if (schema.enum) return [element("code", {}, schema.enum.map((value) => JSON.stringify(value)).join(" | "))];
  if (schema.contentSchema) return ["JSON of ", ...typeOf(schema.contentSchema)];
  const alternatives = schema.anyOf ?? (schema.properties ? null : schema.oneOf);
  if (alternatives) return alternatives.flatMap((each, at) => (at ? [" or ", ...typeOf(each)] : typeOf(each)));
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items ?? {})];
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
  const present = Object.entries(limits).filter(([name]) => schema[name] !== undefined && schema[name] !== null);
  const words = present.map(([name, label]) => `${label} ${schema[name]}`);
  return [schema.description, ...words, ...(schema.anyOf ?? []).map(notes)].filter(Boolean).join("; ");
}

function row(name, required, schema) {
  const title = element("code", {}, name);
  return element(
    "tr",
    {},
    element("td", {}, title, required ? " (required)" : ""),
    element("td", {}, ...typeOf(schema)),
    element("td", {}, notes(schema)),
  );
}

function table(caption, rows) {
  if (!rows.length) return "";
  const head = element("tr", {}, ...HEADINGS.map((name) => element("th", { scope: "col" }, name)));
  const created = element("table", {}, element("caption", {}, caption));
  created.append(element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { className: "scroll" }, created);
}

function fields(caption, schema) {
  const required = schema.required ?? [];
  const rows = Object.entries(schema.properties ?? {}).map(([name, each]) => row(name, required.includes(name), each));
  return table(caption, rows);
}

// A response's content: server-sent events, or an object.
function content(type, schema) {
  const line = element("p", {}, element("code", {}, type), ": ");
  const text = schema.description ? ` – ${schema.description}` : "";
  if (type !== "text/event-stream") line.append(...typeOf(schema), text);
  else
    for (const { properties } of schema.oneOf ?? [schema])
      line.append(" ", ...(properties.event ? typeOf(properties.event) : []), " ", ...typeOf(properties.data));
  return line;
}

function response(status, { description, content: types = {}, headers = {} }) {
  const shown = status < "400" ? Object.entries(types).map(([type, { schema }]) => content(type, schema)) : [];
  return element("li", {}, element("strong", {}, status), ` ${description}`, ...shown, headerList(headers));
}

function headerList(headers) {
  const rows = Object.entries(headers).map(([name, { schema, description }]) =>
    element("li", {}, element("code", {}, name), ` ${schema.type}: ${description}`),
  );
  return rows.length ? element("details", {}, element("summary", {}, "Headers"), element("ul", {}, ...rows)) : "";
}

function operation(path, method, details) {
  const parameters = (details.parameters ?? []).map(({ name, in: place, required, schema }) =>
    row(`${name} (${place})`, required, schema),
  );
  const body = details.requestBody?.content["application/json"].schema;
  const keys = (details.security ?? []).map((each) => Object.keys(each).join(" and ")).join(", or ");
  const id = `${method}-${path}`;
  return element(
    "section",
    { className: "card", "aria-labelledby": id },
    element("h2", { id }, element("code", {}, `${method.toUpperCase()} ${path}`)),
    element("p", {}, details.summary, ". ", keys ? `Key: ${keys}.` : "No key required."),
    table("Parameters", parameters),
    body ? element("p", {}, "Body: ", ...typeOf(body)) : "",
    element("ul", {}, ...Object.entries(details.responses).map(([status, each]) => response(status, each))),
  );
}

function model(name, schema) {
  const heading = element("h3", { id: name }, name);
  return element("div", {}, heading, element("p", {}, schema.description ?? ""), fields(name, schema));
}

try {
  const description = await fetch("/api/openapi.json");
  if (!description.ok) throw new Error(`HTTP ${description.status}`);
  const { info, paths, components } = await description.json();
  byId("about").textContent = info.description;
  for (const [path, methods] of Object.entries(paths))
    for (const [method, details] of Object.entries(methods))
      byId("operations").append(operation(path, method, details));
  byId("schemas").append(...Object.entries(components.schemas).map(([name, schema]) => model(name, schema)));
  byId("models").parentElement.hidden = false;
  byId("status").hidden = true;
  if (location.hash) location.replace(location.hash); // the browser looked for the target before it existed
} catch (error) {
  byId("status").textContent = `The API description can't be loaded (${error.message}). Reload the page to try again.`;
}
