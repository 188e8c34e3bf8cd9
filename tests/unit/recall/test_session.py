"""The current session of a user: what it holds, and when it is over."""

from headwater.recall.session import current_session


def test_a_pause_ends_the_session_and_it_may_last_until_now() -> None:
    events = [(1, 0, 5), (2, 101, 5), (3, 201, 5), (4, 300, 5)]
    assert [key for key, _, _ in current_session(events, 400, 100)] == [2, 3, 4]
    assert current_session(events, 401, 100) == []


def test_an_item_is_in_the_session_once_by_its_last_event() -> None:
    assert current_session([(1, 0, 5), (2, 1, 5), (1, 2, 7)], 3, 100) == [(2, 1, 5), (1, 2, 7)]


def test_a_moment_before_the_last_event_belongs_to_its_session() -> None:
    assert current_session([(1, 500, 5)], 400, 100) == [(1, 500, 5)]
