/** Part 5: dead letters and what can be done about them, the catalog and bundle that are loaded, and the doctor. */

import { $, ago, attempt, empty, h, legible, number, plural, say } from "./dom.js";
import { get, post } from "./back.js";

const LISTED = 10;
const TOLD_MS = 1_000;
const FACTS = { id: "bundle", dim: "dimensions", log_length: "events in a log", item_inputs: "items are read by", interests: "interests of a user" };
const SKIPPED = {
  cut: "were too large to be kept whole", unreadable: "are of records that nobody could read", no_use: "are of neither clicks nor catalog",
  failed_again: "failed again before; redrive them one by one", purged: "were purged, or erased with their user, meanwhile", superseded: "are of items that got a later change",
};

export function start() {
  $("letters-again").addEventListener("click", (event) => letters(event.currentTarget));
  $("doctor-run").addEventListener("click", (event) => examine(event.currentTarget));
  $("findings").append(h("li", { class: "empty", text: "It looks at broker, topics, index, bundle and lag. That takes some seconds." }));
}

/** Whether the doctor is here; else why not. */
export function hasDoctor(isHere, why) {
  $("doctor-run").hidden = !isHere;
  if (!isHere) $("findings").replaceChildren(h("li", { class: "empty", text: `Not here: ${why}.` }));
}

/** Read again what may have changed. What somebody has opened stays. */
export async function refresh(about) {
  await Promise.all([isRead() ? null : letters(null, isRead), facts(about)]);
}

const isRead = () => $("letters").querySelector("details") !== null;

/** Show the groups again, unless `isInUse` by the time they come. */
async function letters(button = null, isInUse = () => false) {
  const told = await attempt($("letters-problem"), () => get("/live/letters"), button);
  if (!told || isInUse()) return;
  if (told.groups.length === 0) {
    const done = told.redriven > 0 ? ` ${plural(told.redriven, "letter")} went back to their topics before.` : "";
    $("letters").replaceChildren(empty(`None: every record could be used.${done}`));
    return;
  }
  $("letters").replaceChildren(...told.groups.map(group));
}

function group(each) {
  const name = `${each.reason} on ${each.topic}`;
  const filter = { reasons: [each.reason], topics: [each.topic] };
  const inside = h("div");
  const again = each.failed_again > 0 ? `, ${number(each.failed_again)} failed again` : "";
  const button = (label, kind, listener) => h("button", { type: "button", class: kind, "aria-label": `${label}: ${name}`, text: label, on: { click: listener } });
  return h("div", { class: "group" },
    h("div", { class: "line" },
      h("strong", { text: each.reason }),
      h("span", { class: "note", text: `${plural(each.letters, "letter")} of ${each.topic}${again}, the newest ${ago(each.newest_ms)}` }),
      h("span", { class: "acts" },
        button("Show", "", (event) => shown(inside, each, event.currentTarget)),
        button("Redrive", "", () => redrive(filter, name)),
        button("Purge", "quiet", () => purge(filter, name)),
      ),
    ),
    h("p", { class: "note", text: `The newest: ${each.newest.message}` }),
    each.remedy ? h("p", { class: "note", text: `Remedy: ${each.remedy}` }) : null,
    inside,
  );
}

async function shown(place, each, button) {
  if (place.children.length > 0) return place.replaceChildren();
  const problem = h("div");
  place.replaceChildren(problem);
  const told = await attempt(problem, () => get("/live/letters/list", { reason: each.reason, topic: each.topic, limit: LISTED }), button);
  if (told) place.append(...told.letters.map(letter));
}

function letter(each) {
  const inside = h("div");
  const details = h("details", { class: "letter" },
    h("summary", {}, each.place, h("span", { class: "note", text: `  ${ago(each.put_ms)}, ${plural(each.value_bytes, "byte")}${each.tries > 0 ? `, redriven ${plural(each.tries, "time")}` : ""}` })),
    inside,
  );
  details.addEventListener("toggle", async () => {
    if (!details.open || inside.children.length > 0) return;
    const problem = h("div");
    inside.replaceChildren(problem);
    const told = await attempt(problem, () => get("/live/letters/show", { place: each.place }));
    if (!told) return;
    inside.append(
      h("p", { class: "note", text: told.message }),
      h("pre", { tabindex: 0, "aria-label": "The record", text: told.text || told.hex || "(no value)" }),
      told.text && told.hex ? h("details", {}, h("summary", { text: "Its bytes" }), h("pre", { tabindex: 0, "aria-label": "The bytes of the record", text: told.hex })) : "",
      h("dl", { class: "facts" }, h("dt", { text: "key" }), h("dd", { text: told.key ?? "none" }), ...(told.headers ?? []).flatMap(([name, text]) => [h("dt", { text: name }), h("dd", { text })])),
      told.lacks
        ? h("p", { class: "note", text: `It cannot go back: ${told.lacks}.` })
        : h("div", { class: "row" }, h("button", { type: "button", text: "Redrive this one", on: { click: () => redrive({ place: each.place, max_tries: each.tries + 1 }, each.place) } })),
    );
  });
  return details;
}

