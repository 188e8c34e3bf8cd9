/** Part 2, the log of a shopper as a line, and a handle on it that goes back in time. */

import { $, ago, empty, h, plural } from "./dom.js";

const REFUSED = new Set(["dislike", "hide"]);

/**
 * Show the events of a user, oldest first. `travelled(k)` is called when the handle stops after `k` of them; k is their number for now.
 * Arrow keys move the handle too.
 */
export function show(events, travelled) {
  const place = $("log");
  $("log-note").textContent = events.length > 0 ? `${plural(events.length, "event")} in the log; drag the handle back, or use the arrow keys` : "";
  if (events.length === 0) return place.replaceChildren(empty("No events yet. The answer rests on what is popular."));
  const of = events.length;
  const dots = events.map((event, index) =>
    h("span", { class: REFUSED.has(event.action) ? "event no" : "event", style: { "--at": (index + 1) / of } }),
  );
  const past = h("span", { class: "past", style: { "--at": 1 } });
  const told = h("div", { class: "at" });
  const handle = h("input", { type: "range", min: 0, max: of, step: 1, value: of, "aria-label": "The answer as it was after this many events" });
  let timer = 0;
  const move = () => {
    const k = Number(handle.value);
    past.style.setProperty("--at", k / of);
    dots.forEach((dot, index) => dot.classList.toggle("later", index >= k));
    const event = events[k - 1];
    const words = event ? `${event.action} ${event.title ?? event.item_id ?? "an item that is gone"}, ${ago(event.at_ms)}` : "before the first event";
    handle.setAttribute("aria-valuetext", k === of ? `now: ${words}` : words);
    told.replaceChildren(...[
      h("span", { class: "note", text: k === of ? "Now, after" : `After ${k} of ${of}:` }),
      h("span", { class: "title", text: event ? event.title ?? event.item_id ?? "an item that is gone" : "nothing yet" }),
      event && h("span", { class: "note", text: `${event.action}, ${ago(event.at_ms)}${event.pending ? ", waits for its item" : ""}` }),
      k < of && h("button", { type: "button", text: "Back to now", on: { click: () => jump(of) } }),
    ].filter(Boolean));
  };
  const jump = (k) => {
    handle.value = k;
    move();
    travelled(k);
    handle.focus();
  };
  handle.addEventListener("input", () => {
    move();
    clearTimeout(timer);
    timer = setTimeout(() => travelled(Number(handle.value)), 90);
  });
  place.replaceChildren(
    h("div", { class: "line-of-time" }, past, ...dots, handle),
    h("div", { class: "ends" }, h("span", { text: "nothing known" }), h("span", { text: "now" })),
    told,
  );
  move();
}
