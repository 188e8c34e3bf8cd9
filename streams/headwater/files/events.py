"""Events of a file: which rows are clicks that a worker takes, and why the others are none.

Rows that are plainly good are told apart in whole columns. Every other row is put to the worker's own decoder, so there is
one list of bounds, that of the messages.
"""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import polars as pl
import xxhash

from headwater.files.contents import ImportFileError
from headwater.files.fields import Chosen
from headwater.files.table import BadRow, Table
from headwater.files.times import TimeForm, read_times
from headwater.files.values import LOST_DIGITS, Decimal, attribute, ids, numbers, present
from headwater.messages import (
    ACTIONS,
    MAX_AHEAD_MS,
    MAX_ID_BYTES,
    MIN_AT_MS,
    BadMessage,
    Click,
    decode_click,
    encode,
    quoted,
)

IGNORE: Final = "ignore"
_LETTERS: Final = re.compile(r"[^a-z0-9]")
_BY_LETTERS: Final = {_LETTERS.sub("", action): action for action in ACTIONS}
# What shops call their actions, in part of the name, without blanks and capitals; the first that fits is offered.
_LIKELY: Final[dict[str, tuple[str, ...]]] = {
    IGNORE: (
        "remove",
        "cancel",
        "refund",
        "return",
        "search",
        "login",
        "signup",
        "pageview",
        "session",
        "scroll",
        "logout",
    ),
    "dislike": ("dislike", "unlike", "downvote", "notinterested", "skip"),
    "hide": ("hide", "block", "dismiss"),
    "impression": (
        "impression",
        "viewitemlist",
        "listview",
        "listviewed",
        "shown",
        "exposure",
        "expose",
        "display",
    ),
    "add_to_cart": ("cart", "basket", "bag", "warenkorb", "einkaufswagen", "panier", "carrito"),
    "purchase": (
        "purchas",
        "buy",
        "bought",
        "order",
        "transaction",
        "checkout",
        "sale",
        "pay",
        "conversion",
        "kauf",
        "bestell",
        "achat",
        "compra",
    ),
    "like": ("like", "fav", "wish", "bookmark", "save", "upvote", "star", "collect"),
    "view": ("view", "pv", "visit", "detail", "watch", "read", "seen", "play", "listen", "ansicht", "aufruf"),
    "click": ("click", "klick", "tap", "open"),
}
_SIGNS: Final = {"+1": "like", "-1": "dislike"}
_CODE: Final = re.compile(r"[+-]?\d+")
_UNSAID: Final = "ACTION"  # what a number or a word of its own means only the shop knows
# Where one user has this share of the events and there are others enough, it is rather all visitors without an account.
_ONE_USER: Final = 0.2
_USERS: Final = 20
# Names have words without a digit; each id of a list has one.
_LIST: Final = r"^[^\s|;,]*\d[^\s|;,]*(?:[|;, ]+[^\s|;,]*\d[^\s|;,]*)+$"
_LISTS: Final = 0.1
_SHOWN: Final = 10
_OTHERS: Final = "*"
_NO_ITEM: Final = ("retract", "forget")
# Events of files without times: from 2000 on, each user's one minute apart.
MADE_UP_MS: Final = 946_684_800_000
MADE_UP_GAP_MS: Final = 60_000
NO_TIMES: Final = "no times: each user's events in file order, one minute apart, so gaps carry no information"
_EMPTY: Final = msgspec.Raw(b"{}")


@dataclass(frozen=True)
class EventForm:
    """How a file writes events.

    Attributes:
        actions: ``name=action`` for names of the file; the action ``ignore`` leaves rows out, the name ``*`` means all others.
        like_from: a rating from here on is a ``like``, in rows without an action.
        dislike_to: a rating up to here is a ``dislike``.
    """

    times: TimeForm = field(default_factory=TimeForm)
    actions: tuple[str, ...] = ()
    like_from: float | None = None
    dislike_to: float | None = None
    decimal: Decimal = "auto"


class Events(NamedTuple):
    """The rows of a file that are events, in its order, and those that are none.

    Attributes:
        rows: line, user_id, item_id, at_ms, action, event_id, context (JSON or null), and further columns asked for.
        bad: by line.
        notes: what was read differently, or left out.
    """

    rows: pl.DataFrame
    bad: list[BadRow]
    notes: list[str]