async function redrive(filter, name) {
  const problem = $("letters-problem");
  const tried = await attempt(problem, () => post("/live/letters/redrive", { ...filter, dry_run: true }));
  if (!tried) return;
  if (tried.redriven === 0) return report(`Nothing can go back.${told(tried)}`);
  const question = `${plural(tried.redriven, "letter goes back to its topic", "letters go back to their topic")}, with a mark so that each counts once. Fix the cause first: those that fail again come back here.${told(tried)}`;
  if (!(await confirmed(`Redrive ${name}?`, question, "Redrive", true))) return;
  const watching = setInterval(async () => {
    const { under_way: now } = await get("/live/letters/under_way").catch(() => ({}));
    if (now) problem.replaceChildren(h("p", { class: "note", text: `${number(now.redriven)} of ${plural(tried.redriven, "letter")} went back so far. It goes on if this page is closed.` }));
  }, TOLD_MS);
  const done = await attempt(problem, () => post("/live/letters/redrive", { ...filter, rate: Number($("rate").value) }, { isLong: true }));
  clearInterval(watching);
  if (!done) return;
  await letters();
  report(`${plural(done.redriven, "letter")} went back.${told(done)}`);
}

async function purge(filter, name) {
  const problem = $("letters-problem");
  const tried = await attempt(problem, () => post("/live/letters/purge", { ...filter, dry_run: true }));
  if (!tried) return;
  if (!(await confirmed(`Purge ${name}?`, `${plural(tried.purged, "letter is", "letters are")} taken out for good.`, "Purge"))) return;
  const done = await attempt(problem, () => post("/live/letters/purge", filter, { isLong: true }));
  if (!done) return;
  await letters();
  report(`${plural(done.purged, "letter")} taken out.`);
}

function told({ skipped = {}, refused = {} }) {
  const parts = Object.entries(skipped).map(([code, count]) => `${number(count)} stay: they ${SKIPPED[code] ?? code}`);
  const [first] = Object.entries(refused);
  if (first) parts.push(`${plural(Object.keys(refused).length, "letter")} refused, such as ${first[0]}: ${first[1]}`);
  return parts.length > 0 ? ` ${parts.join("; ")}.` : "";
}

function report(sentence) {
  $("letters-problem").replaceChildren(h("p", { class: "note", text: sentence }));
  say(sentence);
}

/** Ask before something that cannot be taken back; with `hasRate`, also how fast. */
function confirmed(title, text, yes, hasRate = false) {
  const dialog = $("confirm");
  $("confirm-rate").hidden = !hasRate;
  $("rate").disabled = !hasRate;
  $("confirm-title").textContent = legible(title);
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function facts(about) {
  const state = await get("/live/state").catch((error) => $("facts").replaceChildren(h("dt", { text: "state" }), h("dd", { text: error.message })));
  if (!state) return;
  const { health, ready, catalog, bundle } = state;
  const rows = [
    ["state", health.ok ? (ready.ready ? "well, serves everything" : `well, waits for ${ready.waits_for.join("; ")}`) : health.reason],
    ["version", about ? `${about.version}, role ${about.role}` : ""],
    ["users", number(health.users)],
    ["items", number(health.items)],
    ["catalog up to", Object.entries(catalog ?? {}).map(([partition, offset]) => `${partition}-${number(offset)}`).join("  ")],
    ...Object.entries(bundle ?? {}).filter(([, value]) => ["string", "number", "boolean"].includes(typeof value)).map(([name, value]) => [FACTS[name] ?? name.replaceAll("_", " "), String(value)]),
    ["deviations", (health.deviations ?? []).join("; ")],
    ["lost clicks", Object.entries(health.lost ?? {}).map(([place, gap]) => `${place}: ${gap.join(" to ")}`).join("; ")],
  ];
  $("facts").replaceChildren(...rows.filter(([, value]) => value !== "" && value !== undefined).flatMap(([name, value]) => [h("dt", { text: name }), h("dd", { text: value })]));
}

async function examine(button) {
  button.textContent = "Examining";
  const told = await attempt($("doctor-problem"), () => get("/live/doctor"), button);
  button.textContent = "Examine";
  if (!told) return;
  const sorted = [...told.findings].sort((a, b) => Number(a.ok) - Number(b.ok));
  $("findings").replaceChildren(...sorted.map((each) =>
    h("li", { class: each.ok ? "ok" : "wrong" },
      h("span", { class: "mark", "aria-label": each.ok ? "well" : "wrong", role: "img", text: each.ok ? "✓" : "✕" }),
      h("span", {}, `${each.what} `, h("small", { text: each.seen })),
    ),
  ));
  const wrong = sorted.filter((each) => !each.ok).length;
  say(wrong === 0 ? "The doctor found nothing wrong." : `The doctor found ${plural(wrong, "thing")} wrong.`);
}
