// The gateway's routes from /openapi.json, each with a form that sends it.
import { asText, bodyField, el, field, fieldTable, keyField, prose, resolved, shown, trial } from "./schema.js";

function operation(path, method, told, whole, key) {
  const given = told.requestBody?.content["application/json"];
  const parameters = (told.parameters ?? []).map((each) => ({
    each,
    ...field(`${each.name}${each.required ? " *" : ""}: ${each.description ?? `in the ${each.in}`}`, each.schema.default ?? "",
      each.required ? { required: "" } : {}),
  }));
  const body = given ? bodyField("Body", asText(given.example ?? {})) : null;
  const request = () => {
    let target = path;
    const headers = {};
    const query = new URLSearchParams();
    for (const { each, input } of parameters) {
      if (each.in === "path") target = target.replace(`{${each.name}}`, encodeURIComponent(input.value));
      else if (input.value && each.in === "query") query.set(each.name, input.value);
      else if (input.value) headers[each.name] = input.value;
    }
    const asked = query.toString();
    return { method: method.toUpperCase(), path: asked ? `${target}?${asked}` : target, headers, body: body?.input.value };
  };
  const answers = Object.entries(told.responses).map(([status, each]) => el("tr", {},
    el("th", { scope: "row" }, status), el("td", {}, ...prose(each.description))));
  return el("details", {},
    el("summary", {}, el("span", { class: "method" }, method), " ", el("span", { class: "path" }, path), ` ${told.summary}`),
    told.description ? el("p", {}, told.description) : null,
    given ? el("h3", {}, "Body") : null,
    given ? fieldTable(given.schema, whole) : null,
    el("h3", {}, "Answers"), el("table", {}, el("tbody", {}, ...answers)),
    el("h3", {}, "Try it"),
    trial(request, key, [...parameters.map(({ view }) => view), ...(body ? [body.view] : [])]));
}

shown("../openapi.json", (whole) => {
  const key = keyField();
  const operations = Object.entries(whole.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, told]) => operation(path, method, told, whole, key.input)));
  const schemas = Object.keys(whole.components.schemas).map((name) => el("details", {},
    el("summary", {}, name), fieldTable(resolved({ $ref: `#/components/schemas/${name}` }, whole), whole)));
  return [el("nav", {}, el("a", { href: "topics" }, "The topics"), " ", el("a", { href: "../" }, "The live page"), " ", el("a", { href: "../llms.txt" }, "All pages")),
    key.view, el("h2", {}, "Routes"), ...operations, el("h2", {}, "Messages"), ...schemas];
});
