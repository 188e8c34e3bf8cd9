"""What /healthz says of groups: problems that last are told, a rebalance of ordinary length is not."""

from aiokafka import TopicPartition

from headwater.kafka.membership import STABLE, Group, Member
from headwater.worker.membership import REBALANCE_S, SETTLING_S, STANDING_S, Membership, Standing

CLICKS = {"clicks": 4}
ALL = frozenset(TopicPartition("clicks", number) for number in range(4))
HALF = frozenset(TopicPartition("clicks", number) for number in range(2))


def _group(*members: Member, state: str = STABLE) -> Group:
    return Group("shop-interests", state, members)


def _worker(held: frozenset[TopicPartition], pid: int = 1) -> Member:
    return Member("", f"shop-interests-{pid}", "10.0.0.1", held)


def test_a_worker_that_holds_its_partitions_is_well() -> None:
    view = Membership(CLICKS)
    for now_s in range(0, 600, 5):
        assert view.look(_group(_worker(ALL)), ALL, [], now_s) is None


def test_a_foreign_member_is_told_at_once_and_forgotten_when_it_has_gone() -> None:
    view = Membership(CLICKS)
    group = _group(_worker(HALF), Member("", "rdkafka", "10.0.0.9", ALL - HALF))
    problem = view.look(group, HALF, [], 0.0)
    assert problem is not None
    assert "'rdkafka' at 10.0.0.9 is no Headwater worker" in problem
    assert view.look(_group(_worker(ALL)), ALL, [], 5.0) is None


def test_a_rebalance_is_told_only_when_it_does_not_end() -> None:
    view = Membership(CLICKS)
    rebalancing = _group(_worker(frozenset()), state="PreparingRebalance")
    assert view.look(rebalancing, ALL, [], 0.0) is None
    assert view.look(rebalancing, ALL, [], REBALANCE_S - 1) is None
    problem = view.look(rebalancing, ALL, [], REBALANCE_S)
    assert problem is not None
    assert "has been rebalancing" in problem


def test_two_rebalances_are_not_taken_for_one_that_does_not_end() -> None:
    view = Membership(CLICKS)
    rebalancing = _group(state="CompletingRebalance")
    assert view.look(rebalancing, (), [], 0.0) is None
    assert view.look(_group(_worker(ALL)), ALL, [], 5.0) is None
    assert view.look(rebalancing, (), [], REBALANCE_S) is None


def test_a_worker_without_partitions_is_told_once_the_group_has_settled() -> None:
    view = Membership(CLICKS)
    group = _group(_worker(ALL))
    assert view.look(group, (), [], 0.0) is None
    problem = view.look(group, (), [], SETTLING_S)
    assert problem is not None
    assert "this worker holds no partition of the group shop-interests" in problem


def test_one_worker_more_than_partitions_may_hold_none() -> None:
    view = Membership(CLICKS)
    members = [_worker(frozenset({tp}), pid) for pid, tp in enumerate(ALL)]
    group = _group(*members, _worker(frozenset(), 99))
    assert view.look(group, (), [], 0.0) is None
    assert view.look(group, (), [], 600.0) is None


def test_requests_that_stand_for_longer_than_any_may_wait_are_told() -> None:
    view = Membership(CLICKS)
    group = _group(_worker(ALL))
    looks = [view.look(group, ALL, [Standing(2, 10, 3)], float(now_s)) for now_s in range(0, 105, 5)]
    assert looks[:-2] == [None] * (len(looks) - 2)
    assert STANDING_S == 90.0  # counted from the first look that saw no movement, at 5 s
    assert looks[-1] is not None
    assert "partition 2 have not moved" in looks[-1]
    assert view.look(group, ALL, [Standing(2, 11, 2)], 110.0) is None


def test_requests_that_wait_one_after_the_other_move() -> None:
    view = Membership(CLICKS)
    for n in range(200):
        assert view.look(_group(_worker(ALL)), ALL, [Standing(2, n // 10, 3)], 5.0 * n) is None


def test_a_broker_that_describes_nothing_says_nothing_against_the_worker() -> None:
    view = Membership(CLICKS)
    assert view.look(None, (), [], 0.0) is None
    assert view.look(None, (), [], 600.0) is None
