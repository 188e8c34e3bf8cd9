/** The worker behind the page: calls, and the stream of events. The shapes are those of `worker/web/live.py`. */

const TIMEOUT_MS = 20_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
// The stream says something every second. Silence for this long is a dead connection.
const SILENCE_MS = 10_000;
// A page that nobody looks at gives its place in the stream to others.
const HIDDEN_MS = 60_000;
const STORED = "headwater-token";

/** A refusal, with the sentence that the worker gave. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The token that `#token=...` brought, or the one typed in; kept for this tab alone, and never left in the address. */
export function token(given) {
  if (given !== undefined) {
    if (given) sessionStorage.setItem(STORED, given);
    else sessionStorage.removeItem(STORED);
  }
  const named = /^#token=(.+)$/.exec(location.hash);
  if (named) {
    try {
      sessionStorage.setItem(STORED, decodeURIComponent(named[1]));
    } catch {
      // A link that was cut brings no token, and the page asks for it.
    }
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(STORED);
}

function headers(more = {}) {
  const known = token();
  return known ? { Authorization: `Bearer ${known}`, ...more } : more;
}

async function call(path, options = {}, isLong = false) {
  let response;
  const signals = [...(isLong ? [] : [AbortSignal.timeout(TIMEOUT_MS)]), ...(options.signal ? [options.signal] : [])];
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers), signal: AbortSignal.any(signals) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const reason = error.name === "TimeoutError" ? `did not answer within ${TIMEOUT_MS / 1000} s` : "cannot be reached";
    throw new Refused(0, "away", `The worker ${reason}.`);
  }
  const text = await response.text();
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Refused(response.status, "no_json", `The worker answered ${response.status} without JSON.`);
  }
  if (!response.ok) {
    const { code = "refused", message = `status ${response.status}` } = body?.error ?? {};
    throw new Refused(response.status, code, message);
  }
  return body;
}

export const get = (path, query = {}, signal = undefined) => {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const search = new URLSearchParams(given).toString();
  return call(search ? `${path}?${search}` : path, { signal });
};

export const post = (path, body, { signal = undefined, isLong = false } = {}) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal }, isLong);

/**
 * Read the stream for as long as the page lives. `onEvent(name, data)` gets what comes, `onState({state, reason, retryMs})` how
 * the connection is: `connecting`, `live`, `away` (with the time to the next try), `resting` (nobody looks) or `none` (a gateway has
 * no stream; with its reason).
 */
export function follow(onEvent, onState) {
  let pauseMs = FIRST_PAUSE_MS;
  let control = null;
  let hiddenTimer = null;
  let wake = null;

  async function forever() {
    for (;;) {
      if (document.hidden && control === null && hiddenTimer === null) {
        onState({ state: "resting" });
        await new Promise((resolve) => (wake = resolve));
      }
      const end = await once();
      if (end.rest) continue;
      if (end.none) return onState({ state: "none", reason: end.none });
      const retryMs = end.retryMs ?? Math.round(pauseMs * (0.75 + Math.random() / 2));
      pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
      onState({ state: "away", reason: end.reason, retryMs });
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, retryMs);
      });
    }
  }

  async function once() {
    control = new AbortController();
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => control.abort("silent"), SILENCE_MS);
    };
    onState({ state: "connecting" });
    heard();
    let bye = null;
    try {
      const response = await fetch("/live/events", { headers: headers({ Accept: "text/event-stream" }), signal: control.signal });
      if (response.status === 404) return { none: (await response.json()).error.message };
      if (!response.ok) return { reason: `the worker answered ${response.status}` };
      for await (const [name, data] of parsed(response.body, heard)) {
        if (name === "hello") {
          pauseMs = FIRST_PAUSE_MS;
          onState({ state: "live" });
        }
        if (name === "bye") bye = data;
        onEvent(name, data);
      }
    } catch {
      if (control.signal.reason === "hidden") return { rest: true };
      if (control.signal.reason === "silent") return { reason: `the worker was silent for ${SILENCE_MS / 1000} s` };
    } finally {
      clearTimeout(silence);
      control = null;
    }
    const reasons = { full: "there are more viewers than places", slow: "this page read too slowly", stopping: "the worker stops" };
    return bye ? { reason: reasons[bye.reason] ?? bye.reason, retryMs: bye.retry_ms } : { reason: "the worker is away" };
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    hiddenTimer = null;
    if (document.hidden) {
      hiddenTimer = setTimeout(() => {
        hiddenTimer = null;
        control?.abort("hidden");
      }, HIDDEN_MS);
    } else wake?.();
  });
  addEventListener("online", () => wake?.());
  forever();
}

/** The events of a body, as [name, data]. */
async function* parsed(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      }
      if (data.length > 0) yield [name, JSON.parse(data.join("\n"))];
    }
  }
}
