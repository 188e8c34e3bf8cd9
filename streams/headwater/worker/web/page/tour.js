/** Part 6: a tour that clicks for the visitor. It makes up a shopper of its own, and says so. */

import { $, h, isStill, say } from "./dom.js";
import * as shopper from "./shopper.js";

const STORED = "headwater-tour";
// Words that most shops have something for, in two directions.
const WORDS = [
  ["chocolate", "milk", "coffee", "shoes", "book", "film"],
  ["cat food", "garden", "soap", "shirt", "music", "game"],
];
const SETTLE_MS = 900;

const STEPS = [
  {
    at: "stream",
    title: "A stream of clicks",
    text: () => "Every second this worker tells what it did. The dashed line is the promise: from a click to an answer that knows it, within 50 ms for 99 of 100.",
  },
  {
    at: "answer-card",
    side: "left",
    title: "Nobody yet",
    text: () => `I made up a shopper for you, ${shopper.current()}. Nothing is known of them, so the answer is what is popular.`,
    run: () => shopper.beNew(),
  },
  {
    at: "search-card",
    title: "Looking for something",
    text: ({ word, found }) => (found ? `I searched for “${word}”. The items found are in the catalog now; any of them can be clicked.` : "The catalog has nothing of what I know to search for. I take an item of the answer instead."),
    run: (tour) => search(tour, 0),
  },
  {
    at: "answer-card",
    side: "left",
    title: "One click",
    text: () => "I clicked the first one. The click went through Kafka, became part of the shopper's interests, and the new answer proves that it knows it. What is new is marked, and the bar shows where the milliseconds went.",
    run: (tour) => shopper.act(item(tour, 0), "click"),
  },
  {
    at: "map-card",
    side: "left",
    title: "The interests move",
    text: ({ word }) => `The large dot is what the shopper is interested in, the rings are what is recommended. I bought something else${word ? `, of “${word}”` : ""}, and both moved.`,
    run: async (tour) => {
      await search(tour, 1);
      await shopper.act(item(tour, 0), "purchase");
    },
  },
  {
    at: "log-card",
    side: "left",
    title: "Back in time",
    text: () => "I pulled the handle back to the first event. This is the answer as it was then. The arrow keys move it too.",
    run: () => handleTo((of) => Math.min(1, of)),
  },
  {
    at: "funnel",
    title: "How it came about",
    text: () => "And back to now. Sources propose, the pipeline fuses, filters and sorts. Each step opens to show which items it let through or took out.",
    run: () => handleTo((of) => of),
  },
  {
    at: "trust",
    title: "When something is wrong",
    text: () => "Records that cannot be used wait here with their reason, and can be sent again once the cause is fixed. The doctor examines the whole system. That is all: now it is your turn.",
  },
];

/** Search for the first word that the catalog has something for. */
async function search(tour, direction) {
  tour.word = tour.found = null;
  for (const word of WORDS[direction]) {
    $("search").value = word;
    const told = await shopper.search(word);
    if (told?.items.length > 0) return Object.assign(tour, { word, found: told.items });
  }
  return undefined;
}

/** What was found, else what was recommended. */
function item({ found }, number) {
  const chosen = found?.[number] ?? shopper.answer()?.answer.items[0];
  if (!chosen) throw new Error("there is nothing to click, since the catalog is empty as yet. Go back a step later.");
  return chosen.item_id;
}

let place = -1;
let known = {};
let opener = null;
let isBusy = false;

export function start() {
  $("tour-start").addEventListener("click", (event) => begin(event.currentTarget));
  $("welcome-go").addEventListener("click", () => begin($("tour-start")));
  $("welcome-no").addEventListener("click", () => {
    localStorage.setItem(STORED, "seen");
    $("welcome").hidden = true;
    $("tour-start").focus();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && place >= 0 && !$("confirm").open && end());
}

/** Offer the tour to those who have not seen it. */
export function offer() {
  $("welcome").hidden = localStorage.getItem(STORED) !== null;
}

function begin(button) {
  localStorage.setItem(STORED, "seen");
  $("welcome").hidden = true;
  opener = button;
  known = {};
  go(0);
}

function end() {
  spot(null);
  place = -1;
  $("tour").hidden = true;
  opener?.focus();
}

async function go(next) {
  if (isBusy) return;
  if (next >= STEPS.length) return end();
  const forward = next > place;
  place = next;
  const step = STEPS[place];
  isBusy = true;
  spot(step.at);
  try {
    // What a step did stays done when the visitor goes back.
    if (forward && step.run && !known[place]) {
      show(step, "Wait, I do it for you.", true);
      await step.run(known);
      known[place] = true;
    }
    show(step, step.text(known), false);
  } catch (error) {
    show(step, `This did not work: ${error.message}`, false);
  } finally {
    isBusy = false;
  }
}

function show(step, text, isWaiting) {
  const card = $("tour");
  const isLast = place === STEPS.length - 1;
  card.hidden = false;
  card.className = step.side ?? "";
  card.replaceChildren(
    h("div", { class: "progress", "aria-hidden": "true" }, ...STEPS.map((_, index) => h("span", { class: index <= place ? "done" : "" }))),
    h("span", { class: "of", text: `Step ${place + 1} of ${STEPS.length}` }),
    h("h3", { id: "tour-title", text: step.title }),
    h("p", { text }),
    h("div", { class: "row" },
      h("button", { type: "button", class: "primary", id: "tour-next", text: isLast ? "Done" : "Next", disabled: isWaiting, on: { click: () => go(place + 1) } }),
      place > 0 && h("button", { type: "button", id: "tour-back", text: "Back", disabled: isWaiting, on: { click: () => go(place - 1) } }),
      !isLast && h("button", { type: "button", class: "quiet", id: "tour-end", text: "End the tour", on: { click: end } }),
    ),
  );
  if (isWaiting) return card.focus({ preventScroll: true });
  $("tour-next").focus({ preventScroll: true });
  return say(`Step ${place + 1} of ${STEPS.length}. ${step.title}. ${text}`);
}

function spot(id) {
  for (const each of document.querySelectorAll(".spot")) each.classList.remove("spot");
  if (id === null) return;
  const element = $(id);
  element.classList.add("spot");
  element.scrollIntoView({ behavior: isStill() ? "auto" : "smooth", block: "start" });
}

async function handleTo(where) {
  const handle = document.querySelector("#log input[type=range]");
  if (!handle) return;
  handle.value = where(Number(handle.max));
  handle.dispatchEvent(new Event("input"));
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
}
