/** Part 2: be a shopper. Looks users up, publishes what is clicked, and asks before and after. */

import { $, ago, attempt, empty, h, number, roving, say } from "./dom.js";
import { get, post } from "./back.js";
import * as answers from "./answer.js";
import * as funnel from "./funnel.js";
import * as log from "./log.js";

const LIMIT = 8;
const DIVERSITY = 0.3;
const RECENT = 8;
const CALM_MS = 5_000;
const FOUND = 20;
const TYPING_MS = 180;
const replaceFound = roving($("found"));
const ACTIONS = [["click", "Click"], ["purchase", "Buy"], ["dislike", "Dislike"]];

let map = null;
let id = null;
let user = null; // as the worker describes it; null: it knows nothing of this one
let interests = []; // of the answer that is shown
let now = null; // the answer that is shown, {answer, items, took_ms}
let tries = []; // what is only tried, [{item_id, action}]
const known = Object.create(null); // items seen so far, by id; an id may be any word, also one that objects have
let asking = null; // the request on its way
let recent = [];
let recentAt = 0;
let isWatched = false;
let elsewhere = ""; // why nothing of the user can be told here

/** `catalogMap` shows what this part knows. */
export function start(catalogMap) {
  map = catalogMap;
  $("who-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = $("who").value.trim();
    if (typed) look(typed);
    else $("who").focus();
  });
  $("who-new").addEventListener("click", () => beNew());
  $("who").addEventListener("input", debounced(suggest));
  $("what-if").addEventListener("change", () => {
    if (!$("what-if").checked && tries.length > 0) untry();
  });
  $("search-form").addEventListener("submit", (event) => event.preventDefault());
  $("search").addEventListener("input", debounced(() => search($("search").value)));
  nothing("Pick a shopper above, or be a new one.");
  log.show([], () => {});
  $("log").replaceChildren(empty("Nobody is picked."));
}

/** Users who clicked just now, from the stream; the first ones are offered to be looked at. */
export function sawClicks(clicks) {
  isWatched = true;
  const fresh = clicks.map((each) => each.user_id).reverse();
  const next = [...new Set([...fresh, ...recent])].slice(0, RECENT);
  // Names that change under the pointer, or every second, cannot be chosen.
  if (recent.length > 0 && (Date.now() - recentAt < CALM_MS || $("who-recent").matches(":hover, :focus-within"))) return;
  [recent, recentAt] = [next, Date.now()];
  $("who-recent").replaceChildren(
    ...recent.map((each) => h("button", { type: "button", class: each === id ? "chip on" : "chip", text: each, on: { click: () => look(each) } })),
  );
}

/** Offer those who were active last, where the stream tells of none. */
export async function suggestSome() {
  const found = await get("/live/users", { limit: RECENT }).catch(() => null);
  if (found && !isWatched) sawClicks(found.users.map((each) => ({ user_id: each.user_id })).reverse());
}

export const current = () => id;
export const answer = () => now;

export function beNew() {
  const parts = crypto.getRandomValues(new Uint8Array(3));
  return look(`visitor-${[...parts].map((each) => each.toString(16).padStart(2, "0")).join("")}`);
}

/** Become the user `userId`. */
export async function look(userId) {
  id = userId;
  $("who").value = userId;
  [user, now, tries, interests] = [null, null, [], []];
  $("what-if").checked = false;
  tried();
  await attempt($("who-problem"), async () => {
    await learn();
    if (id !== userId) return; // somebody else by now
    await ask({});
    say(`You are ${userId}. ${user ? `${number(user.events.length)} events known.` : "Nothing is known of you yet."}`);
  });
  if (id !== userId) return;
  if (now === null) nothing("No answer.");
  showLog();
}

/** Do something to an item: publish it, or only try it, and ask again. */
export async function act(itemId, action, button = null) {
  if (id === null) await beNew();
  if ($("what-if").checked) {
    tries.push({ item_id: itemId, action });
    tried();
    return attempt($("answer-problem"), () => ask({}), button);
  }
  return attempt($("answer-problem"), async () => {
    const [started, who] = [performance.now(), id];
    const click = await post("/live/clicks", { user_id: who, item_id: itemId, action });
    if (id !== who) return;
    await ask({ click, started });
    await learn();
    if (id !== who) return;
    showLog();
    showMap(user?.events);
  }, button);
}

/** What is known of the user by now. */
async function learn() {
  const who = id;
  const [found, why] = await described(who);
  if (id === who) [user, elsewhere] = [found, why];
}

/** What the worker knows of a user, and why it can tell nothing. */
async function described(userId) {
  try {
    return [await get(`/live/users/${encodeURIComponent(userId)}`), ""];
  } catch (error) {
    if (["elsewhere", "newer_format", "not_here"].includes(error.code)) return [null, error.message];
    if (error.code === "unknown_user") return [null, ""];
    throw error;
  }
}

