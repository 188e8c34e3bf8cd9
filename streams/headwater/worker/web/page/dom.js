/** Elements of the page. Text goes in as text: nothing here, or anywhere on the page, parses a string as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `props`: `class`, `text`, `on: {event: listener}`, `data: {name: value}`, `style: {property: value}`
 * (through the style object, which the policy allows), and attributes by their names; null or false leaves one out.
 */
export function h(tag, props = {}, ...children) {
  return build(document.createElement(tag), props, children);
}

/** The same for drawings. */
export function svg(tag, props = {}, ...children) {
  return build(document.createElementNS(SVG, tag), props, children);
}

function build(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = legible(value);
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, String(each));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  const there = children.filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...there.map((child) => (child instanceof Node ? child : legible(child))));
  return element;
}

/** Text without what would turn the letters after it around, such as those of a sentence that a title stands in. */
export const legible = (text) => String(text).replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

export const $ = (id) => document.getElementById(id);

export const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Say a sentence to those who listen rather than look. A sentence that is said again is heard again. */
export function say(sentence) {
  const region = $("said");
  region.textContent = "";
  setTimeout(() => (region.textContent = sentence), 30);
}

/** A resolved colour of the style sheet, for canvases. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 1234567 -> 1,234,567; 3.14 -> 3.1; nothing -> a dash. */
export function number(value, digits = 1) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return Math.abs(value) >= 100 || Number.isInteger(value) ? WHOLE.format(value) : value.toFixed(digits);
}

export const ms = (value) => (value === null || value === undefined ? "–" : `${number(value)} ms`);

/** How long ago, in words: "just now", "5 min ago". */
export function ago(atMs, nowMs = Date.now()) {
  const s = Math.round((nowMs - atMs) / 1000);
  if (s < 5) return "just now";
  for (const [size, unit] of [[86_400, "d"], [3_600, "h"], [60, "min"]]) {
    if (s >= size) return `${Math.floor(s / size)} ${unit} ago`;
  }
  return `${s} s ago`;
}

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** A placeholder for a part that has nothing to show. */
export const empty = (text) => h("p", { class: "empty", text });

/**
 * Run `work` and tell its failure in `place`. Until it ends, `button` is busy and cannot be pressed again; it keeps the focus, which a
 * disabled one would lose.
 */
export async function attempt(place, work, button = null) {
  if (button?.getAttribute("aria-disabled") === "true") return undefined;
  place.replaceChildren();
  button?.setAttribute("aria-disabled", "true");
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    place.replaceChildren(h("p", { class: "problem", role: "alert", text: error.message }));
    return undefined;
  } finally {
    button?.removeAttribute("aria-disabled");
  }
}

/**
 * Make the buttons of a list one stop of the Tab key: up and down go to the next item, left and right to the next button of it.
 * What replaces the items goes through the function that this returns, which keeps the focus at its place.
 */
export function roving(list) {
  let [row, column] = [0, 0];
  const rows = () => [...list.children].map((each) => [...each.querySelectorAll("button")]).filter((each) => each.length > 0);
  const settle = (hasFocus) => {
    const all = rows();
    all.flat().forEach((each) => (each.tabIndex = -1));
    if (all.length === 0) return;
    row = Math.max(0, Math.min(row, all.length - 1));
    column = Math.max(0, Math.min(column, all[row].length - 1));
    all[row][column].tabIndex = 0;
    if (hasFocus) all[row][column].focus();
  };
  list.addEventListener("keydown", (event) => {
    const steps = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1], Home: [-Infinity, 0], End: [Infinity, 0] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    [row, column] = [row + step[0], column + step[1]];
    settle(true);
  });
  list.addEventListener("focusin", (event) => {
    const all = rows();
    const found = all.findIndex((each) => each.includes(event.target));
    if (found < 0) return;
    [row, column] = [found, all[found].indexOf(event.target)];
    settle(false);
  });
  return (...items) => {
    const hasFocus = list.contains(document.activeElement);
    if (!hasFocus) [row, column] = [0, 0];
    list.replaceChildren(...items);
    settle(hasFocus);
  };
}
