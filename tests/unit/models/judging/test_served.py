"""Lists from arrays are those that the request path makes of the same index."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from headwater.encoder.features import item_keys
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder
from headwater.profiles.counters import CounterEffect, count_evictions
from headwater.recall.sources.buy_again import REST_MS
from headwater_models.judging.evaluation import encoded, evaluate, ranking
from headwater_models.judging.protocols import Cases, next_events
from headwater_models.judging.served import Counting, served
from tests.unit.models.judging.test_evaluation import Stand, small
from tests.unit.models.judging.test_protocols import dataset


class Weighed(Stand):
    """With the interest of the event before the last at half the weight of that of the last."""

    def answer(self, *inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override, type-arg]
        interests, weights = super().answer(*inputs)
        return interests, weights * np.array([1.0, 0.5], dtype=np.float32)


def lists(stand: Stand, cases: Cases, k: int) -> list[list[int]]:
    data, asked = small(None)
    encoder = cast(Encoder, stand)
    scorer = served(encoder, encoded(encoder, data), k)
    found: list[list[int]] = ranking(scorer, asked.log, cases, len(data.item_ids), k)[1].tolist()
    return found


def open_questions() -> Cases:
    """What comes after items 0, 1, 3, with none of them out of the ranking."""
    return replace(small(None)[1].test, mask_seen=False)


def test_interests_vote_by_rank_and_weight_and_not_by_their_length() -> None:
    # By dot products item 1 would come first: its interest is twice as long, but half as heavy.
    assert lists(Weighed(), open_questions(), 1) == [[3]]


def test_an_interest_without_weight_has_no_vote() -> None:
    class One(Weighed):
        def answer(self, *inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override, type-arg]
            interests, weights = super().answer(*inputs)
            return interests, np.floor(weights)

    # Only item 3 is near; the others are level, and the lower number comes first.
    assert lists(One(), open_questions(), 3) == [[3, 0, 1]]


def test_what_is_wanted_again_is_a_source_where_seen_items_may_come() -> None:
    data, asked = small(None)  # all within seconds: nothing has rested
    encoder = cast(Encoder, Stand())
    scorer = served(encoder, encoded(encoder, data), 2, {"interests": 1.0, "buy-again": 100.0})
    cases = open_questions()
    assert ranking(scorer, asked.log, cases, 4, 2)[1].tolist() == lists(Stand(), cases, 2)
    rested = replace(cases, now_ms=cases.now_ms + REST_MS)
    assert ranking(scorer, asked.log, rested, 4, 2)[1].tolist() == [[3, 1]]  # the last wishes first
    forgetful = replace(rested, remembered=1)
    assert ranking(scorer, asked.log, forgetful, 4, 1)[1].tolist() == [[3]]
    masked = replace(rested, mask_seen=True)
    assert ranking(scorer, asked.log, masked, 4, 2)[1].tolist() == [[2, -1]]


def test_what_goes_with_the_session_at_hand_is_a_source_of_a_bundle_with_a_table() -> None:
    data, asked = small(None)  # 0, 1, 3, then 2 is asked for; 0 comes two seconds before the others
    keys = item_keys(item_id.encode() for item_id in data.item_ids)
    of, to = np.array([0, 1, 1, 3]), np.array([3, 0, 2, 2])  # 0 goes with 3, 1 with 0 and 2, 3 with 2
    row = np.argsort(np.argsort(keys))
    order = np.lexsort((row[to], row[of]))
    starts = np.searchsorted(row[of][order], np.arange(5))
    likeness = np.array([0.9, 0.3, 0.2, 0.4], dtype=np.float32)[order]
    stand = Stand()
    scorers = {}
    for pause_ms in (1_500, 5_000):
        stand.neighbours = Neighbours(np.sort(keys), starts, row[to][order], likeness, pause_ms)
        encoder = cast(Encoder, stand)
        scorers[pause_ms] = served(encoder, encoded(encoder, data), 4, {"similar": 1.0})
    later = open_questions()  # five seconds after the last event
    assert ranking(scorers[1_500], asked.log, later, 4, 4)[1].tolist() == [[-1, -1, -1, -1]]
    cases = replace(later, now_ms=later.now_ms - 4_000)
    # With 1 and 3 in the session 2 is nearer than 0; with 0 in it too it is nothing new.
    assert ranking(scorers[1_500], asked.log, cases, 4, 4)[1].tolist() == [[2, 0, -1, -1]]
    assert ranking(scorers[5_000], asked.log, cases, 4, 4)[1].tolist() == [[2, -1, -1, -1]]
    masked = replace(cases, mask_seen=True)
    assert ranking(scorers[1_500], asked.log, masked, 4, 4)[1].tolist() == [[2, -1, -1, -1]]
    assert ranking(scorers[5_000], asked.log, replace(cases, remembered=1), 4, 4)[1].tolist() == [
        [2, -1, -1, -1]
    ]


def test_what_is_new_and_like_what_is_taken_is_a_source_where_it_is_said_what_is_new() -> None:
    data, asked = small(None)  # 0, 1, 3, then 2 is asked for
    encoder = cast(Encoder, Stand())
    catalog = encoded(encoder, data)
    vectors = np.array([[1, 0], [0, 2], [1, 9], [4, 1]], dtype=np.float32)
    catalog = catalog._replace(vectors=np.pad(vectors, ((0, 0), (0, encoder.dim - 2))))
    cases = open_questions()
    found = {}
    for new in ({2, 3}, {0, 2}, {0, 1, 2, 3}):
        mask = np.isin(np.arange(4), [*new])
        scorer = served(encoder, catalog, 2, {"new": 1.0}, mask)
        found[frozenset(new)] = ranking(scorer, asked.log, cases, 4, 2)[1].tolist()[0]
    # 0, 1 and 3 are taken already; of the rest only what is new comes.
    assert found == {frozenset(new): [2, -1] for new in found}
    later = replace(cases, now_ms=cases.now_ms + 86_400_000, remembered=1)
    scorer = served(encoder, catalog, 2, {"new": 1.0}, np.array([True, True, True, False]))
    assert ranking(scorer, asked.log, later, 4, 2)[1].tolist() == [
        [0, 2]
    ]  # like 3 by angle; by products 2 is
    catalog = catalog._replace(vectors=np.ones_like(catalog.vectors), came_in=np.array([3, 1, 2, 9]))
    scorer = served(encoder, catalog, 3, {"new": 1.0}, np.array([True, True, True, False]))
    assert ranking(scorer, asked.log, later, 4, 3)[1].tolist() == [[0, 2, 1]]  # of equals the newest first
    catalog = catalog._replace(attributes=[{"maker": maker} for maker in "aabb"])
    scorer = served(encoder, catalog, 3, {"new": 1.0}, np.array([True, True, True, False]))
    assert ranking(scorer, asked.log, later, 4, 3)[1].tolist() == [[2, 0, 1]]  # of the same maker as 3
    nobody = served(encoder, catalog, 2, {"new": 1.0}, np.zeros(4, dtype=np.bool_))
    assert ranking(nobody, asked.log, later, 4, 2)[1].tolist() == [[-1, -1]]


def test_what_the_log_forgot_may_come_again() -> None:
    data, asked = small(None)  # 0, 1, 3, then 2 is asked for
    encoder = cast(Encoder, Stand())
    scorer = served(encoder, encoded(encoder, data), 4)
    found = {}
    for remembered in (None, 2):
        cases = replace(asked.test, remembered=remembered)
        found[remembered] = ranking(scorer, asked.log, cases, 4, 4)[1].tolist()[0]
    assert found == {None: [2, -1, -1, -1], 2: [0, 2, -1, -1]}
    assert evaluate(scorer, asked, 4, 1, remembered=2)["all"].hit.value == 0


def test_what_is_counted_at_a_question_is_what_a_worker_has_counted_by_then() -> None:
    rng = np.random.default_rng(3)
    names = {
        f"user {n}": [(int(item), 1_000 * at) for at, item in enumerate(rng.integers(0, 9, 40))]
        for n in range(3)
    }
    log = dataset(names).log
    rows = rng.permutation(np.arange(len(log.items)))[:50]
    cases = next_events(log, rows, mask_seen=False)
    found = Counting(4, 5)(log, cases)
    for case, (user, end) in enumerate(zip(cases.users, cases.ends, strict=True)):
        keys, levels = [0] * 5, [0] * 5
        count_evictions(
            keys,
            levels,
            (
                (item, CounterEffect.COUNT)
                for item in log.items[log.starts[user] : max(log.starts[user], end - 4)]
            ),
        )
        assert found.levels[case].tolist() == levels
        assert found.keys[case].tolist() == keys


def test_items_that_were_counted_are_seen_too() -> None:
    data, asked = small(None)  # 0, 1, 3, then 2 is asked for
    encoder = cast(Encoder, Stand())
    encoder.log_length = 2
    scorer = served(encoder, encoded(encoder, data), 4)
    cases = replace(asked.test, remembered=2)
    assert ranking(scorer, asked.log, cases, 4, 4)[1].tolist()[0] == [2, -1, -1, -1]


def test_nobody_without_events_has_interests() -> None:
    cases = open_questions()
    nobody = replace(cases, ends=np.zeros_like(cases.ends))
    assert lists(Stand(), nobody, 2) == [[-1, -1]]


@pytest.mark.parametrize("k", [1, 4])
def test_a_target_outside_the_list_is_never_found(k: int) -> None:
    data, asked = small(None)
    encoder = cast(Encoder, Stand())
    found = evaluate(served(encoder, encoded(encoder, data), k), asked, 4, k)["all"]
    assert found.hit.value == 1.0  # 0, 1 and 3 are out of the ranking: 2 is left
