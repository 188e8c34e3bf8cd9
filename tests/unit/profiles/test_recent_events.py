"""The newest events of a partition, by the row of their user."""

import numpy as np
import pytest

from headwater.profiles import recent_events
from headwater.profiles.recent_events import RecentEvents


def added(events: RecentEvents, *pairs: tuple[int, int]) -> None:
    rows, keys = zip(*pairs, strict=True)
    events.add(np.array(rows), np.array(keys, dtype=np.uint64))


def test_an_event_is_that_of_its_row_alone() -> None:
    events = RecentEvents()
    added(events, (3, 11), (4, 12))
    assert events.has(3, 11)
    assert not events.has(4, 11)
    assert not events.has(3, 12)


def test_the_oldest_make_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_events, "_ROOM", 4)
    events = RecentEvents()
    added(events, (0, 1), (0, 2), (0, 3))
    added(events, (0, 4), (0, 5))
    assert [events.has(0, key) for key in (1, 2, 3, 4, 5)] == [False, True, True, True, True]
    added(events, *((0, key) for key in range(10, 17)))
    assert [key for key in range(1, 20) if events.has(0, key)] == [13, 14, 15, 16]
