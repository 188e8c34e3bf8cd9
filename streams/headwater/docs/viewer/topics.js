// The topics from /asyncapi.json. Beside a gateway, what it can publish has a form that sends it there.
import { asText, bodyField, el, fieldTable, keyField, prose, resolved, shown, trial } from "./schema.js";

// Made by the gateway, or of no use in a first try.
const LEFT_OUT = ["request_id", "event_id", "at_ms", "after"];

function message(told, whole, key) {
  const example = told.examples?.[0]?.payload;
  const headers = told.headers ? [el("h3", {}, "Headers"), fieldTable(told.headers, whole)] : [];
  const parts = [el("p", {}, told.summary),
    el("p", { class: "dim" }, ...prose(`Key: ${told.bindings.kafka.key.description ?? told.bindings.kafka.key.type}; ${told.contentType}`)),
    el("h3", {}, "Fields"), fieldTable(told.payload, whole), ...headers];
  if (example) parts.push(el("h3", {}, "Example"), el("pre", { tabindex: "0" }, asText(example)));
  if (key && told["x-gateway"]) {
    const kept = Object.fromEntries(Object.entries(example).filter(([name]) => !LEFT_OUT.includes(name)));
    const body = bodyField("Message; the gateway adds what is left out", asText(kept));
    const given = () => ({ method: "POST", path: told["x-gateway"], headers: {}, body: body.input.value });
    parts.push(el("h3", {}, "Publish it through the gateway"), trial(given, key, [body.view]));
  }
  return el("details", {}, el("summary", {}, told.name), ...parts);
}

function channel(name, told, whole, key) {
  const topic = told.bindings.kafka;
  const actions = Object.values(whole.operations).filter((each) => each.channel.$ref === `#/channels/${name}`)
    .map((each) => each.action).join(" and ");
  const configuration = Object.entries(topic.topicConfiguration).map(([key_, value]) => `${key_}=${value}`).join("\n");
  const messages = Object.values(told.messages).map((each) => message(resolved(each, whole), whole, key));
  return el("section", {}, el("h2", {}, told.address), el("p", {}, told.summary),
    el("p", { class: "dim" }, `The workers ${actions || "leave it alone"}. Partitions: ${topic.partitions}, replicas: ${topic.replicas}.`),
    ...messages, el("details", {}, el("summary", {}, "Configuration"), el("pre", { tabindex: "0" }, configuration)));
}

shown("../asyncapi.json", (whole) => {
  const hasGateway = Object.values(whole.components.messages).some((each) => each["x-gateway"]);
  const key = hasGateway ? keyField() : null;
  const links = [hasGateway ? el("a", { href: "api" }, "The gateway's routes") : null, " ", el("a", { href: "../" }, "The live page"), " ", el("a", { href: "../llms.txt" }, "All pages")];
  return [el("nav", {}, ...links.filter(Boolean)), key?.view ?? el("p", {}, "On a gateway (headwater gateway), this page can publish messages."),
    ...Object.entries(whole.channels).map(([name, told]) => channel(name, told, whole, key?.input))];
});
