"""Exports of event collectors as rows, one an item: Segment's calls, and GA4's events in BigQuery."""

from collections.abc import Iterator
from typing import Any, Final

from headwater.files.json_rows import Object, listed


def segment_event(row: Object) -> Iterator[Object]:
    """A track call: its product, or one row for each of its products. A batch holds calls."""
    if not isinstance(row.get("batch"), list):
        yield from _of_call(row)
        return
    outer: Object = {name: row[name] for name in _OF_BATCH if name in row}
    for call in row["batch"]:
        if isinstance(call, dict):
            yield from _of_call({**outer, **call})


def _of_call(row: Object) -> Iterator[Object]:
    properties = row.get("properties") if isinstance(row.get("properties"), dict) else {}
    assert isinstance(properties, dict)
    shared = {
        "user": row.get("userId") or row.get("user_id") or row.get("anonymousId") or row.get("anonymous_id"),
        "event": row.get("event") or row.get("type"),
        "at": row.get("timestamp")
        or row.get("originalTimestamp")
        or row.get("original_timestamp")
        or row.get("sentAt")
        or row.get("sent_at")
        or row.get("receivedAt")
        or row.get("received_at"),
        "id": row.get("messageId") or row.get("message_id"),
    }
    products = [each for each in listed(properties.get("products")) if isinstance(each, dict)]
    for product in products or [properties]:
        item = (
            product.get("product_id") or product.get("productId") or product.get("sku") or product.get("id")
        )
        yield {**shared, "item": item or row.get("product_id"), "properties": properties}


_OF_BATCH: Final = ("sentAt", "sent_at", "receivedAt", "userId", "anonymousId")


def ga4_event(row: Object) -> Iterator[Object]:
    """An event of the BigQuery export: a row for each of its items. Its parameters are columns: event_params.NAME."""
    parameters = {name: _ga4_parameters(row.get(name)) for name in ("event_params", "user_properties")}
    shared = {
        "user": row.get("user_id") or row.get("user_pseudo_id"),
        "event": row.get("event_name"),
        "at": row.get("event_timestamp"),
        **{name: values for name, values in parameters.items() if values},
    }
    items = [each for each in _elements(row.get("items")) if isinstance(each, dict)]
    lone = {name: parameters["event_params"].get(name) for name in ("item_id", "item_name")}
    for item in items or [lone]:
        yield {**shared, "item": item.get("item_id"), "title": item.get("item_name")}


def _ga4_parameters(value: Any) -> Object:
    """The values of {key, value: {string_value, int_value, ...}}, by key."""
    found: Object = {}
    for each in _elements(value):
        if (
            isinstance(each, dict)
            and isinstance(each.get("key"), str)
            and isinstance(each.get("value"), dict)
        ):
            kinds = ("string_value", "int_value", "float_value", "double_value")
            found[each["key"]] = next(
                (each["value"][kind] for kind in kinds if each["value"].get(kind) is not None), None
            )
    return found


def _elements(value: Any) -> list[Any]:
    """The members of a list, also as BigQuery's Parquet has them: {"list": [{"element": ...}]}."""
    if isinstance(value, dict) and isinstance(value.get("list"), list):
        return [each.get("element") if isinstance(each, dict) else each for each in value["list"]]
    return listed(value)
