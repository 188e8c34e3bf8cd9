"""A batch on which our own code fails is halved until the record at fault stands alone; all others go on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from headwater.errors import PartitionLost, StopWorker

T = TypeVar("T")
R = TypeVar("R")


class Done(NamedTuple, Generic[T, R]):
    """A part of the batch that the work succeeded on, and what it returned."""

    items: Sequence[T]
    result: R


class Culprit(NamedTuple, Generic[T]):
    """An item that the work fails on even alone, and how."""

    item: T
    error: Exception


async def halved(
    items: Sequence[T], work: Callable[[Sequence[T]], Awaitable[R]]
) -> AsyncIterator[Done[T, R] | Culprit[T]]:
    """Work on all items at once; where that fails, on each half, and so on. Parts come in the order of the items.

    A part is worked on when the caller asks for it, so what the caller does with one part happens before the next. Nothing
    comes of no items.

    Args:
        items: anything that can be sliced, a ``range`` of places for instance.

    Raises:
        PartitionLost, StopWorker: from ``work``; no item is at fault.
    """
    if not items:
        return
    parts = [items]
    while parts:
        part = parts.pop()
        try:
            result = await work(part)
        except (PartitionLost, StopWorker):
            raise
        except Exception as error:  # noqa: BLE001  the caller gets it, with the item at fault
            if len(part) == 1:
                yield Culprit(part[0], error)
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
        else:
            yield Done(part, result)
