"""Queries and filters as a Qdrant server takes them; the contract suite shows that they mean the same there."""

import numpy as np
from qdrant_client import models

from headwater.index import NO_VERSION, Query, VersionStamp, fields
from headwater.index.filters import parse
from headwater.index.server_terms import DELETED, condition_on_items, is_mark, older_than, query_request


def test_a_query_has_nothing_in_the_place_that_lifts_items() -> None:
    request = query_request(Query(np.array([1.0, 2.0], np.float32), 7))
    assert isinstance(request.query, models.NearestQuery)
    assert request.query.nearest == [1.0, 2.0, 0.0]
    assert request.limit == 7
    assert request.with_payload == ["item_id"]


def test_a_search_over_unavailable_items_too_leaves_marks_of_deletions_out() -> None:
    mark = fields.HasWord((DELETED,))
    assert mark not in condition_on_items(None).must_not, "what is not available is left out already"
    assert mark in condition_on_items(parse({"available": False})).must_not


def test_a_mark_is_told_by_its_word() -> None:
    assert is_mark(models.Record(id=1, payload={"words": [DELETED]}))
    assert not is_mark(models.Record(id=1, payload={"words": ["8:category=garden"]}))


def test_an_older_version_is_told_by_both_halves_of_it_and_then_by_its_offset() -> None:
    for version in (0, 5, (1 << 40) + 3, NO_VERSION):
        condition = older_than("tea", VersionStamp(version, 9))
        assert isinstance(condition.must, list)
        same_item, older = condition.must
        assert isinstance(same_item, models.FieldCondition)
        assert same_item.key == "item_id"
        assert isinstance(older, models.Filter)
        assert isinstance(older.should, list)
        high, low = version >> 32, version & 0xFFFFFFFF
        first = older.should[0]
        assert isinstance(first, models.FieldCondition)
        assert first.range == models.Range(lt=high)
        assert str(low) in str(older.should[1:])
