/** Part 1: what the worker does, second by second. */

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { $, colour, empty, h, ms, number, plural } from "./dom.js";
import { rung } from "./words.js";

const KEPT_S = 180;
// What the figures of the project aim for: tests/bench/FIGURES.md, "click to answer".
const PROMISE_MS = 50;
const SHORTEST_S = 45;
const CLOCK = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const NONE = { click_to_answer_ms: {}, probe_ms: {}, probe_failures: {}, click_to_applied_ms: {}, answer_ms: {}, partitions: [], rungs: {}, dead_letters: {} };
const times = [];
const rows = { clicks: [], answers: [], p50: [], p99: [], probe: [] };
let charts = [];
let latest = null;
const last = { p50: null, p99: null };

/** Draw what is empty as yet. */
export function start() {
  tiles(null);
  $("partitions").append(h("tr", {}, h("td", { colspan: 5 }, empty("Nothing yet."))));
  new ResizeObserver(() => charts.forEach((chart) => chart.root.isConnected && chart.setSize(sizeOf(chart.root.parentElement)))).observe($("chart-rate"));
  redraw();
}

/** Figures of one second. A worker of one role leaves out what it does not do. */
export function figures(told) {
  const each = { ...NONE, ...told };
  latest = each;
  for (const key of ["p50", "p99"]) last[key] = each.click_to_answer_ms[key] ?? last[key];
  times.push(each.at_ms / 1000);
  rows.clicks.push(each.clicks_per_s);
  rows.answers.push(each.answers_per_s);
  rows.p50.push(each.click_to_answer_ms.p50 ?? null);
  rows.probe.push(each.probe_ms.p50 ?? null);
  rows.p99.push(each.click_to_answer_ms.p99 ?? null);
  while (times[0] < each.at_ms / 1000 - KEPT_S) {
    times.shift();
    Object.values(rows).forEach((row) => row.shift());
  }
  if (document.hidden) return;
  draw();
}

/** The stream was interrupted: the lines show it. */
export function interrupted() {
  if (times.length === 0 || rows.clicks.at(-1) === null) return;
  times.push(times.at(-1) + 0.001);
  Object.values(rows).forEach((row) => row.push(null));
}

/** There is no stream here, for that reason. */
export function none(reason) {
  const [heading, ...rest] = $("stream").children;
  rest.forEach((each) => each.remove());
  heading.after(empty(reason));
}

/** All charts again, in the colours of now. */
export function redraw() {
  if (!$("chart-rate")) return;
  charts.forEach((chart) => chart.destroy());
  charts = [
    chart("chart-rate", [
      { label: "clicks/s", stroke: colour("accent"), fill: `${colour("accent")}14` },
      { label: "answers/s", stroke: colour("faint") },
    ]),
    chart("chart-latency", [
      { label: "p50", stroke: colour("accent"), spanGaps: true },
      { label: "p99", stroke: `${colour("accent")}8c`, spanGaps: true },
      { label: "promise", stroke: colour("faint"), dash: [5, 5], width: 1 },
      { label: "probe", stroke: colour("soft"), spanGaps: true, dash: [1, 3] },
    ], (_, low, high) => [0, Math.max(PROMISE_MS * 1.3, (high ?? 0) * 1.1)]),
  ];
  draw();
}

function draw() {
  charts[0].setData([times, rows.clicks, rows.answers]);
  charts[1].setData([times, rows.p50, rows.p99, times.map(() => PROMISE_MS), rows.probe]);
  $("key-probe").hidden = rows.probe.every((each) => each === null);
  if (latest === null) return;
  tiles(latest);
  partitions(latest.partitions);
  const probes = Object.entries(latest.probe_failures).map(([reason, count]) => [`freshness probe: ${reason}`, count]);
  const rungs = Object.entries(latest.rungs).map(([code, count]) => [`${code}: ${rung(code)}`, count]);
  counts($("rungs"), Object.fromEntries([...rungs, ...probes]), "Nothing: every answer was whole.");
  counts($("letters-count"), latest.dead_letters, "None.");
}

function chart(id, series, range = (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.12)]) {
  const place = $(id);
  const axis = { stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif", gap: 6 };
  return new uPlot(
    {
      ...sizeOf(place),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { range: () => axisOfTime() }, y: { range } },
      axes: [{ ...axis, grid: { show: false }, size: 28, space: 90, values: (_, ticks) => ticks.map((tick) => CLOCK.format(tick * 1000)) }, { ...axis, size: 46, space: 44, values: (_, ticks) => ticks.map((tick) => number(tick)) }],
      series: [{}, ...series.map((each) => ({ width: 1.75, points: { show: false }, ...each }))],
    },
    [[], ...series.map(() => [])],
    place,
  );
}

function axisOfTime() {
  const end = times.at(-1) ?? Date.now() / 1000;
  return [Math.min(times[0] ?? end, end - SHORTEST_S), end];
}

const sizeOf = (place) => ({ width: Math.max(place.clientWidth, 120), height: 190 });

function tiles(now) {
  const lag = now?.partitions.reduce((sum, each) => sum + Math.max(each.lag ?? 0, 0), 0);
  const letters = now && Object.values(now.dead_letters).reduce((sum, each) => sum + each, 0);
  const answered = now?.click_to_answer_ms.n;
  const seen = answered ? `${plural(answered, "click")} in 10 s` : now ? "no click in 10 s" : "";
  fill("tiles", [
    ["Clicks", number(now?.clicks_per_s), "/s", now && `${ms(now.click_to_applied_ms.p50)} until applied`],
    ["Answers", number(now?.answers_per_s), "/s", now && `${ms(now.answer_ms.p50)} each`],
    ["Click to answer, p50", number(last.p50), "ms", seen],
    ["Click to answer, p99", number(last.p99), "ms", `promise: ${PROMISE_MS} ms`],
    ["Lag", number(lag), "records", now && `${number(now.users)} users, ${number(now.items)} items`],
    ["Dead letters", number(letters), "", "since the start"],
  ]);
}

function fill(id, told) {
  const place = $(id);
  if (place.children.length === 0) place.append(...told.map(([name]) => h("div", {}, h("dt", { text: name }), h("dd"), h("dd", { class: "sub" }))));
  told.forEach(([, value, unit, sub], index) => {
    const [, figure, note] = place.children[index].children;
    figure.replaceChildren(value, unit ? h("small", { text: unit }) : "");
    note.textContent = sub || "\u00a0";
  });
}

function partitions(told) {
  const sorted = [...told].sort((a, b) => clicksFirst(a) - clicksFirst(b) || a.topic.localeCompare(b.topic) || a.partition - b.partition);
  $("partitions").replaceChildren(
    ...sorted.map((each) =>
      h("tr", {},
        h("td", { text: each.topic.replace(/^.*\.(?=[^.]+\.v\d+$)/, ""), title: each.topic }),
        h("td", { class: "n", text: each.partition }),
        h("td", { class: "n", text: number(each.watermark) }),
        h("td", { class: each.lag > 1000 ? "n late" : "n", text: number(each.lag) }),
        h("td", { class: "n", text: each.still_s === null || each.still_s === undefined ? "–" : `${number(each.still_s)} s ago` }),
      ),
    ),
  );
}

const clicksFirst = (each) => (each.topic.includes("clicks") ? 0 : 1);

function counts(place, told, none) {
  const rows = Object.entries(told).filter(([, count]) => count > 0);
  if (rows.length === 0) return place.replaceChildren(empty(none));
  place.replaceChildren(h("dl", { class: "counts" }, ...rows.flatMap(([name, count]) => [h("dt", { text: name }), h("dd", { text: number(count) })])));
}