/** Ask for an answer. `click` is what it has to reflect, `at` the number of events that count, where not all do. */
async function ask({ click = null, started = performance.now(), at = null }) {
  asking?.abort();
  const mine = (asking = new AbortController());
  const body = { user_id: id, limit: LIMIT, diversity: DIVERSITY, explain: true };
  const isTried = tries.length > 0 && at === null;
  if (isTried) {
    body.session = tries.filter((each) => each.action !== "dislike");
    body.exclude = tries.filter((each) => each.action === "dislike").map((each) => each.item_id);
  }
  if (click) body.after = { partition: click.partition, offset: click.offset };
  if (at !== null) body.until_ms = at.ms;
  const before = now;
  const next = await post("/live/recall", body, { signal: mine.signal });
  const roundMs = performance.now() - started;
  learned(next.items);
  now = next;
  const { changes, isProved } = answers.show({
    now: next,
    before: click || isTried || at ? before : null,
    click,
    at,
    whatIf: isTried,
    roundMs,
    acts,
    over: (itemId) => map.light(itemId),
  });
  funnel.show(next.answer, known);
  const ofThese = { user_id: body.user_id, until_ms: body.until_ms, session: body.session };
  // Another worker may have the user, which answers all the same.
  const found = await post("/live/interests", ofThese, { signal: mine.signal }).catch(() => null);
  if (asking !== mine) return;
  interests = found?.interests ?? [];
  const events = user?.events ?? [];
  showMap(at !== null ? events.slice(0, at.k) : isTried ? [...events, ...body.session.map((each) => known[each.item_id] ?? each)] : events);
  if (click) say(`The answer changed. ${changes} ${isProved ? "It reflects your click." : "It does not reflect your click."}`);
  else if (at) say(`As it was after ${at.k} events. ${changes}`);
  else if (isTried) say(`What if. ${changes}`);
}

/** There is no answer. */
function nothing(text) {
  answers.clear(text);
  funnel.show(null, {});
  map.show({ events: [], interests: [], candidates: [] });
}

function showLog() {
  const events = user?.events ?? [];
  log.show(events, (k) => {
    const at = k === events.length ? null : { k, of: events.length, ms: k === 0 ? events[0].at_ms - 1 : events[k - 1].at_ms };
    attempt($("answer-problem"), () => ask({ at }));
  });
  // Another worker answers for the user all the same.
  if (elsewhere) $("log").replaceChildren(empty(elsewhere));
}

/** The map with these events, the interests, and the answer that is shown. */
function showMap(events = []) {
  map.show({
    events,
    interests,
    candidates: (now?.answer.items ?? []).map((each) => known[each.item_id] ?? each),
  });
}

function learned(items) {
  for (const [itemId, item] of Object.entries(items)) known[itemId] = item;
}

function acts(itemId) {
  const name = known[itemId]?.title || itemId;
  return h("div", { class: "acts" }, ...ACTIONS.map(([action, label]) =>
    h("button", { type: "button", "aria-label": `${label}: ${name}`, text: label, data: { action }, on: { click: (event) => act(itemId, action, event.currentTarget) } }),
  ));
}

function tried() {
  $("what-if-events").replaceChildren(
    ...tries.map((each) => h("span", { class: "chip on", text: `${each.action}: ${known[each.item_id]?.title || each.item_id}` })),
    ...(tries.length > 0 ? [h("button", { type: "button", class: "chip", text: "Take back", on: { click: untry } })] : []),
  );
}

function untry() {
  tries = [];
  tried();
  if (id !== null) attempt($("answer-problem"), () => ask({}));
}

/** Search the catalog, and show what is found. */
export async function search(words) {
  if (!words.trim()) return replaceFound(h("li", { class: "empty", text: "Type some words, or choose a point on the map." }));
  const found = await attempt($("search-problem"), () => get("/live/search", { q: words.trim(), limit: FOUND }));
  if (found && words === $("search").value) showFound(found.items);
  return found;
}

/** Show items beside the answer, with what can be done to them. */
export function showFound(items) {
  learned(Object.fromEntries(items.map((item) => [item.item_id, { ...known[item.item_id], ...item }])));
  if (items.length === 0) return replaceFound(h("li", { class: "empty", text: "Nothing found." }));
  replaceFound(...items.map((item) =>
    h("li", { class: "thing", data: { item: item.item_id }, on: { mouseenter: () => map.light(item.item_id), mouseleave: () => map.light(null), focusin: () => map.light(item.item_id), focusout: () => map.light(null) } },
      h("span", { class: "title", text: item.title || item.item_id }),
      answers.about(item) ? h("p", { class: "about", text: answers.about(item) }) : null,
      acts(item.item_id),
    ),
  ));
}

/** Whether the catalog can be searched here; else why not. */
export function hasCatalog(isHere, why) {
  $("search").disabled = !isHere;
  if (!isHere) replaceFound(h("li", { class: "empty", text: `Nothing can be searched here: ${why}. Items of the answer can be clicked.` }));
}

async function suggest() {
  const typed = $("who").value.trim();
  const found = typed && (await get("/live/users", { q: typed, limit: 12 }).catch(() => null));
  if (!found || typed !== $("who").value.trim()) return;
  $("who-list").replaceChildren(...found.users.map((each) => h("option", { value: each.user_id, label: `${each.user_id}: ${number(each.events)} events, ${ago(each.last_at_ms)}` })));
}

function debounced(work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, TYPING_MS);
  };
}
