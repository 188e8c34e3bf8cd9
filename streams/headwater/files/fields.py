"""Which column is which field of a message, and of which type."""

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, get_args

from headwater.files.contents import ImportFileError
from headwater.files.values import Type

_SHOWN: Final = 40
_MAX_NAME: Final = 80
TYPES: Final[tuple[Type, ...]] = get_args(Type)
# The types that the fields have themselves.
_FIXED: Final[dict[str, Type]] = {
    "at_ms": "time", "since_ms": "time", "price": "number", "version": "number", "rating": "number",
    "available": "flag", "tags": "list",
}  # fmt: skip


# What shops call the columns of the fields, each without blanks, hyphens and capitals: a hint, since a file may mean otherwise.
_LIKELY: Final[dict[str, tuple[str, ...]]] = {
    "user_id": (
        "user", "userid", "customer", "customerid", "clientid", "client", "visitorid", "visitor", "memberid", "accountid", "uid",
        "shopperid", "buyerid", "email", "customeremail", "sessionid", "session", "anonymousid", "userpseudoid", "reviewerid", "householdid",
    ),
    "item_id": (
        "item", "itemid", "product", "productid", "sku", "articleid", "article", "articlenumber", "asin", "parentasin", "movieid",
        "handle", "productcode", "goodsid", "aid", "trackid", "songid", "bookid", "isbn", "ean", "gtin", "variantsku", "businessid", "id",
    ),
    "at_ms": (
        "timestamp", "time", "at", "date", "datetime", "createdat", "eventtime", "eventtimestamp", "ts", "occurredat", "orderdate",
        "viewedat", "purchasedat", "unixreviewtime", "transactiondate", "day",
    ),
    "action": (
        "action", "event", "eventtype", "eventname", "actiontype", "behavior", "behaviortype", "behaviour", "interaction",
        "interactiontype", "activity", "type",
    ),
    "rating": ("rating", "stars", "score", "overall", "userrating"),
    "title": ("name", "producttitle", "productname", "itemname", "itemtitle"),
    "description": ("body", "bodyhtml", "longdescription", "productdescription", "shortdescription", "summary"),
    "price": ("saleprice", "unitprice", "regularprice", "variantprice", "listprice", "pricegross", "amount"),
    "available": ("availability", "instock", "stock", "stockquantity", "stockstatus", "inventory", "isactive", "active"),
    "category": ("categories", "producttype", "maincategory", "categoryname", "department"),
    "tags": ("genres", "keywords", "labels"),
    "image": ("imageurl", "imagelink", "imagesrc", "thumbnail"),
    "history": ("items", "sequence", "past"),
    "target": ("next", "targets", "label"),
}  # fmt: skip


class Fields(NamedTuple):
    """The fields that columns can be mapped to."""

    of: str  # what the rows are, for messages
    names: tuple[str, ...]
    required: tuple[str, ...]
    open_ended: str = ""  # a prefix that allows any name after it, with a value of any type


