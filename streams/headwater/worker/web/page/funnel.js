/** Part 3: an answer as a funnel, from what the sources proposed to what is shown. The stages are those of `messages.FunnelStage`. */

import { $, empty, h, number, plural } from "./dom.js";

const NAMES = {
  fused: ["Fused", "Several rankings become one."],
  filtered: ["Filtered", "The filter takes out what does not match."],
  unavailable: ["Available", "What is not available goes."],
  excluded: ["Excluded", "What the shopper has seen or hidden goes."],
  refilled: ["Refilled", "The sources bring their next ones instead."],
  scored: ["Scored", "The bundle's own scores order them."],
  lowered: ["Lowered", "Dislikes push away what is like them."],
  diversified: ["Diversified", "What is unlike the ones before it comes up."],
  shown: ["Shown", "The first ones are the answer."],
};
const WHY = {
  filter: "does not match", unavailable: "not available", gone: "not in the catalog any more", seen: "seen", hidden: "hidden",
  excluded: "excluded by the request", not_found: "not found", no_vector: "no vector", beyond_limit: "beyond the limit",
};

/** `answer`, and the items known by their ids. Null: there is none as yet. */
export function show(answer, items) {
  const place = $("funnel-steps");
  const stages = answer?.funnel ?? [];
  if (stages.length === 0) {
    const text = answer ? "This answer tells nothing of how it came about." : "An answer comes first: be a shopper above.";
    return place.replaceChildren(empty(text));
  }
  const most = Math.max(1, ...stages.map((each) => each.count));
  const open = new Set([...place.querySelectorAll("details[open]")].map((each) => each.dataset.stage));
  const steps = stages.map((each) => step(each, most, items, answer));
  for (const each of steps) each.open = open.has(each.dataset.stage);
  return place.replaceChildren(h("div", { class: "funnel" }, ...steps));
}

function step(stage, most, items, answer) {
  const isSource = stage.stage === "sources";
  const [name, told] = isSource ? [stage.source, `Weight ${number(stage.weight ?? 0)}.`] : NAMES[stage.stage] ?? [stage.stage, ""];
  const of = isSource ? `${stage.stage}-${stage.source}` : stage.stage;
  return h("details", { class: isSource ? "step source" : "step", data: { stage: of } },
    h("summary", {},
      h("span", { class: "name", text: name }),
      h("span", { class: "track", "aria-hidden": "true" }, h("span", { class: "fill", style: { "--share": stage.count / most } })),
      h("span", { class: "count", text: number(stage.count) }),
      h("span", { class: "lost", text: changes(stage) }),
    ),
    h("div", { class: "inside" }, h("h4", { text: told }), tags(stage, items, answer)),
  );
}

function changes({ stage, out = 0, entered = 0, moved = 0, merged = 0 }) {
  const parts = [
    merged > 0 && `${number(merged)} in common`,
    out > 0 && (stage === "shown" ? `${number(out)} beyond the limit` : `${number(out)} out`),
    entered > 0 && `${number(entered)} in`,
    moved > 0 && `${number(moved)} moved`,
  ].filter(Boolean);
  return parts.join(", ");
}

function tags(stage, items, answer) {
  const told = stage.items ?? [];
  const title = (itemId) => items[itemId]?.title || itemId;
  const list = told.map((each) => {
    const isOut = each.rank === undefined || each.rank === null;
    const place = isOut ? WHY[each.why] ?? each.why ?? "" : each.was && each.was !== each.rank ? `${each.was} → ${each.rank}` : `${each.rank}`;
    return h("span", { class: isOut && stage.stage !== "shown" ? "tag out" : "tag" }, title(each.item_id), h("small", { text: place }));
  });
  if (stage.stage === "shown") {
    const shown = answer.items.map((each, index) => h("span", { class: "tag" }, title(each.item_id), h("small", { text: index + 1 })));
    return h("div", { class: "tags" }, ...shown);
  }
  return list.length > 0 ? h("div", { class: "tags" }, ...list) : h("p", { class: "note", text: `No item went, came or moved; ${plural(stage.count, "candidate")} pass.` });
}
