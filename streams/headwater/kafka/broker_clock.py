"""The broker's time as a worker estimates it, so that a deadline does not depend on the worker's own clock.

Requests carry the time at which the broker appended them. A worker whose clock is ahead of the broker's would expire them
too early, and one whose clock is behind too late. So a small record, a *probe*, is written every ten seconds to a topic
with LogAppendTime. The broker appended it between the write and its acknowledgement, which names the moment
(Cristian 1989, "Probabilistic clock synchronization"). The middle of the two is wrong by at most half the round trip.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog
from aiokafka.errors import KafkaError

from headwater.kafka.fast_client.producer import Producer
from headwater.messages import Trend, encode

log = structlog.get_logger(__name__)

# Of probes on the trends topic. All workers share it, so that compaction keeps one. A worker of an older version reads
# the value: a trend of a partition that does not exist, with no items.
PROBE_KEY: Final = b"clock"
_PROBE: Final = encode(Trend(partition=-1, at_ms=0, half_life_s=1.0, counts=[]))
_EVERY_S: Final = 10.0
_TIMEOUT_S: Final = 5.0
# The quickest of the last minute counts: a probe that had to wait says little.
_KEPT: Final = 6
# A deadline of two seconds loses a quarter of its time.
TOLERATED_SKEW_S: Final = 0.5
_LOG_APPEND_TIME: Final = 1


# The broker's time is in whole milliseconds, and a monotonic clock runs by up to a few of them otherwise in a minute.
_ROUNDED_S: Final = 0.005


class _Probe(NamedTuple):
    round_trip_s: float
    ahead_s: float  # the broker's time minus our monotonic clock

    def contradicts(self, other: "_Probe") -> bool:
        """Whether no time is possible by both: one of the clocks was set, or ours stood still during a suspend."""
        apart_s = abs(self.ahead_s - other.ahead_s)
        return apart_s > (self.round_trip_s + other.round_trip_s) / 2.0 + _ROUNDED_S


class BrokerClock:
    """The broker's time; this machine's own until a probe has been acknowledged with a time of the broker.

    Args:
        topic: takes the probes; without LogAppendTime nothing is measured.
        clock: this machine's time in seconds since 1970.
        monotonic: carries the estimate on between probes, since a wall clock may be set.
    """

    def __init__(
        self,
        producer: Producer,
        topic: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._producer, self._topic = producer, topic
        self._clock, self._monotonic = clock, monotonic
        self._probes: deque[_Probe] = deque(maxlen=_KEPT)
        self._is_skew_told = False

    def now_s(self) -> float:
        """The time in seconds since 1970."""
        if not self._probes:
            return self._clock()
        return self._monotonic() + min(self._probes).ahead_s

    @property
    def skew_s(self) -> float | None:
        """By how much this machine's clock is ahead of the broker's; None while that is not known."""
        return self._clock() - self.now_s() if self._probes else None

    async def run(self) -> None:
        """Measure every ten seconds, forever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.measure()

    async def measure(self) -> None:
        """Write one probe. A broker that does not take it in time leaves the estimate as it is."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                sent_s = self._monotonic()
                future = await self._producer.send(self._topic, _PROBE, key=PROBE_KEY, partition=0)
                acknowledged = await future
        except (KafkaError, TimeoutError) as error:
            log.debug("clock_not_measured", error=type(error).__name__)
            return
        round_trip_s = self._monotonic() - sent_s
        if acknowledged.timestamp_type != _LOG_APPEND_TIME:
            return
        # The broker's time is in whole milliseconds, rounded down.
        broker_s = (acknowledged.timestamp + 0.5) / 1000.0
        probe = _Probe(round_trip_s, broker_s - (sent_s + round_trip_s / 2.0))
        if self._probes and probe.contradicts(min(self._probes)):
            self._probes.clear()
        self._probes.append(probe)
        self._tell()

    def _tell(self) -> None:
        skew_s = self.skew_s or 0.0
        is_skewed = abs(skew_s) > TOLERATED_SKEW_S
        if is_skewed and not self._is_skew_told:
            log.warning("clock_skewed", ahead_of_broker_s=round(skew_s, 3))
        self._is_skew_told = is_skewed
