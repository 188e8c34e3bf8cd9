/** Part 2, an answer: its items and how they moved, why they are there, what it reflects, and where the time went. */

import { $, h, isStill, ms, number, plural, roving } from "./dom.js";
import { lack, rung } from "./words.js";

const replaceAnswer = roving($("answer"));

const ACTED = { click: "clicked {}", view: "viewed {}", like: "liked {}", add_to_cart: "put {} into the cart", purchase: "bought {}" };

/**
 * Show an answer.
 *
 * `now` and `before` are {answer, items}; `click` is what was published just before, {partition, offset, event_id, took_ms}, or null;
 * `at` tells an answer as it was, {k, of}, or null. `acts(item_id)` makes the buttons of an item, `over(item_id | null)` hears which
 * item is looked at. Returns {changes, isProved}: what changed, in words, and whether the answer reflects `click`.
 */
export function show({ now, before, click, at, whatIf, roundMs, acts, over }) {
  const { answer, items } = now;
  const ranks = new Map((before?.answer.items ?? []).map((each, rank) => [each.item_id, rank]));
  const list = $("answer");
  const was = places(list);
  replaceAnswer(...answer.items.map((each, rank) => thing(each, rank, items, before ? ranks : null, acts, over)));
  if (answer.items.length === 0) replaceAnswer(h("li", { class: "empty", text: "Nothing to recommend." }));
  slide(list, was);
  $("answer-when").textContent = at ? `as it was after ${at.k} of ${plural(at.of, "event")}` : whatIf ? "what if: nothing of it is stored" : "";
  lacks(now);
  earlier(at ? null : before, now);
  const isProved = proof(answer, click, at, whatIf, roundMs);
  stages(now, at ? null : click);
  return { changes: changed(answer, ranks, before), isProved };
}

/** No answer as yet. */
export function clear(text) {
  replaceAnswer(h("li", { class: "empty", text }));
  for (const id of ["proof", "stages", "lacks", "answer-when"]) $(id).replaceChildren();
  earlier(null, null);
}

export const titleOf = (items, itemId) => items[itemId]?.title || itemId;

/** Category and price of an item, as far as they are known. */
export function about(item) {
  const price = item?.price === null || item?.price === undefined ? "" : item.price.toFixed(2);
  return [item?.category, price, item?.available === false ? "not available" : ""].filter(Boolean).join(" · ");
}

function thing(each, rank, items, ranks, acts, over) {
  const moved = ranks === null ? null : movement(ranks.get(each.item_id), rank);
  return h("li", {
    class: moved?.kind === "new" ? "thing fresh" : "thing",
    data: { item: each.item_id },
    on: { mouseenter: () => over(each.item_id), mouseleave: () => over(null), focusin: () => over(each.item_id), focusout: () => over(null) },
  },
    h("div", { class: "line" },
      h("span", { class: "title", text: titleOf(items, each.item_id) }),
      moved && h("span", { class: `moved ${moved.kind}`, "aria-label": moved.said, text: moved.text }),
    ),
    h("p", { class: "about", text: because(each, items) }),
    acts(each.item_id),
  );
}

function movement(from, to) {
  if (from === undefined) return { kind: "new", text: "new", said: "new" };
  if (from === to) return null;
  const by = Math.abs(from - to);
  return from > to ? { kind: "up", text: `▲ ${by}`, said: `up ${by}` } : { kind: "down", text: `▼ ${by}`, said: `down ${by}` };
}

function because(each, items) {
  const reasons = (each.because ?? []).slice(0, 2).map((reason) => {
    const what = (ACTED[reason.action] ?? `${reason.action} {}`).replace("{}", () => titleOf(items, reason.item_id));
    return `${what} (${Math.round(reason.share * 100)} %)`;
  });
  return reasons.length > 0 ? `${each.source}: because you ${reasons.join(", ")}` : each.source;
}

function changed(answer, ranks, before) {
  const fresh = answer.items.filter((each) => !ranks.has(each.item_id)).length;
  return before ? `${number(fresh)} of ${plural(answer.items.length, "item")} are new.` : `${plural(answer.items.length, "item")}.`;
}

function lacks(now) {
  const why = Object.entries(now.answer.why ?? {}).map(([source, code]) => `${source} (${lack(code)})`);
  $("lacks").textContent = why.length > 0 ? `Brought nothing, or too little: ${why.join(", ")}.` : "";
}