class Chosen(NamedTuple):
    """The column of each field, and the types that were named."""

    columns: dict[str, str]
    types: dict[str, Type]

    def __str__(self) -> str:
        pairs = [f"{name}={column}" for name, column in self.columns.items()]
        more = len(pairs) - _SHOWN
        return ", ".join(pairs[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


CLICKS: Final = Fields(
    "clicks",
    ("user_id", "item_id", "at_ms", "action", "event_id", "rating"),
    required=("user_id", "item_id", "at_ms"),
    open_ended="context.",
)
# What training and evaluation read: times may be missing, and texts of items stand beside the events.
TRAINING: Final = Fields(
    "events", (*CLICKS.names, "price", "title"), required=("user_id", "item_id"), open_ended="context."
)
# What `headwater evaluate --cases` reads: a history and what came next in each row.
CASES: Final = Fields(
    "cases", ("user_id", "history", "target", "times", "at_ms"), required=("history", "target")
)
CATALOG: Final = Fields(
    "catalog",
    (
        "item_id", "title", "description", "tags", "category", "price", "available", "image", "version", "since_ms",
        "attributes",
    ),
    required=("item_id",),
    open_ended="attributes.",
)  # fmt: skip
# What changes often of an item: no text, and nothing else is wiped.
OFFERS: Final = Fields(
    "offers",
    ("item_id", "price", "available", "at_ms", "attributes"),
    required=("item_id",),
    open_ended="attributes.",
)


def mapping(
    fields: Fields,
    columns: Sequence[str],
    given: Iterable[str],
    usual: Mapping[str, Sequence[str]] | None = None,
    nested: Iterable[str] = (),
) -> Chosen:
    """Columns that carry a field's name, else the first of its ``usual`` ones, overridden by the pairs of ``given``.

    >>> mapping(Fields("clicks", ("user_id", "item_id"), ("item_id",)), ["user", "item_id"], ["user_id=user:text"])
    Chosen(columns={'item_id': 'item_id', 'user_id': 'user'}, types={'user_id': 'text'})

    Args:
        given: ``field=column`` or ``field=column:type``.
        nested: columns that lists would have as rows: those that a pair names, such as ``item_id=events.aid``. Told as such.

    Raises:
        ImportFileError: a malformed pair, an unknown field, column or type, or a required field without a column.
    """
    prefix = fields.open_ended

    def fits(name: str) -> bool:
        return name in fields.names or bool(prefix and name.startswith(prefix) and name != prefix)

    found = {name: name for name in columns if fits(name)}
    for name, likely in (usual or {}).items():
        if name not in found and (there := [column for column in likely if column in columns]):
            found[name] = there[0]
    by_letters = {_letters(name): name for name in fields.names}
    for column in columns:  # User_ID and userId are user_id
        if (name := by_letters.get(_letters(column), "")) and column not in found.values():
            found.setdefault(name, column)
    types: dict[str, Type] = {}
    for pair in given:
        name, equals, column = pair.partition("=")
        if not equals or not name or not column:
            raise ImportFileError(f"--map {pair}: expected field=column, such as --map item_id=sku")
        if not fits(name):
            near = difflib.get_close_matches(name, fields.names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ImportFileError(
                f"--map {pair}: {name} is no field of {fields.of}{hint}; expected one of {', '.join(fields.names)}"
                + (f" or {prefix}NAME" if prefix else "")
            )
        types.pop(name, None)
        if column not in columns and ":" in column:
            column, _, chosen = column.rpartition(":")
            types[name] = _type(pair, name, chosen, prefix)
        # An object has columns of its parts, and none of its own.
        if column not in columns and not (f"{name}." == prefix and _parts(column, columns)):
            raise ImportFileError(f"--map {pair}: no column {column}; the file has {_listed(columns)}")
        found[name] = column
    if missing := [name for name in fields.required if name not in found]:
        inside = list(nested)
        lists = f", and in lists {_listed(inside)}" if inside else ""
        raise ImportFileError(
            f"no column for {', '.join(missing)}: the file has {_listed(columns)}{lists}; name it with "
            f"--map {missing[0]}=COLUMN, or all columns of a file without a header with --columns{_hint(missing, columns, inside)}"
        )
    whole = prefix.removesuffix(".")
    if prefix and whole in found and found[whole] not in columns:
        column = found.pop(whole)
        for part in _parts(column, columns):
            found.setdefault(prefix + part.removeprefix(f"{column}."), part)
    return Chosen(found, types)


def overlooked(fields: Fields, chosen: Chosen, columns: Sequence[str]) -> str:
    """The columns that are likely meant for fields without one, as a hint with a semicolon before it; else nothing."""
    used = chosen.columns.values()
    rest = [column for column in columns if column not in used]
    return _hint([name for name in fields.names if name not in chosen.columns], rest)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _hint(missing: Sequence[str], columns: Sequence[str], nested: Sequence[str] = ()) -> str:
    """The columns that are likely meant: those in lists, by the last part of their path, rather than those around them."""
    by_letters = {_letters(column): column for column in reversed(columns)}
    by_letters |= {_letters(column.rpartition(".")[2]): column for column in reversed(nested)}
    likely = [
        shlex.join(["--map", f"{name}={by_letters[each]}"])
        for name in missing
        for each in [next((each for each in _LIKELY.get(name, ()) if each in by_letters), None)]
        if each is not None
    ]
    return f"; perhaps {' '.join(likely)}" if likely else ""


def _parts(column: str, columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name.startswith(f"{column}.")]


def _listed(columns: Sequence[str]) -> str:
    if not columns:
        return "no columns"
    more = len(columns) - _SHOWN
    # A file that is no table may have a column of any length.
    shown = [name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..." for name in columns[:_SHOWN]]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _type(pair: str, name: str, chosen: str, prefix: str) -> Type:
    for known in TYPES:
        if chosen == known:
            fixed = _FIXED.get(name, "text")
            if known != fixed and not (prefix and name.startswith(prefix)):
                raise ImportFileError(
                    f"--map {pair}: got {known}, but {name} is always {fixed}; leave :{known} out"
                )
            return known
    raise ImportFileError(
        f"--map {pair}: no column of this name, and no type {chosen}; expected {', '.join(TYPES)}"
    )
