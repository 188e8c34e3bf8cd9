"""Items, queries and filters in the terms of a Qdrant server; `server` says what a point of its collection holds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from qdrant_client import models

from headwater.index import Query, VersionStamp, fields
from headwater.index.filters import Filter, names_available

DELETED: Final = "5:state=deleted"  # the one word of a mark; no filter knows a field `state`
SEARCH_EF: Final = 128


def older_than(item_id: str, stamp: VersionStamp) -> models.Filter:
    """The condition that an older version of the same item is stored, for an update that must not take it back."""
    high, low = stamp.version >> 32, stamp.version & 0xFFFFFFFF
    same_high = models.FieldCondition(key="version_high", match=models.MatchValue(value=high))
    same_low = models.FieldCondition(key="version_low", match=models.MatchValue(value=low))
    less: list[models.Condition] = [
        models.FieldCondition(key="version_high", range=models.Range(lt=high)),
        models.Filter(must=[same_high, models.FieldCondition(key="version_low", range=models.Range(lt=low))]),
        models.Filter(
            must=[
                same_high,
                same_low,
                models.FieldCondition(key="offset", range=models.Range(lt=stamp.offset)),
            ]
        ),
    ]
    same_item = models.FieldCondition(key="item_id", match=models.MatchValue(value=item_id))
    return models.Filter(must=[same_item, models.Filter(should=less)])


def same_as(key: int, held: Mapping[str, Any], revision: int) -> models.Filter:
    """The condition that an item is as ``held``, its payload, says, with offers of a lower revision."""
    of_stamp: list[models.Condition] = [
        models.FieldCondition(key=name, match=models.MatchValue(value=held[name]))
        for name in ("item_id", "version_high", "version_low", "offset")
    ]
    newer = models.FieldCondition(key="revision", range=models.Range(gte=revision))
    return models.Filter(must=[models.HasIdCondition(has_id=[key]), *of_stamp], must_not=[newer])


def query_request(query: Query) -> models.QueryRequest:
    """A search with the condition of its filter and exclusions."""
    return models.QueryRequest(
        query=models.NearestQuery(nearest=[*query.vector.tolist(), 0.0]),
        filter=server_filter(condition_on_items(query.where, query.exclude)),
        params=models.SearchParams(hnsw_ef=SEARCH_EF),
        limit=query.limit,
        with_payload=["item_id"],
    )


def condition_on_items(where: Filter | None, exclude: frozenset[int] = frozenset()) -> fields.Group:
    """A search condition that leaves marks out: by the rule on availability, or else by their word."""
    group = fields.condition(where, exclude)
    if where is None or not names_available(where):
        return group
    return replace(group, must_not=(*group.must_not, fields.HasWord((DELETED,))))


def server_filter(group: fields.Group) -> models.Filter:
    """A group of conditions as the server takes it."""
    return models.Filter(
        must=[server_condition(each) for each in group.must] or None,
        should=[server_condition(each) for each in group.should] or None,
        must_not=[server_condition(each) for each in group.must_not] or None,
    )


def server_condition(condition: fields.Condition) -> models.Condition:
    """One condition as the server takes it."""
    match condition:
        case fields.HasWord(words=words):
            wanted = (
                models.MatchValue(value=words[0]) if len(words) == 1 else models.MatchAny(any=list(words))
            )
            return models.FieldCondition(key="words", match=wanted)
        case fields.HasNumber(field=field, bounds=at):
            return models.FieldCondition(
                key=field, range=models.Range(gte=at.gte, gt=at.gt, lte=at.lte, lt=at.lt)
            )
        case fields.HasKey(keys=keys):
            return models.HasIdCondition(has_id=list(keys))
        case fields.Group():
            return server_filter(condition)


def is_mark(record: models.Record) -> bool:
    """Whether a record, read with its words, is the mark of a deletion."""
    return DELETED in (record.payload or {})["words"]
