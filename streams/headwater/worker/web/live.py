"""The live page's back: what happens as a stream, one user, the catalog as a map, answers as funnels, and what needs a hand.

Bodies are JSON; times are milliseconds since 1970. An error is ``{"error": {"code", "message"}}`` with its status. ``x`` and
``y`` are places on the map, -1 to 1; an item or an interest that has none has null there.

| route | answer |
|---|---|
| GET / and /page/NAME | the page itself: `page/index.html`, and the files beside it |
| GET /live/about | ``{role, version, bundle, partitions, may, let_in, loopback, actions, sources, missing{part: why}}`` |
| GET /live/events | a stream of server-sent events, see below |
| GET /live/state | ``{health, ready, catalog, bundle}``: see `/healthz` and `/readyz`; the offsets of the catalog; the manifest |
| GET /live/catalog.json | the map, see below; has an ETag |
| GET /live/search?q=TEXT&limit=N | ``{items: [item]}``: the item of that id, titles with the words, then what is like the text |
| GET /live/items?id=A&id=B | ``{items: {id: item}}``, unknown ones left out |
| GET /live/users?q=START&limit=N | ``{users: [{user_id, events, last_at_ms}]}``: ids that begin so, of this worker, the last active first |
| GET /live/users/{user_id} | one user, see below; 404 ``unknown_user``, or ``elsewhere`` where another worker has the partition |
| POST /live/clicks | ``{user_id, item_id, action?, event_id?, at_ms?}`` -> 201 ``{partition, offset, token, event_id, took_ms}`` |
| POST /live/recall | the fields of a `Request` without ``request_id`` -> ``{answer, items: {id: item}, took_ms}`` |
| GET /live/letters | ``{open, redriven, groups: [{reason, topic, letters, failed_again, oldest_ms, newest_ms, message, place}]}`` |
| GET /live/letters/list?reason=R&topic=T&limit=N | ``{letters: [{place, put_ms, reason, message, lacks, tries, key, value_bytes}]}``, newest first |
| GET /live/letters/show?place=T/P/O | ``{place, put_ms, reason, message, lacks, tries, key, headers: [[name, text]], text, hex, value_bytes}`` |
| POST /live/letters/redrive | ``{reasons?, topics?, place?, rate?, dry_run?}`` -> ``{redriven, skipped: {code: n}, refused: {place: why}, dry_run}`` |
| POST /live/letters/purge | ``{reasons?, topics?, place?, dry_run?}`` -> ``{purged, dry_run}`` |
| GET /live/doctor | ``{findings: [{ok, what, seen}], at_ms}``; takes seconds, and is kept for ten of them |

An ``item`` is ``{item_id, title, category, price, available, x, y}``, as far as the catalog has it.

**Who is let in.** `about` tells by ``let_in`` whether this caller is, and by ``loopback`` whether a token is needed. The page, `about` and the
figures of `events` are for everybody who reaches the address. All else wants ``Authorization: Bearer HEADWATER_ADMIN_TOKEN``. Where
``HEADWATER_LIVE_OPEN`` is set (`up` and `demo` set it) and the server listens on this machine alone, no token is needed; the Host header must
then be a local name. A POST has to be ``Content-Type: application/json`` and of the same origin. The policy of every answer allows scripts,
styles and connections of this origin only, no inline ones and no `eval`. An `EventSource` sends no header: with a token, read `events` by `fetch`.

**The stream** has these events, their data JSON in one line:

| event | when | data |
|---|---|---|
| hello | first | ``{interval_ms, viewers, let_in}`` |
| figures | once a second | ``{at_ms, clicks_per_s, answers_per_s, items_per_s, click_to_applied_ms{p50, p99}, answer_ms{p50, p99}, click_to_answer_ms{p50, p99, n}, partitions: [{topic, partition, watermark, lag, still_s}], rungs{rung: n}, statuses{status: n}, dead_letters{reason: n}, users, items, pending, viewers}``; p50 and p99 are null where nothing came; counts are since the worker's start |
| clicks | with figures, for those let in | ``[{user_id, item_id, action, event_id, at_ms, partition, offset, lag_ms}]``, a sample, oldest first |
| answers | the same | ``[{request_id, user_id, status, rung, took_ms, items: [item_id], reflects}]``, a sample |
| items | the same | ``[{item_id, title, is_removed, lag_ms}]``, a sample |
| bye | last | ``{reason, retry_ms}``: ``full`` (a newer viewer took the place), ``slow`` (this one did not read), ``stopping``. Reconnect after ``retry_ms`` |

**The map** is ``{bundle, items, shown, spread: [share of x, share of y], ids: [], titles: [], categories: [name], category: [place in categories],
x: [], y: []}``, at most 20,000 points: the first two principal components of the item vectors. Its axes stay as long as the bundle and the worker live.

**One user** is ``{user_id, partition, watermark, events: [{item_id, title, category, at_ms, action, pending, x, y}], interests: [{x, y, weight}],
pending, last_event_id, counters, hidden}``; events are oldest first.

**An answer as it was at t** is a recall with ``until_ms: t``: events of the user after t do not count, and ``now`` is t. Its ``funnel`` is described
at `headwater.messages.Funnel`.
"""