def events_of(
    table: Table, chosen: Chosen, form: EventForm, *, now_ms: int, also: Iterable[pl.Series] = ()
) -> Events:
    """The events of a table. Rows that are equal in all that is mapped are one event.

    An event without an id gets one from its content, so neither the order of a file nor a second import changes anything.

    Args:
        also: further columns (rows,), kept beside.

    Raises:
        ImportFileError: an action, or a time format, is none.
    """
    columns, frame, notes = chosen.columns, table.frame, list[str]()
    users, items = (ids(frame[columns[name]], notes.append) for name in ("user_id", "item_id"))
    actions, unrated = _actions(table, columns, form, notes)
    if "at_ms" in columns:
        at, shown_at = read_times(frame[columns["at_ms"]], form.times)
    else:
        made_up = pl.DataFrame({"user": users.shown}).select(
            MADE_UP_MS + MADE_UP_GAP_MS * pl.int_range(pl.len(), dtype=pl.Int64).over("user")
        )
        at = made_up.to_series()
        shown_at = at.cast(pl.String)
        notes.append(NO_TIMES)
    notes += _suspects(users.shown, items.shown)
    own = ids(frame[columns["event_id"]]).shown if "event_id" in columns else None
    rows = pl.DataFrame(
        {
            "line": table.lines,
            "user_id": users.values,
            "item_id": items.values,
            "at_ms": at,
            "action": actions,
            "event_id": own
            if own is not None
            else pl.Series([None], dtype=pl.String).new_from_index(0, len(frame)),
            "context": _context(frame, chosen, form.decimal, notes),
        }
    ).with_columns(*(each for each in also))
    ignored = rows["action"] == IGNORE
    shown = pl.DataFrame({"user": users.shown, "item": items.shown, "at": shown_at, "rating": unrated})
    if count := int(ignored.sum() or 0):
        notes.append(f"{count:,} rows are left out, since their actions are to be ignored")
        keep = ~ignored.fill_null(False)
        rows, shown = rows.filter(keep), shown.filter(keep)
    plain = rows.select(_is_plain(now_ms + MAX_AHEAD_MS)).to_series() & shown["rating"].is_null()
    bad = list(table.bad)
    if not plain.all():
        verdicts = {
            place: reason
            for place, row in zip(
                (~plain).arg_true().to_list(),
                zip(rows.filter(~plain).iter_rows(named=True), shown.filter(~plain).iter_rows(), strict=True),
                strict=True,
            )
            if (reason := _problem(row[0], row[1], now_ms, form.times.expected)) is not None
        }
        lines = rows["line"]
        bad += [BadRow(lines[place], reason) for place, reason in verdicts.items()]
        good = pl.Series([True]).new_from_index(0, len(rows)).scatter(list(verdicts), False)
        rows = rows.filter(good)
    rows = _identified(rows.with_columns(pl.col("item_id").fill_null("")), notes)
    return Events(rows, sorted(bad), notes)


def _suspects(users: pl.Series, items: pl.Series) -> list[str]:
    """What is told of ids that are probably none: of all visitors without an account, or of several items."""
    notes = list[str]()
    counts = users.drop_nulls().value_counts(sort=True)
    if len(counts) > _USERS:
        user, count = counts.row(0)
        if count > _ONE_USER * len(users):
            notes.append(
                f"user_id: {count:,} of {len(users):,} events are of {quoted(user)}; if it stands for visitors who are not known, "
                "leave their rows out, or map a session or a device as the user"
            )
    listed = items.filter(items.str.contains(_LIST).fill_null(False))
    if len(listed) > _LISTS * len(items):
        notes.append(
            f"item_id: ids such as {quoted(listed[0])} look like several; expected one item a row, or a list in JSON"
        )
    return notes


def _is_plain(latest_ms: int) -> pl.Expr:
    def is_id(name: str) -> pl.Expr:
        return pl.col(name).str.len_bytes().is_between(1, MAX_ID_BYTES)

    usual = [name for name in ACTIONS if name not in _NO_ITEM]
    plain = is_id("user_id") & is_id("item_id") & pl.col("action").is_in(usual)
    plain &= pl.col("at_ms").is_between(MIN_AT_MS, latest_ms)
    return (plain & (pl.col("event_id").is_null() | is_id("event_id"))).fill_null(False)


