"""The session at hand: what a user has taken since the last long pause. Pure."""

from collections.abc import Sequence

Wish = tuple[int, int, int]  # item key, time, code of the action


def session_in_hand(wishes: Sequence[Wish], now_ms: int, pause_ms: int) -> list[Wish]:
    """The wishes, which come oldest first, since the last pause longer than `pause_ms`: an item once, by its last wish.

    None where the pause lasts until now: who comes back days later has something else in mind.

    >>> wishes = [(1, 0, 5), (2, 90, 5), (3, 95, 5), (2, 99, 5)]
    >>> session_in_hand(wishes, now_ms=120, pause_ms=50), session_in_hand(wishes, now_ms=150, pause_ms=50)
    ([(3, 95, 5), (2, 99, 5)], [])
    """
    session: dict[int, Wish] = {}
    later_ms = now_ms
    for wish in reversed(wishes):
        if later_ms - wish[1] > pause_ms:
            break
        session.setdefault(wish[0], wish)
        later_ms = wish[1]
    return [*reversed(session.values())]
