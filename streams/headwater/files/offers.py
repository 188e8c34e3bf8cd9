"""Offers of a file: which rows change the price, availability or attributes of an item, and why the others do not."""

from typing import Any, NamedTuple

from headwater.files.fields import Chosen
from headwater.files.items import ItemForm, checked_rows, read_fields
from headwater.files.table import BadRow, Table
from headwater.files.values import Type
from headwater.messages import BadMessage, Offer, decode_offer, encode


class OfferRow(NamedTuple):
    """An offer, the line it stands on, and its message."""

    line: int
    offer: Offer
    message: bytes


class Offers(NamedTuple):
    """The rows of a file that are offers, in its order, and those that are none. ``types`` are of the attributes."""

    rows: list[OfferRow]
    bad: list[BadRow]
    notes: list[str]
    types: dict[str, Type]


def offers_of(table: Table, chosen: Chosen, form: ItemForm, *, now_ms: int) -> Offers:
    """The offers of a table. The worker's own decoder has the last word on each.

    Raises:
        ImportFileError: a time format is none, or a column of attributes has no objects.
    """

    def offer(fields: dict[str, Any], attributes: dict[str, str | float | bool]) -> Offer | str:
        try:
            return decode_offer(None, encode(Offer(**fields, attributes=attributes)), now_ms)
        except BadMessage as error:
            return str(error)

    notes = list[str]()
    found, types = read_fields(table, chosen, form, notes)
    checked = checked_rows(table, chosen.columns, found, types, form, offer)
    rows = [OfferRow(line, each, encode(each)) for line, each in checked.rows]
    return Offers(rows, checked.bad, notes, types)
