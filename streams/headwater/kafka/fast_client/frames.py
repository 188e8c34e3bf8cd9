"""Answers of a broker, handled in the turn of the loop in which they come.

aiokafka has a task that reads them from a stream. What comes wakes it a turn of the loop later, behind all that is ready by
then: on an idle machine a tenth of a millisecond of every fetch and of every acknowledgement, beside other work much more.
"""

import logging
import struct
import weakref
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection, CloseReason

log = logging.getLogger(__name__)

_SIZE: Final = struct.Struct(">i")


def handle_at_once(connection: AIOKafkaConnection | None) -> None:
    """From now on, for as long as it is open; put off where something is on its way that may have been read in part.

    aiokafka's task stays, and sees to the end of the connection.
    """
    if connection is not None and connection._reader is not None and not connection._requests:
        at_hand = vars(connection._reader)
        if "feed_data" not in at_hand:
            at_hand["feed_data"] = _Frames(connection).feed


class _Frames:
    """Cuts what comes into answers."""

    def __init__(self, connection: AIOKafkaConnection) -> None:
        self._connection = weakref.ref(connection)  # aiokafka closes one that nobody holds
        self._reader = connection._reader
        self._coming = bytearray()

    def feed(self, data: bytes) -> None:
        coming = self._coming
        coming += data
        while len(coming) >= _SIZE.size:
            end = _SIZE.size + _SIZE.unpack_from(coming)[0]
            if len(coming) < end:
                return
            with memoryview(coming) as view:
                answer = bytes(view[_SIZE.size : end])
            del coming[:end]
            self._handle(answer)

    def _handle(self, answer: bytes) -> None:
        connection: Any = self._connection()
        if connection is None or connection._reader is not self._reader:
            return  # it has been closed
        try:
            connection._handle_frame(answer)
        except Exception as error:
            log.exception("answer_failed", extra={"host": connection.host, "port": connection.port})
            connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
