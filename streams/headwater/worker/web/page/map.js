/** Part 4: the catalog as points, with the shopper's events, interests and recommended items on it. Two 2D canvases. */

import { $, colour, h, isStill, number, say } from "./dom.js";

const COLOURED = 9;
const LONGEST_ZOOM = 24;
const GLIDE_MS = 800;

/** One map in the element `map`. `picked(item_id)` hears which point was chosen. */
export class CatalogMap {
  constructor(picked) {
    this.picked = picked;
    this.place = $("map");
    this.points = null; // {ids, titles, categories, category, x, y}
    this.view = { x: 0, y: 0, zoom: 1 };
    this.told = { events: [], interests: [], candidates: [] };
    this.from = null; // interests before the last change, and when that was
    this.lit = null; // an item that is looked at
    this.category = null; // one that is picked out
    this.stepped = -1;
    this.base = h("canvas", { "aria-hidden": "true" });
    this.over = h("canvas", { "aria-hidden": "true" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.place.append(this.base, this.over, this.tip);
    this.place.tabIndex = 0;
    this.place.setAttribute("role", "group");
    this.place.setAttribute("aria-label", "Map of the catalog. Arrow keys step through the recommended items, plus and minus zoom.");
    new ResizeObserver(() => this.resize()).observe(this.place);
    this.listen();
  }

  /** `catalog` as the worker tells it. */
  load(catalog) {
    this.points = catalog;
    this.index = new Map(catalog.ids.map((id, place) => [id, place]));
    const sizes = new Array(catalog.categories.length).fill(0);
    catalog.category.forEach((each) => (sizes[each] += 1));
    this.largest = sizes.map((size, place) => [size, place]).sort((a, b) => b[0] - a[0]).slice(0, COLOURED).map(([, place]) => place);
    this.legend();
    const part = catalog.shown < catalog.items ? `${number(catalog.shown)} of ${number(catalog.items)} items` : `${number(catalog.items)} items`;
    const spread = Math.round(100 * ((catalog.spread?.[0] ?? 0) + (catalog.spread?.[1] ?? 0)));
    if (catalog.items === 0) $("map-note").textContent = "The catalog is empty as yet.";
    else $("map-note").textContent = `${part}; near each other means alike in meaning. Two of many dimensions, which hold ${spread} % of the differences.`;
    this.draw();
  }

  /** `events`, `interests` and `candidates` are [{x, y, ...}]; those without a place are left out. */
  show(told) {
    const placed = (list) => list.filter((each) => typeof each?.x === "number" && typeof each?.y === "number");
    const next = { events: placed(told.events), interests: placed(told.interests), candidates: placed(told.candidates) };
    const old = this.told.interests;
    this.from = old.length > 0 && next.interests.length > 0 ? { at: performance.now(), places: next.interests.map((each) => nearest(old, each)) } : null;
    this.told = next;
    this.place.dataset.interests = next.interests.length;
    this.stepped = -1;
    if (isStill()) this.from = null;
    this.animate();
  }

  /** Light up an item; null: none. */
  light(itemId) {
    this.lit = itemId;
    const found = itemId === null ? null : this.found(itemId);
    if (found) this.say(found);
    else this.tip.hidden = true;
    this.animate();
  }

  /** In the colours of now. */
  redraw() {
    if (this.points) this.legend();
    this.draw();
  }

  found(itemId) {
    const candidate = this.told.candidates.find((each) => each.item_id === itemId);
    if (candidate) return candidate;
    const place = this.index?.get(itemId);
    return place === undefined ? null : this.point(place);
  }

  point(place) {
    const { ids, titles, categories, category, x, y } = this.points;
    return { item_id: ids[place], title: titles[place], category: categories[category[place]], x: x[place], y: y[place] };
  }

  say({ title, item_id, category, x, y }) {
    const [left, top] = this.screen(x, y);
    this.tip.replaceChildren(title || item_id, h("small", { text: category ?? "" }));
    this.tip.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    this.tip.style.left = `${Math.max(4, Math.min(left + 12, this.size - width - 4))}px`;
    this.tip.style.top = `${top + height + 18 > this.size ? top - height - 10 : top + 12}px`;
  }

  legend() {
    const names = this.points.categories;
    $("map-legend").replaceChildren(
      ...this.largest.map((place, rank) =>
        h("button", {
          type: "button",
          class: "chip",
          "aria-pressed": String(this.category === place),
          on: { click: () => { this.category = this.category === place ? null : place; this.legend(); this.draw(); } },
        }, h("span", { class: "swatch", style: { "--swatch": hue(rank) } }), names[place] || "no category"),
      ),
    );
  }

  resize() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.size = this.place.clientWidth;
    for (const canvas of [this.base, this.over]) canvas.width = canvas.height = Math.max(1, Math.round(this.size * ratio));
    this.ratio = ratio;
    this.draw();
  }

  /** A place on the map to pixels, x to the right and y up. */
  screen(x, y) {
    const scale = (this.size / 2) * 0.92 * this.view.zoom;
    return [this.size / 2 + (x - this.view.x) * scale, this.size / 2 - (y - this.view.y) * scale];
  }

  draw() {
    if (!this.size) return;
    const pen = this.base.getContext("2d");
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.size, this.size);
    if (this.points) {
      const { x, y, category } = this.points;
      const ranks = new Map(this.largest.map((place, rank) => [place, rank]));
      const size = Math.min(4, (x.length > 8000 ? 1.7 : 2.4) * Math.sqrt(this.view.zoom));
      const layers = new Map([[undefined, []]]);
      for (let place = 0; place < x.length; place++) {
        const rank = ranks.get(category[place]);
        if (!layers.has(rank)) layers.set(rank, []);
        layers.get(rank).push(place);
      }
      for (const [rank, places] of layers) {
        const isOut = this.category !== null && rank !== ranks.get(this.category);
        pen.fillStyle = rank === undefined || isOut ? colour("ghost") : hue(rank);
        pen.globalAlpha = rank === undefined ? 0.75 : isOut ? 0.5 : 0.9;
        for (const place of places) {
          const [left, top] = this.screen(x[place], y[place]);
          if (left > -4 && top > -4 && left < this.size + 4 && top < this.size + 4) pen.fillRect(left - size / 2, top - size / 2, size, size);
        }
      }
      pen.globalAlpha = 1;
    }
    this.animate();
  }

