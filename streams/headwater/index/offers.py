"""**Offers.** Prices, availability and attributes that change often, laid over an item without its text or vector.

The order is by time, field by field: of an item's record and its offers, the newest that states a field decides it. So the
order in which records arrive makes no difference, and neither does a repeat.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from headwater.messages import MAX_AT_MS, Offer, OfferState

# Where a payload keeps what the item's own record says of the fields that offers cover.
_RECORD = "record"
MAX_REVISION = 2**63 - 1


def offered(state: OfferState | None, offer: Offer, at_ms: int, revision: int) -> OfferState | None:
    """The state after an offer of the time ``at_ms``; None where it changes nothing.

    ``revision`` is the least that the new state gets: it is also higher than the one before.

    >>> sale = offered(None, Offer("tea", price=2.0), 1_000, 1)
    >>> offered(sale, Offer("tea", price=3.0), 999, 2) is None
    True
    """
    if state is None:
        state = OfferState(offer.item_id, 0)
    if at_ms <= state.withdrawn_ms:
        return None
    changed: dict[str, Any] = {}
    if offer.price is not None and at_ms >= state.price_ms:
        changed |= {"price": offer.price, "price_ms": at_ms}
    if offer.available is not None and at_ms >= state.available_ms:
        changed |= {"available": offer.available, "available_ms": at_ms}
    newer = {
        name: (value, at_ms)
        for name, value in offer.attributes.items()
        if name not in state.attributes or at_ms >= state.attributes[name][1]
    }
    if newer:
        changed["attributes"] = {**state.attributes, **newer}
    after = msgspec.structs.replace(state, **changed)
    return None if after == state else _revised(after, state, revision)


def withdrawn(state: OfferState | None, item_id: str, at_ms: int, revision: int) -> OfferState | None:
    """The state once all offers up to ``at_ms`` are withdrawn; None where that changes nothing."""
    if state is None:
        state = OfferState(item_id, 0)
    if at_ms <= state.withdrawn_ms:
        return None
    after = msgspec.structs.replace(_since(state, at_ms), withdrawn_ms=min(at_ms, MAX_AT_MS))
    return _revised(after, state, revision)


def outliving(state: OfferState, deleted_ms: int) -> OfferState | None:
    """What is left of an item's offers when the item is deleted: those that are newer, for when it comes back."""
    after = _since(state, deleted_ms)
    if after == state:
        return state
    is_empty = after.price is None and after.available is None and not after.attributes
    return None if is_empty else _revised(after, state, 0)


def newest_ms(state: OfferState) -> int:
    """When an item's newest offer or withdrawal was made."""
    attributes_ms = max((at_ms for _, at_ms in state.attributes.values()), default=0)
    return max(state.price_ms, state.available_ms, state.withdrawn_ms, attributes_ms)


def laid_over(payload: Mapping[str, Any], state: OfferState | None) -> dict[str, Any]:
    """A payload with an item's offers, in place of any that were laid over it before.

    ``payload`` is that of an item's record, with the time of the record as ``at_ms``, or what this has returned for one.
    """
    record = dict(payload)
    record |= record.pop(_RECORD, {})
    if state is None:
        return record
    record_ms = record.get("at_ms") or 0
    price, available, attributes = (
        record.get("price"),
        record.get("available", True),
        record.get("attributes") or {},
    )
    merged, own = dict(record), dict[str, Any]()
    if state.price is not None and (price is None or state.price_ms >= record_ms):
        merged["price"], own["price"] = state.price, price
    states_it = not record.get("available_by_default", False)
    if state.available is not None and (not states_it or state.available_ms >= record_ms):
        merged["available"], own["available"] = state.available, available
    laid = {
        name: value
        for name, (value, at_ms) in state.attributes.items()
        if name not in attributes or at_ms >= record_ms
    }
    if laid:
        merged["attributes"], own["attributes"] = {**attributes, **laid}, attributes
    if own:
        merged[_RECORD] = own
    return merged


def _since(state: OfferState, at_ms: int) -> OfferState:
    """The state without the fields that were stated at ``at_ms`` or before."""
    changed: dict[str, Any] = {}
    if state.price is not None and state.price_ms <= at_ms:
        changed |= {"price": None, "price_ms": 0}
    if state.available is not None and state.available_ms <= at_ms:
        changed |= {"available": None, "available_ms": 0}
    if any(since_ms <= at_ms for _, since_ms in state.attributes.values()):
        changed["attributes"] = {name: each for name, each in state.attributes.items() if each[1] > at_ms}
    return msgspec.structs.replace(state, **changed) if changed else state


def _revised(after: OfferState, before: OfferState, least: int) -> OfferState:
    return msgspec.structs.replace(after, revision=min(max(before.revision + 1, least), MAX_REVISION))
