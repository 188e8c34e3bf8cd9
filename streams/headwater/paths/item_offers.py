"""The merged offers of each item of an owned catalog partition, as the vectors topic has them.

Offers that come before their item wait for it on the vectors topic, as all do, in a room of a bounded size.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from headwater.index.offers import newest_ms
from headwater.index.vectors_topic import Fence, OfferRecord
from headwater.kafka.batch import Gate
from headwater.messages import OfferState

# Items of each partition that may have offers without being there: 30 MB.
_ROOM: Final = 100_000
# Items that have not come for longer lose their offers when there is no more room.
_WAITS_MS: Final = 7 * 86_400_000


class ItemOffers:
    """Belongs to one `ItemVersions`, which is asked whether an item is there."""

    def __init__(self, is_there: Callable[[str], bool]) -> None:
        self._is_there = is_there
        self.states: dict[str, OfferState] = {}
        """By item id."""
        self.waiting: dict[str, None] = {}
        """The ids among them whose item is not there, the longest waiting first."""
        self.holes: set[str] = set()
        """Items whose newest record of offers in the topic is a stale one."""
        self.gate = Gate()
        """Open once they have been read."""
        self.publishing = asyncio.Lock()
        """Held while changes or offers go to the index and the topic: an item is put with the offers that it has."""
        self.waits_for_room = False

    def put(self, item_id: str, state: OfferState | None) -> None:
        """Remember what is on the topic now."""
        if state is None:
            self.states.pop(item_id, None)
            self.waiting.pop(item_id, None)
            return
        self.states[item_id] = state
        if not self._is_there(item_id):
            self.waiting[item_id] = None

    def add_read(self, partition: int, found: OfferRecord, fence: Fence) -> None:
        """Take in a record of the vectors topic, in the order of the topic. See `sort_out`."""
        if self.gate.is_open:
            return  # they are read again with their items, and have been changed since the first time
        if not fence.admits(partition, found.epoch):
            self.holes.add(found.item_id)
            return
        self.holes.discard(found.item_id)
        if found.state is None:
            self.states.pop(found.item_id, None)
        else:
            self.states[found.item_id] = found.state

    def sort_out(self) -> None:
        """Find out which of the offers that were read have no item."""
        self.waiting = {item_id: None for item_id in self.states if not self._is_there(item_id)}

    def came(self, item_id: str) -> None:
        """The item is there now."""
        self.waiting.pop(item_id, None)

    def went(self, item_id: str) -> None:
        """The item is not there any more."""
        if item_id in self.states:
            self.waiting[item_id] = None

    def has_room_for(self, item_id: str, more: int = 0) -> bool:
        """Whether an item may have offers, with ``more`` that wait from now on."""
        is_in = item_id in self.waiting or self._is_there(item_id)
        return is_in or len(self.waiting) + more < _ROOM

    @property
    def is_full(self) -> bool:
        """Whether no further item can have offers before it is there itself."""
        return len(self.waiting) >= _ROOM

    def expired(self, now_ms: int) -> Iterator[str]:
        """The items that have not come within a week of their newest offer."""
        return (item_id for item_id in self.waiting if newest_ms(self.states[item_id]) < now_ms - _WAITS_MS)