  animate() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      const part = this.from ? Math.min(1, (performance.now() - this.from.at) / GLIDE_MS) : 1;
      this.drawOver(1 - (1 - part) ** 3);
      if (part < 1) this.animate();
    });
  }

  drawOver(part) {
    if (!this.size) return;
    const pen = this.over.getContext("2d");
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.size, this.size);
    const [accent, card, text] = [colour("accent"), colour("card"), colour("text")];
    const ring = (x, y, radius, fill, stroke, width) => {
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      if (fill) { pen.fillStyle = fill; pen.fill(); }
      if (stroke) { pen.strokeStyle = stroke; pen.lineWidth = width; pen.stroke(); }
    };
    this.told.events.slice(-12).forEach((event, index, all) => {
      const [x, y] = this.screen(event.x, event.y);
      pen.globalAlpha = 0.35 + (0.65 * (index + 1)) / all.length;
      ring(x, y, 3.5, text, card, 1.5);
    });
    pen.globalAlpha = 1;
    this.told.interests.forEach((each, index) => {
      const start = this.from?.places[index];
      const [x, y] = start ? this.screen(start.x + (each.x - start.x) * part, start.y + (each.y - start.y) * part) : this.screen(each.x, each.y);
      if (start) {
        const [x0, y0] = this.screen(start.x, start.y);
        pen.beginPath();
        pen.moveTo(x0, y0);
        pen.lineTo(x, y);
        pen.strokeStyle = accent;
        pen.globalAlpha = 0.5;
        pen.lineWidth = 2;
        pen.setLineDash([2, 4]);
        pen.stroke();
        pen.setLineDash([]);
        pen.globalAlpha = 0.4;
        ring(x0, y0, 5, null, accent, 1.5);
        pen.globalAlpha = 1;
      }
      const radius = 7 + 5 * Math.sqrt(each.weight ?? 1);
      ring(x, y, 2 * radius, `${accent}1f`, null, 0);
      ring(x, y, radius, accent, card, 2.5);
    });
    this.told.candidates.forEach((each) => {
      const [x, y] = this.screen(each.x, each.y);
      ring(x, y, 5, each.item_id === this.lit ? accent : card, accent, 1.75);
    });
    const lit = this.lit !== null && this.found(this.lit);
    if (lit) {
      const [x, y] = this.screen(lit.x, lit.y);
      ring(x, y, 9, null, text, 2);
    }
  }

  zoom(by, at = [this.size / 2, this.size / 2]) {
    const scale = (this.size / 2) * 0.92;
    const [dx, dy] = [(at[0] - this.size / 2) / scale, (this.size / 2 - at[1]) / scale];
    const next = Math.max(1, Math.min(LONGEST_ZOOM, this.view.zoom * by));
    this.view.x += dx / this.view.zoom - dx / next;
    this.view.y += dy / this.view.zoom - dy / next;
    this.view.zoom = next;
    if (next === 1) this.view = { x: 0, y: 0, zoom: 1 };
    this.tip.hidden = true;
    this.draw();
  }

  under(event) {
    if (!this.points) return null;
    const box = this.place.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let least = 12 ** 2;
    const look = (each) => {
      const [x, y] = this.screen(each.x, each.y);
      const far = (x - left) ** 2 + (y - top) ** 2;
      if (far < least) [least, best] = [far, each];
    };
    const { x, y } = this.points;
    this.told.candidates.forEach(look);
    if (best) return best;
    for (let place = 0; place < x.length; place++) look({ place, x: x[place], y: y[place] });
    return best && this.point(best.place);
  }

  listen() {
    let held = null;
    this.over.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.place.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY / 400), [event.clientX - box.left, event.clientY - box.top]);
    }, { passive: false });
    this.over.addEventListener("pointerdown", (event) => {
      this.over.setPointerCapture(event.pointerId);
      held = { x: event.clientX, y: event.clientY, moved: 0 };
    });
    this.over.addEventListener("pointermove", (event) => {
      if (!held) {
        const found = this.under(event);
        this.lit = found?.item_id ?? null;
        if (found) this.say(found);
        else this.tip.hidden = true;
        return this.animate();
      }
      const scale = (this.size / 2) * 0.92 * this.view.zoom;
      this.view.x -= (event.clientX - held.x) / scale;
      this.view.y += (event.clientY - held.y) / scale;
      held = { x: event.clientX, y: event.clientY, moved: held.moved + Math.abs(event.clientX - held.x) + Math.abs(event.clientY - held.y) };
      this.draw();
    });
    this.over.addEventListener("pointerup", (event) => {
      const found = held && held.moved < 4 ? this.under(event) : null;
      held = null;
      if (found) this.picked(found);
    });
    this.over.addEventListener("pointercancel", () => (held = null));
    this.over.addEventListener("pointerleave", () => this.light(null));
    this.place.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "+" || event.key === "=") this.zoom(1.5);
      else if (event.key === "-") this.zoom(1 / 1.5);
      else if (event.key === "Enter" && this.stepped >= 0) this.picked(this.told.candidates[this.stepped]);
      else if (step && this.told.candidates.length > 0) {
        const count = this.told.candidates.length;
        this.stepped = this.stepped < 0 ? (step > 0 ? 0 : count - 1) : (this.stepped + step + count) % count;
        const { item_id: itemId, title, category } = this.told.candidates[this.stepped];
        this.light(itemId);
        say(`${this.stepped + 1} of ${count}: ${title ?? itemId}, ${category ?? "no category"}`);
      } else return;
      event.preventDefault();
    });
    this.place.addEventListener("blur", () => this.light(null));
    $("map-in").addEventListener("click", () => this.zoom(1.6));
    $("map-out").addEventListener("click", () => this.zoom(1 / 1.6));
    $("map-all").addEventListener("click", () => this.zoom(0));
  }
}

function nearest(list, to) {
  return list.reduce((best, each) => (Math.hypot(each.x - to.x, each.y - to.y) < Math.hypot(best.x - to.x, best.y - to.y) ? each : best));
}

/** Quiet colours of one lightness, so that the accent stands out. */
function hue(rank) {
  return `oklch(${colour("lightness")} ${colour("chroma")} ${(rank * 360) / COLOURED + 20})`;
}
