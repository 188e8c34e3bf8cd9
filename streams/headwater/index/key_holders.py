"""Which item has each key, over the whole catalog: keys have 64 bits, so two ids with one key can be computed.

A catalog worker sees its own partitions only, and the two may be in different ones. Where a shared index holds all items it
tells; elsewhere the keys of the vectors topic are read.
"""

from collections.abc import Sequence
from typing import Final

from aiokafka import ConsumerRecord

from headwater.encoder.features import item_keys

# Claims and offers have keys that begin so, and ids do not: no byte of UTF-8 is 0xff.
_NO_ITEM: Final = b"\xff"


class KeyHolders:
    """Follows the vectors topic. Some 200 bytes an item."""

    def __init__(self) -> None:
        self.ids: dict[int, str] = {}
        """The live item that has each key; of two, the one that came first."""

    def put(self, records: Sequence[ConsumerRecord]) -> None:
        """Take in records of one partition, in their order."""
        named = [record for record in records if record.key and not record.key.startswith(_NO_ITEM)]
        keys = item_keys(record.key for record in named).tolist()
        for key, record in zip(keys, named, strict=True):
            item_id = record.key.decode(errors="replace")
            if record.value is not None:
                self.ids.setdefault(key, item_id)
            elif self.ids.get(key) == item_id:
                del self.ids[key]
