// What both pages show: schemas as tables, examples made of them, and a request with its answer.
// Text goes into the page as text; a key stays in its field and is sent with the requests of this page alone.

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Text with `code` in it.
export function prose(text) {
  return text.split("`").map((part, place) => (place % 2 ? el("code", {}, part) : part));
}

export function resolved(node, whole) {
  let found = node;
  for (let steps = 0; found && found.$ref && steps < 20; steps += 1) {
    found = found.$ref.replace(/^#\//, "").split("/").reduce((at, step) => at?.[step], whole);
  }
  return found ?? {};
}

function typeOf(schema, whole) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return either.map((each) => typeOf(each, whole)).join(" | ");
  if (schema.type === "array") {
    const items = Array.isArray(schema.items) ? schema.items : [schema.items ?? {}];
    return `[${items.map((each) => typeOf(each, whole)).join(", ")}]`;
  }
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return `{name: ${typeOf(schema.additionalProperties, whole)}}`;
  }
  return schema.type ?? "any";
}

function meaning(schema) {
  const either = schema.anyOf ?? schema.oneOf ?? [];
  return schema.description ?? either.map((each) => each.description).find(Boolean);
}

function bounds(schema) {
  const names = { minimum: "≥", maximum: "≤", minLength: "length ≥", maxLength: "length ≤", maxItems: "items ≤" };
  return Object.entries(names).filter(([name]) => name in schema).map(([name, sign]) => `${sign} ${schema[name]}`).join(", ");
}

export function fieldTable(schema, whole) {
  const shown = resolved(schema, whole);
  const required = new Set(shown.required ?? []);
  const rows = Object.entries(shown.properties ?? {}).map(([name, field]) => el("tr", {},
    el("th", { scope: "row" }, el("code", {}, name), required.has(name) ? " *" : ""),
    el("td", { class: "type" }, typeOf(field, whole)),
    el("td", {}, ...prose([meaning(field), bounds(field), "default" in field && field.default !== null
      ? `default ${JSON.stringify(field.default)}` : ""].filter(Boolean).join("; ")))));
  if (rows.length === 0) return el("p", { class: "dim" }, ...prose(shown.description ?? typeOf(shown, whole)));
  const head = el("tr", {}, ...["field (* needed)", "type", "meaning"].map((each) => el("th", { scope: "col" }, each)));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
}

export const asText = (value) => JSON.stringify(value, null, 2);

export function keyField() {
  // Never stored: not in a cookie, not in the browser's storage, not by its password manager.
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", id: "key" });
  return { input, view: el("label", {}, "Key, where the gateway wants one (it is kept in this field alone)", input) };
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function curlOf(method, url, headers, body) {
  const parts = ["curl -s", method === "GET" || (method === "POST" && body) ? "" : `-X ${method}`, quoted(url)];
  for (const [name, value] of Object.entries(headers)) {
    parts.push("-H", quoted(`${name}: ${name === "Authorization" ? "Bearer KEY" : value}`));
  }
  if (body) parts.push("-d", quoted(body));
  return parts.filter(Boolean).join(" ");
}

// A form that sends one request and shows its answer. `given` tells method, path, headers and body at that moment.
export function trial(given, key, children) {
  const out = el("div", { role: "status" });
  const button = el("button", { type: "submit" }, "Send");
  async function send(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      const { method, path, headers, body } = given();
      const all = { ...headers };
      if (body) all["Content-Type"] = "application/json";
      if (key.value) all.Authorization = `Bearer ${key.value}`;
      const url = new URL(`..${path}`, document.baseURI);
      out.replaceChildren(el("p", { class: "dim" }, "Sent."));
      const began = performance.now();
      const answer = await fetch(url, { method, headers: all, body: body || undefined, cache: "no-store", credentials: "omit" });
      const text = await answer.text();
      const took = (performance.now() - began).toFixed(1);
      const told = ["headwater-position", "retry-after"].filter((name) => answer.headers.has(name))
        .map((name) => `${name}: ${answer.headers.get(name)}`);
      let shown = text;
      try { shown = asText(JSON.parse(text)); } catch { /* as it came */ }
      out.replaceChildren(el("p", {}, [`Status ${answer.status}`, `${took} ms`, ...told].join(", ")),
        el("pre", { tabindex: "0" }, shown), el("p", {}, "The same from a terminal:"),
        el("pre", { tabindex: "0" }, curlOf(method, url.href, all, body)));
    } catch (error) {
      out.replaceChildren(el("p", {}, `No answer: ${error.message}`));
    } finally {
      button.disabled = false;
    }
  }
  return el("form", { onsubmit: send }, ...children, button, out);
}

export function field(label, value = "", attributes = {}) {
  const input = el("input", { value, autocomplete: "off", ...attributes });
  return { input, view: el("label", {}, label, input) };
}

export function bodyField(label, value) {
  const input = el("textarea", { spellcheck: "false" });
  input.value = value;
  return { input, view: el("label", {}, label, input) };
}

export async function shown(path, view) {
  const content = document.getElementById("content");
  try {
    const answer = await fetch(new URL(path, document.baseURI), { credentials: "omit" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const whole = await answer.json();
    document.getElementById("top").append(el("p", {}, ...prose(whole.info.description), " ", el("a", { href: path }, "The document")));
    content.replaceChildren(...view(whole));
    content.removeAttribute("aria-live");
  } catch (error) {
    content.replaceChildren(el("p", {}, `The document cannot be shown: ${error.message}`));
  }
}