function earlier(before, now) {
  const box = $("before-box");
  box.hidden = !before;
  box.parentElement.classList.toggle("both", Boolean(before));
  if (!before) return;
  if (!box.dataset.known) {
    box.dataset.known = "yes";
    box.open = matchMedia("(min-width: 761px)").matches;
  }
  const here = new Set(now.answer.items.map((each) => each.item_id));
  const gone = before.answer.items.filter((each) => !here.has(each.item_id)).length;
  $("before-title").textContent = gone > 0 ? `Before: ${number(gone)} left` : "Before";
  $("before").replaceChildren(
    ...before.answer.items.map((each) => h("li", { class: here.has(each.item_id) ? "" : "gone", text: titleOf(before.items, each.item_id) })),
  );
}

function proof(answer, click, at, whatIf, roundMs) {
  const { reflects, status, rung: missing, error } = answer;
  const lines = [];
  let kind = "proof plain";
  let mark = "•";
  if (error) {
    [kind, mark] = ["proof doubt", "✕"];
    lines.push(`${status}: ${error.message}`);
  } else if (at) {
    const rest = at.k === 0 ? "none of the events" : at.k === 1 ? "the first event alone" : `the first ${at.k} events alone`;
    lines.push(`It rests on ${rest}.`);
  } else if (whatIf) {
    lines.push("As if these clicks had happened. The log does not have them.");
  } else if (reflects && click) {
    const place = `${click.partition}-${click.offset}`;
    const isIn = reflects.partition === click.partition && Number(reflects.offset) >= Number(click.offset);
    const isLast = reflects.last_event_id === click.event_id;
    [kind, mark] = isIn ? ["proof", "✓"] : ["proof doubt", "✕"];
    lines.push(
      isIn
        ? `Proved: your click is record ${place}, and the answer reflects all of them up to ${reflects.partition}-${reflects.offset}${isLast ? ", with yours as the last" : ""}.`
        : `Not proved: your click is record ${place}, and the answer reflects ${reflects.partition}-${reflects.offset}.`,
    );
    lines.push(`${ms(roundMs)} from the click to this answer, in this browser.`);
  } else if (reflects && reflects.offset >= 0) {
    lines.push(`Rests on ${plural(reflects.events, "event")}; reflects the clicks of partition ${reflects.partition} up to ${reflects.offset}.`);
  }
  if (reflects?.pending) lines.push(`${plural(reflects.pending, "event")} wait for their item.`);
  if (reflects?.gap) lines.push(`Clicks ${reflects.gap.first} to ${reflects.gap.last} were deleted before they were read.`);
  if (status === "degraded") lines.push(`Degraded (${missing}): ${rung(missing)}.`);
  $("proof").replaceChildren(h("div", { class: kind }, h("span", { class: "mark", "aria-hidden": "true", text: mark }), h("span", { text: lines.join(" ") })));
  return kind === "proof";
}

const NAMED = { park: "wait for the click", read: "read interests", index: "search", recall: "find and rank", fuse: "fuse", explain: "explain", decode: "decode", publish: "send" };

function stages(now, click) {
  const { total, ...parts } = now.answer.timings_ms ?? {};
  const told = Object.entries(parts).filter(([, value]) => value >= 0.005).map(([name, value]) => [NAMED[name] ?? name, value]);
  const inWorker = told.reduce((sum, [, value]) => sum + value, 0);
  if (click) told.unshift(["store the click", click.took_ms]);
  if (now.took_ms - inWorker > 0.05) told.push(["Kafka, there and back", now.took_ms - inWorker]);
  if (told.length === 0) return $("stages").replaceChildren();
  const all = told.reduce((sum, [, value]) => sum + value, 0);
  const style = (value, index) => ({ "--share": value / all, "--fade": 1 - (0.72 * index) / Math.max(told.length - 1, 1) });
  const head = h("div", { class: "head" }, h("span", { text: click ? "From click to answer, by stage" : "From request to answer, by stage" }), h("span", { text: ms(all) }));
  const bar = h("div", { class: "bar", "aria-hidden": "true" }, ...told.map(([, value], index) => h("span", { style: style(value, index) })));
  const list = h("dl", {}, ...told.map(([name, value], index) => h("div", {}, h("dt", { text: name, style: style(value, index) }), h("dd", { text: ms(value) }))));
  $("stages").replaceChildren(h("div", { class: "stages" }, head, bar, list));
}

function places(list) {
  return new Map([...list.children].map((each) => [each.dataset.item, each.getBoundingClientRect().top]));
}

/** Items glide from where they were. */
function slide(list, was) {
  if (isStill() || was.size === 0) return;
  for (const each of list.children) {
    const from = was.get(each.dataset.item);
    const by = from === undefined ? null : from - each.getBoundingClientRect().top;
    const frames = by === null ? [{ opacity: 0 }, { opacity: 1 }] : by ? [{ transform: `translateY(${by}px)` }, { transform: "none" }] : null;
    if (frames) each.animate(frames, { duration: 420, easing: "cubic-bezier(.2,.7,.2,1)" });
  }
}