def _problem(row: dict[str, object], shown: tuple[str | None, ...], now_ms: int, expected: str) -> str | None:
    """Why a row is no event; None where a worker takes it. ``expected`` says what a time has to be."""
    user, item, at, rating = shown
    action = row["action"]
    for name, value in (("user_id", user), ("item_id", item)):
        if value is None and not (name == "item_id" and action in _NO_ITEM):
            return f"{name}: missing, expected an id"
        if value is not None and row[name] is None:
            return f"{name}: got {value}, {LOST_DIGITS}"
    if rating is not None:
        return f"rating: got {quoted(rating)}, expected a number"
    if row["at_ms"] is None:
        return f"at_ms: {'missing' if at is None else f'got {quoted(at)}'}, expected {expected}"
    if isinstance(row["at_ms"], int) and row["at_ms"] > now_ms + MAX_AHEAD_MS:
        return f"at_ms: got {quoted(at)}, expected at most two days after the time now"
    if action == "retract" and row["event_id"] is None:
        return "event_id: missing, expected the id of the event to retract"
    click = {name: row[name] for name in ("user_id", "at_ms", "action")}
    message = {**click, "item_id": row["item_id"] or "", "event_id": row["event_id"] or "-"}
    try:
        decode_click(None, msgspec.json.encode(message), now_ms)
    except BadMessage as error:
        if isinstance(action, str) and action not in ACTIONS:
            return (
                f"{error}; name it with {_option(action, _likely(action))}, or leave such rows out with "
                f"{_option(action, IGNORE)}"
            )
        return str(error)
    return None


def _likely(written: str) -> str:
    """The action that a shop probably means: a hint, since only the shop knows."""
    if written in _SIGNS:
        return _SIGNS[written]
    letters = _LETTERS.sub("", written.lower())
    if _CODE.fullmatch(written):
        return _UNSAID
    found = next(
        (action for action, names in _LIKELY.items() if any(name in letters for name in names)), None
    )
    return found or _UNSAID


def _option(written: str, action: str) -> str:
    pair = shlex.quote(f"{written}={action}")
    # Else it would be taken for an option itself.
    return f"--action={pair}" if written.startswith("-") else f"--action {pair}"


def _unknown(written: pl.Series) -> list[str]:
    """What is told of actions of a file that are none: each with its number of rows, and the options that may be meant."""
    counts = written.filter(~written.is_in([*ACTIONS, IGNORE])).drop_nulls().value_counts(sort=True)
    if len(counts) < 2:
        return []  # the rows say it
    shown = [f"{name} ({count:,})" for name, count in counts.head(_SHOWN).iter_rows()]
    options = [_option(name, _likely(name)) for name in counts[written.name].head(_SHOWN)]
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return [f"{', '.join(shown)}{more} are no actions of ours; perhaps {' '.join(options)}"]


def _actions(
    table: Table, columns: dict[str, str], form: EventForm, notes: list[str]
) -> tuple[pl.Series, pl.Series]:
    """(rows,) the action of each row, and as text the rating that is none, null elsewhere."""
    names, others = dict[str, str](), "click"
    for pair in form.actions:
        name, equals, action = pair.rpartition("=")
        if not equals or not name or (action not in ACTIONS and action != IGNORE):
            raise ImportFileError(
                f"--action {pair}: expected name=action, with one of {', '.join(ACTIONS)}, or {IGNORE}"
            )
        names[name.lower()] = action
    rating, unfit = _by_rating(table, columns, form, names.get(_OTHERS, others), notes)
    if "action" not in columns:
        return rating, unfit
    written = present(table.frame[columns["action"]]).str.strip_chars()
    kinds = written.unique().drop_nulls().to_list()
    known = {kind: _action_of(kind, names) for kind in kinds}
    found = written.replace_strict(known, default=None, return_dtype=pl.String)
    notes += _unknown(found)
    return found.zip_with(written.is_not_null(), rating), unfit.set(written.is_not_null(), None)


def _action_of(written: str, names: dict[str, str]) -> str:
    if (given := names.get(written.lower())) is not None:
        return given
    usual = _BY_LETTERS.get(
        _LETTERS.sub("", written.lower())
    )  # Add to Cart, addToCart and addtocart are add_to_cart
    return usual or names.get(_OTHERS, written)


