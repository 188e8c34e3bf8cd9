"""A batch on which our own code fails is halved until the culprit stands alone."""

from collections.abc import Callable, Sequence

import pytest

from headwater.errors import PartitionLost, StopWorker
from headwater.paths.culprit import Culprit, Done, halved

pytestmark = pytest.mark.asyncio


def failing_on(*bad: int, tried: list[Sequence[int]]) -> Callable[[Sequence[int]], object]:
    async def doubled(items: Sequence[int]) -> list[int]:
        tried.append(items)
        for item in items:
            if item in bad:
                raise ValueError(item)
        return [2 * item for item in items]

    return doubled


async def parts(items: Sequence[int], *bad: int) -> tuple[list[int], list[int], list[Sequence[int]]]:
    """Results, culprits and all that was tried."""
    results: list[int] = []
    culprits: list[int] = []
    tried: list[Sequence[int]] = []
    async for part in halved(items, failing_on(*bad, tried=tried)):  # type: ignore[arg-type]
        if isinstance(part, Culprit):
            culprits.append(part.item)
            assert part.error.args == (part.item,)
        else:
            assert part.result == [2 * item for item in part.items]
            results += part.result
    return results, culprits, tried


async def test_a_batch_without_a_culprit_is_worked_on_once() -> None:
    assert await parts([1, 2, 3]) == ([2, 4, 6], [], [[1, 2, 3]])


async def test_every_item_but_the_culprits_is_worked_on_in_order() -> None:
    results, culprits, tried = await parts([*range(10)], 3, 8)
    assert results == [2 * item for item in range(10) if item not in (3, 8)]
    assert culprits == [3, 8]
    assert len(tried) < 20


async def test_a_batch_of_culprits_leaves_each_alone() -> None:
    assert (await parts([1, 2, 3], 1, 2, 3))[:2] == ([], [1, 2, 3])


async def test_an_empty_batch_is_not_worked_on() -> None:
    assert await parts([]) == ([], [], [])


async def test_a_range_is_halved_into_ranges() -> None:
    _, culprits, tried = await parts(range(4), 2)
    assert culprits == [2]
    assert tried == [range(4), range(2), range(2, 4), range(2, 3), range(3, 4)]


async def test_a_part_is_dealt_with_before_the_next_one_is_worked_on() -> None:
    order: list[str] = []

    async def work(items: Sequence[str]) -> None:
        order.append(f"work on {''.join(items)}")
        if len(items) > 1:
            raise ValueError

    async for part in halved(["a", "b"], work):
        assert isinstance(part, Done)
        order.append(f"deal with {part.items[0]}")
    assert order == ["work on ab", "work on a", "deal with a", "work on b", "deal with b"]


@pytest.mark.parametrize("verdict", [PartitionLost, StopWorker])
async def test_what_no_item_is_to_blame_for_passes_through(verdict: type[Exception]) -> None:
    tried: list[Sequence[int]] = []

    async def work(items: Sequence[int]) -> None:
        tried.append(items)
        raise verdict

    with pytest.raises(verdict):
        async for _ in halved([1, 2], work):
            pass
    assert tried == [[1, 2]]
