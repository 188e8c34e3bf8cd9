/** The live page of a worker: starts its parts, and tells how the connection is. No framework and no build step. */

import { $, h, say } from "./dom.js";
import { follow, get, token } from "./back.js";
import { CatalogMap } from "./map.js";
import * as shopper from "./shopper.js";
import * as stream from "./stream.js";
import * as theme from "./theme.js";
import * as tour from "./tour.js";
import * as trust from "./trust.js";

const REDRAWN_MS = 10_000;
const RETOLD_MS = 5_000;
const MISSED_MS = 2_000;
let drawnAt = 0;
let trustedAt = 0;
let isDrawing = false;
let about = null;
let isFilled = false;
let timer = 0;

const map = new CatalogMap((item) => shopper.showFound([item]));
stream.start();
shopper.start(map);
shopper.search("");
trust.start();
tour.start();
theme.start(() => {
  stream.redraw();
  map.redraw();
});
watchSections();
watchTrust();
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token($("token").value.trim());
  $("token").value = "";
  fill(true);
});
follow(heard, connection);

function heard(name, data) {
  if (name === "figures") {
    stream.figures(data);
    grown(data.items);
    missed();
  } else if (name === "clicks") shopper.sawClicks(data);
}

/** Fetch what the stream does not bring, whenever the worker is there again. */
async function fill(isAsked = false) {
  try {
    about = await get("/live/about");
  } catch {
    return; // the connection tells
  }
  $("token-form").hidden = about.let_in;
  const problem = $("token-problem");
  problem.hidden = about.let_in || !isAsked;
  problem.textContent = "That is not the token of this worker.";
  const missing = [...new Set(Object.values(about.missing ?? {}))];
  const bundle = about.bundle ? `, bundle ${about.bundle}` : "";
  $("foot").textContent = `Headwater ${about.version}${bundle}. Everything on this page comes from this ${about.role === "gateway" ? "gateway" : "worker"}; it asks nobody else for anything.${missing.map((why) => ` Some parts are not here: ${why}.`).join("")}`;
  $("api").hidden = !about.api;
  trust.hasDoctor(about.may?.doctor ?? true, about.missing?.doctor);
  shopper.hasCatalog(about.may?.map ?? true, about.missing?.map);
  if (!about.let_in) {
    isFilled = false;
    if (isAsked) $("token").focus();
    return;
  }
  trustedAt = Date.now();
  trust.refresh(about);
  if (!isFilled) {
    isFilled = true;
    tour.offer();
    shopper.suggestSome();
  }
  await drawn();
}

async function drawn() {
  if (isDrawing) return;
  isDrawing = true;
  try {
    map.load(await get("/live/catalog.json"));
  } catch (error) {
    $("map-note").textContent = error.message;
  } finally {
    isDrawing = false;
    drawnAt = Date.now();
  }
}

/** A worker that was still starting is asked again for its map. */
function missed() {
  if (isFilled && !map.points && about.may.map && Date.now() - drawnAt > MISSED_MS) drawn();
}

/** The map is drawn again when the catalog has become another one, such as while it is being published. */
function grown(items) {
  if (!isFilled || !map.points || items === undefined || Date.now() - drawnAt < REDRAWN_MS) return;
  if (Math.abs(items - map.points.items) > map.points.items * 0.02) drawn();
}

/** One line in the head, and a banner while the worker is away. */
function connection({ state, reason, retryMs }) {
  clearInterval(timer);
  const words = { connecting: "connecting", live: "live", away: "away", resting: "resting", none: "no stream" };
  $("connection").dataset.state = state;
  if ($("connection-text").textContent !== words[state]) $("connection-text").textContent = words[state];
  if (state === "live" || state === "none") {
    $("away").hidden = true;
    fill();
  }
  if (state === "none") stream.none(reason);
  if (state !== "away") return;
  stream.interrupted();
  if ($("away").hidden) say(`The worker is away: ${reason}.`);
  const back = Date.now() + retryMs;
  const tell = () => {
    const seconds = Math.max(0, Math.ceil((back - Date.now()) / 1000));
    $("away").replaceChildren(h("span", {}, h("strong", { text: "The worker is away" }), `: ${reason}. What is shown is from before. Next try in ${seconds} s.`));
  };
  tell();
  $("away").hidden = false;
  timer = setInterval(tell, 500);
}

/** The trust part tells of now when it comes into view. What somebody has opened there stays. */
function watchTrust() {
  const watch = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting || !isFilled || Date.now() - trustedAt < RETOLD_MS) return;
    trustedAt = Date.now();
    trust.refresh(about);
  });
  watch.observe($("trust"));
}

/** The part that is read now is marked in the navigation. */
function watchSections() {
  const links = new Map([...document.querySelectorAll(".top nav a")].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const [id, link] of links) {
          if (id === entry.target.id) link.setAttribute("aria-current", "true");
          else link.removeAttribute("aria-current");
        }
      }
    },
    { rootMargin: "-30% 0px -60% 0px" },
  );
  for (const id of links.keys()) watch.observe($(id));
}
