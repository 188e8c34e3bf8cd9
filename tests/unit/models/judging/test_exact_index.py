"""The index over a dataset finds what the contract of the engines says."""

import numpy as np
import pytest

from headwater.index import Query
from headwater.index.filters import And, AnyOf, Range
from headwater_models.arrays import F32
from headwater_models.judging.evaluation import Catalog
from headwater_models.judging.exact_index import ExactIndex

KEYS = [70, 10, 40, 99]


def index() -> ExactIndex:
    """Items 0 to 3 on a line, the last without a vector; 1 and 2 are new."""
    vectors: F32 = np.array([[1, 0], [2, 0], [3, 0], [0, 0]], dtype=np.float32)
    catalog = Catalog(vectors, np.array([True, True, True, False]), np.array(KEYS, dtype=np.uint64))
    return ExactIndex(catalog, {"since_ms": np.array([np.nan, 5.0, 7.0, 7.0])})


async def test_the_nearest_items_come_without_those_that_are_excluded_or_have_no_vector() -> None:
    vector = np.array([1, 0], dtype=np.float32)
    found = await index().search(
        [Query(vector, 4), Query(-vector, 1), Query(vector, 4, exclude=frozenset({40, 12345}))]
    )
    assert [[hit.key for hit in hits] for hits in found] == [[40, 10, 70], [70], [10, 70]]
    assert found[0][0].score == 3.0


async def test_a_filter_of_numbers_holds_for_searches_and_matches() -> None:
    vector = np.array([1, 0], dtype=np.float32)
    new = And((Range("since_ms", gte=5.0, lt=8.0),))
    ((first, second),) = await index().search([Query(vector, 4, where=new)])
    assert (first.key, second.key) == (40, 10)
    assert [*await index().match([70, 10, 99, 12345], Range("since_ms", gt=4.0))] == [10]
    assert [*await index().match([70, 10, 99, 12345], None)] == [70, 10]


async def test_payloads_hold_numbers_and_attributes_of_the_items_that_have_them() -> None:
    known = index()
    known._catalog = known._catalog._replace(attributes=[{"maker": "a"}, {"maker": "b"}])
    assert await known.items([70, 10, 40, 99]) == {
        70: {"item_id": "", "attributes": {"maker": "a"}},
        10: {"item_id": "", "attributes": {"maker": "b"}, "since_ms": 5.0},
        40: {"item_id": "", "attributes": {}, "since_ms": 7.0},
    }


async def test_a_filter_that_no_dataset_can_answer_is_refused() -> None:
    with pytest.raises(TypeError, match="expected ranges of since_ms"):
        await index().match(KEYS, AnyOf("category", ("tea",)))
