"""Which partition a key belongs to: Kafka's default partitioner, one key at a time or hundreds at once."""

from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Final

from aiokafka.partitioner import murmur2

from headwater.messages import PROBE_PREFIX

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Kafka's variant of MurmurHash2.
_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key among ``partitions``."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


@cache
def probe_user(partition: int, partitions: int) -> bytes:
    """The id, as UTF-8, of the user that probes a clicks partition, one of ``partitions``: the first one that lies there.

    Workers of one system agree on it, so that every owner of the partition keeps this user out of its figures.
    """
    ids = (f"{PROBE_PREFIX}{partition}/{number}".encode() for number in count())
    home = partition % partitions  # so that the search ends for a partition that there is not, too
    return next(each for each in ids if partition_of(each, partitions) == home)


def partitions_of(keys: Sequence[bytes], partitions: int) -> list[int]:
    """:func:`partition_of` each key; for hundreds of keys in a tenth of the time."""
    import numpy as np  # not above: the client needs one partition at a time and has no numpy

    if not keys:
        return []
    u32 = np.uint32
    m = u32(_M)
    sizes = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    whole, odd = sizes // 4, sizes % 4
    width = int(whole.max()) + 1  # with a word for the bytes left over, padded with zeros
    text = b"".join(key.ljust(4 * width, b"\0") for key in keys)
    words = np.frombuffer(text, dtype="<u4").reshape(len(keys), width)
    h: NDArray[np.uint32] = u32(_SEED) ^ sizes.astype(u32)
    for place in range(width - 1):
        k = words[:, place] * m
        k = (k ^ k >> u32(24)) * m
        h = np.where(place < whole, h * m ^ k, h)
    left_over = words[np.arange(len(keys)), whole]
    h = np.where(odd > 0, (h ^ left_over) * m, h)
    h = (h ^ h >> u32(13)) * m
    h ^= h >> u32(15)
    found: list[int] = ((h & u32(0x7FFFFFFF)) % u32(partitions)).tolist()
    return found