def _by_rating(
    table: Table, columns: dict[str, str], form: EventForm, usual: str, notes: list[str]
) -> tuple[pl.Series, pl.Series]:
    """The action of rows that name none: by the rating, else the usual one; and as text the ratings that are no number."""
    found = pl.Series([usual]).new_from_index(0, len(table.frame))
    unfit = pl.Series([None], dtype=pl.String).new_from_index(0, len(table.frame))
    if form.like_from is None and form.dislike_to is None:
        if "rating" in columns and "action" not in columns and len(found):
            rated = numbers(table.frame[columns["rating"]], form.decimal).values.drop_nulls().to_numpy()
            if len(rated):
                notes.append(
                    f"rating: all from {rated.min():g} to {rated.max():g} count as a {usual}; --like-from and --dislike-to "
                    "say which are a like and a dislike"
                )
        return found, unfit
    if "rating" not in columns:
        raise ImportFileError(
            "--like-from and --dislike-to, also those of a preset, need ratings: name their column with --map rating=COLUMN"
        )
    read = numbers(table.frame[columns["rating"]], form.decimal)
    rating, unfit = read.values, read.shown.set(~read.unfit, None)
    for bound, action in ((form.dislike_to, "dislike"), (form.like_from, "like")):
        if bound is not None:
            meets = rating >= bound if action == "like" else rating <= bound
            found = found.set(meets.fill_null(False), action)
    return found, unfit


def _context(frame: pl.DataFrame, chosen: Chosen, decimal: Decimal, notes: list[str]) -> pl.Series:
    """(rows,) the `context.x` columns of each row as one JSON object; null without any. Named types are applied."""
    parts = {}
    for name, column in chosen.columns.items():
        if not name.startswith("context."):
            continue
        parts[name.removeprefix("context.")] = frame[column]
        if (kind := chosen.types.get(name)) is not None:
            read, _ = attribute(frame[column], kind, decimal)
            parts[name.removeprefix("context.")] = read.values
            if unfit := int(read.unfit.sum()):
                notes.append(f"{name}: {unfit:,} values are no {kind} and are left out")
    if not parts:
        return pl.Series([None], dtype=pl.String).new_from_index(0, len(frame))
    objects = pl.DataFrame([column.alias(name) for name, column in parts.items()])
    return pl.Series([_json(row) for row in objects.iter_rows(named=True)], dtype=pl.String)


def _json(row: dict[str, object]) -> str:
    return msgspec.json.encode(
        {name: value for name, value in row.items() if value is not None}, enc_hook=str
    ).decode()


def _identified(rows: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """Each event once, with its id. Ids of the file that several events of a user share are made their own."""
    content = (
        pl.col("user_id"),
        pl.col("item_id"),
        pl.col("action"),
        pl.col("at_ms"),
        pl.col("context").fill_null(""),
    )
    given = rows["event_id"].is_not_null()
    made = ~given
    if given.any():
        retracts = pl.col("action") == "retract"
        different = (
            pl.struct("item_id", "action", "at_ms", "context")
            .n_unique()
            .over("user_id", "event_id", retracts)
        )
        shared = rows.select((different > 1) & pl.col("event_id").is_not_null() & ~retracts).to_series()
        if count := int(shared.sum()):
            notes.append(
                f"event_id: {count:,} rows share theirs with another event of their user, such as an order's number: "
                "their ids are made from their content too"
            )
            made |= shared
    chosen = rows.filter(made)
    if len(chosen):
        whole = chosen.select(
            pl.concat_str(*content, pl.col("event_id").fill_null(""), separator="\x1f")
        ).to_series()
        hashed = pl.Series([xxhash.xxh3_128_hexdigest(text.encode()) for text in whole], dtype=pl.String)
        if len(chosen) == len(rows):
            rows = rows.with_columns(hashed.alias("event_id"))
        else:
            rows = rows.with_columns(rows["event_id"].scatter(made.arg_true(), hashed))
    once = rows.unique(["user_id", "event_id", "action"], keep="first", maintain_order=True)
    if repeated := len(rows) - len(once):
        notes.append(f"{repeated:,} rows repeat an event of another row, and count once")
    return once


def message_of(row: tuple[Any, ...]) -> bytes:
    """The message of (event_id, user_id, at_ms, item_id, action, context)."""
    event_id, user_id, at_ms, item_id, action, context = row
    return encode(
        Click(event_id, user_id, at_ms, item_id, action, msgspec.Raw(context.encode()) if context else _EMPTY)
    )
