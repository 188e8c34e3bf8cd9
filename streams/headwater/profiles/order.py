"""Which of two records of a user is the newer one: the one whose state, or erasure, rests on more clicks.

A state is a function of the clicks that were applied, so their offset comes first, before the epoch of the owner. An
offset is of one clicks log. The *incarnation* counts how often that log was replaced by another one, made again or
restored elsewhere: offsets of different incarnations do not compare, so it comes before them.
"""

from typing import Final, NamedTuple

# Each is a log that somebody has accepted by hand, so none of ours is ever higher.
MAX_INCARNATION: Final = 2**15
# The offset of a tombstone that does not tell: it is of a version without epochs.
UNTOLD: Final = -2


class Order(NamedTuple):
    """The place of a record among those of its user; of two that are equal the later one is newer."""

    incarnation: int  # of the log that the offset is of
    offset: int  # the last applied offset of that log; -1: none
    epoch: int  # of the owner that wrote the record; -1: none


def supersedes(order: Order, is_tombstone: bool, known: Order, known_is_tombstone: bool) -> bool:
    """Whether a record is newer than one that comes before it.

    >>> supersedes(Order(0, 9, 1), False, Order(0, 5, 12), False)
    True
    """
    if order.incarnation == known.incarnation and UNTOLD in (order.offset, known.offset):
        return order.epoch >= known.epoch
    # A late copy of the state that was erased has the order of its tombstone.
    return order > known or (order == known and is_tombstone >= known_is_tombstone)
