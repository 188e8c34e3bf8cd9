"""A batch's slot among the few that are worked on at a time."""

import asyncio


class ConcurrencySlot:
    """One place of a semaphore, which a batch gives back while it waits for something else.

    Taking a slot that is held, and giving back one that is not, do nothing.
    """

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places, self._is_held = places, False

    async def take(self) -> None:
        """Wait for a free place."""
        if not self._is_held:
            await self._places.acquire()
            self._is_held = True

    def give_back(self) -> None:
        """Leave the place to another batch."""
        if self._is_held:
            self._is_held = False
            self._places.release()

    def handed_over(self) -> "ConcurrencySlot":
        """A slot that holds the place instead of this one."""
        other = ConcurrencySlot(self._places)
        self._is_held, other._is_held = False, self._is_held
        return other
