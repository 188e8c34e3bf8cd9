"""A shard of the engine, and how queries are put to it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headwater.index import NoRoom, Query, edge_shard, fields
from headwater.index.edge_shard import Shard, plans_of, require_room
from headwater.index.filters import parse

ONE = np.array([1.0, 0.0], np.float32)
PAYLOAD = {"category": "garden", "tags": [], "price": 3.0, "available": True, "attributes": {}}


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard.create(tmp_path / "shard-0", 3)
    yield shard
    shard.close()


def put(shard: Shard, *keys: int) -> None:
    vectors = np.array([[key, 0.0, 0.0] for key in keys], np.float32)
    shard.put({key: fields.document(PAYLOAD) for key in keys}, vectors)


def found(shard: Shard, query: Query) -> list[int]:
    (scored,) = shard.search(plans_of([query], 10, None, {}))
    return [int(each.id) for each in scored]


def test_items_are_found_best_first_and_gone_once_deleted(shard: Shard) -> None:
    put(shard, 1, 2, 3)
    assert found(shard, Query(ONE, 2)) == [3, 2]
    shard.delete([3, 99])
    assert found(shard, Query(ONE, 2)) == [2, 1]


def test_a_shard_on_the_disk_is_loaded_as_it_was(tmp_path: Path) -> None:
    first = Shard.create(tmp_path / "shard-0", 3)
    put(first, 1, 2)
    first.flush()
    first.close()
    again = Shard.load(first.path, first.number_fields)
    assert found(again, Query(ONE, 5, parse({"price": {"lt": 4}}))) == [2, 1]
    again.close()


def test_few_exclusions_are_searched_for_too_and_many_are_a_condition() -> None:
    few = Query(ONE, 5, exclude=frozenset(range(10)))
    many = Query(ONE, 5, exclude=frozenset(range(11)))
    one, other = plans_of([few, many], 10, None, {})
    assert (one.limit, other.limit) == (15, 5)
    assert one.where is not other.where


def test_queries_with_the_same_filter_share_its_translation() -> None:
    where = parse({"category": "garden"})
    one, other = plans_of([Query(ONE, 5, where), Query(ONE, 9, where)], 10, None, {})
    assert one.where is other.where


def test_hidden_items_are_dropped_after_the_search_where_that_is_allowed() -> None:
    (plan,) = plans_of([Query(ONE, 10)], 10, 0.1, {})
    assert (plan.where, plan.limit, plan.drops_hidden) == (None, 12, True)
    (plan,) = plans_of([Query(ONE, 10, parse({"category": "garden"}))], 10, 0.1, {})
    assert (plan.limit, plan.drops_hidden) == (10, False)


def test_a_disk_without_room_is_told_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_room(tmp_path)
    with pytest.raises(NoRoom, match="expected at least"):
        require_room(tmp_path, 1 << 60)
    monkeypatch.setattr(edge_shard, "ROOM_BYTES", 1 << 60)
    with pytest.raises(NoRoom, match="make room"):
        require_room(tmp_path)
