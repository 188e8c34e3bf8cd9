"""Of two records of a user the newer one rests on more clicks; epochs order only what rests on the same."""

import itertools

from headwater.profiles.order import UNTOLD, Order, supersedes


def test_the_incarnation_orders_first_then_the_offset_then_the_epoch() -> None:
    in_order = [Order(0, 9, 3), Order(1, -1, 2), Order(1, 4, 2), Order(1, 4, 5), Order(1, 5, 1)]
    for older, newer in itertools.combinations(in_order, 2):
        assert supersedes(newer, False, older, False)
        assert not supersedes(older, False, newer, False)


def test_of_equal_records_the_later_one_is_newer_unless_the_first_is_a_tombstone() -> None:
    order = Order(0, 5, 2)
    assert supersedes(order, False, order, False)
    assert supersedes(order, True, order, True)
    assert supersedes(order, True, order, False)
    assert not supersedes(order, False, order, True)


def test_where_an_offset_is_not_told_epochs_order_records_of_one_log() -> None:
    untold = Order(0, UNTOLD, 5)
    assert not supersedes(Order(0, 9, 4), False, untold, True)
    assert supersedes(Order(0, 9, 5), False, untold, True)
    assert supersedes(untold, True, Order(0, 9, 5), False)
    assert supersedes(Order(1, -1, 1), False, untold, True)
