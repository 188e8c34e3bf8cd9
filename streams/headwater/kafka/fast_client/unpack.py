"""Unpacking the records of a compressed batch, never into more memory than a bound.

A broker bounds a batch as it is packed. 97 kB of gzip or zstd may hold hundreds of megabytes.
"""

import mmap
import zlib
from struct import Struct
from typing import Final

import cramjam

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4

# Sixteen times Kafka's default bound of a packed batch. Clicks pack to a fifth or a tenth of their size.
MAX_UNPACKED_BYTES: Final = 16 * 1024 * 1024
# Where an operator allows larger batches, they may unpack to this many times their size.
_MAX_RATIO: Final = 8
# What nearly all small batches unpack to at most.
_SMALL_BYTES: Final = 64 * 1024
_USUAL_BYTES: Final = 16 * 1024
_USUAL_RATIO: Final = 12

# xerial's framing of snappy: this head, then blocks with their lengths. Java writes it.
_XERIAL_HEAD: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
_BLOCK: Final = Struct(">i")


class TooLargeUnpacked(ValueError):
    """The records of a batch unpack to more than is allowed."""

    def __init__(self, packed: int, limit: int) -> None:
        super().__init__(f"got {packed} bytes that unpack to more than {limit}: expected at most that")


def unpacked(codec: int, packed: memoryview, head: bytes = b"") -> bytes | memoryview:
    """``head``, and behind it the bytes that ``packed`` stands for; ``codec`` is Kafka's number.

    Raises:
        TooLargeUnpacked: these are more than 16 MiB and more than eight times the packed ones.
        ValueError: an unknown codec, or bytes that are not of this codec.
    """
    limit = max(MAX_UNPACKED_BYTES, _MAX_RATIO * len(packed))
    if codec == GZIP:
        return head + _gzip(packed, limit)
    if codec == SNAPPY:
        return head + _snappy(packed, limit)
    if codec not in (LZ4, ZSTD):
        raise ValueError(f"got codec {codec}: expected 0 to 4")
    # Mapped memory costs a page fault for every 4 kB, and clearing 16 MiB for each batch would take milliseconds.
    found = None
    if len(packed) <= _SMALL_BYTES:
        usual = _USUAL_BYTES + _USUAL_RATIO * len(packed)
        found = _unpacked_into(bytearray(len(head) + usual), codec, packed, head)
    if found is None:
        found = _unpacked_into(mmap.mmap(-1, len(head) + limit), codec, packed, head)
    if found is None:
        raise TooLargeUnpacked(len(packed), limit)
    return found


def _unpacked_into(
    room: bytearray | mmap.mmap, codec: int, packed: memoryview, head: bytes
) -> memoryview | None:
    """The head and the unpacked bytes, in ``room``; None where it is too small. Raises ValueError."""
    room[: len(head)] = head
    try:
        algorithm = cramjam.lz4 if codec == LZ4 else cramjam.zstd
        written = algorithm.decompress_into(packed, memoryview(room)[len(head) :])
    except cramjam.DecompressionError as error:
        if "whole buffer" in str(error):
            return None
        raise ValueError(str(error)) from None
    return memoryview(room)[: len(head) + written]


def _gzip(packed: memoryview, limit: int) -> bytes:
    parts: list[bytes] = []
    left, rest = limit, bytes(packed)
    try:
        while rest:
            member = zlib.decompressobj(wbits=31)
            parts.append(member.decompress(rest, left + 1))
            left -= len(parts[-1])
            if left < 0:
                raise TooLargeUnpacked(len(packed), limit)
            if not member.eof:
                raise ValueError("got gzip that ends too early: expected its end")
            rest = member.unused_data.lstrip(b"\x00")
    except zlib.error as error:
        raise ValueError(str(error)) from None
    return b"".join(parts)


def _snappy(packed: memoryview, limit: int) -> bytes:
    blocks = [packed]
    if bytes(packed[: len(_XERIAL_HEAD)]) == _XERIAL_HEAD and len(packed) > _XERIAL_HEAD_BYTES:
        blocks, at = [], _XERIAL_HEAD_BYTES
        while at < len(packed):
            if len(packed) - at < _BLOCK.size:
                raise ValueError("got snappy that ends in the middle of a length: expected its end")
            (size,) = _BLOCK.unpack_from(packed, at)
            at += _BLOCK.size
            if not 0 <= size <= len(packed) - at:
                raise ValueError(f"got a block of {size} bytes: expected at most {len(packed) - at}")
            blocks.append(packed[at : at + size])
            at += size
    try:
        # A block says how much it unpacks to, and is not unpacked to more.
        if sum(cramjam.snappy.decompress_raw_len(block) for block in blocks) > limit:
            raise TooLargeUnpacked(len(packed), limit)
        return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)
    except cramjam.DecompressionError as error:
        raise ValueError(str(error)) from None
