"""Whether a worker's consumer groups give it its partitions, as the broker sees them.

A worker that keeps up with the partitions it holds may still serve nobody: a foreign consumer in its group takes
partitions and does nothing with them, a rebalance never ends, or its requests stand. `problem` says so in a sentence,
for /healthz. Rebalances of ordinary length are no problem.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import structlog
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from headwater.kafka.membership import STABLE, Group, complaints, describe
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# A look is two small requests for each group.
LOOK_S: Final = 5.0
_TIMEOUT_S: Final = 10.0
# A rebalance takes a drain of 5 s and at most one session timeout; this is three of those of the default.
REBALANCE_S: Final = 60.0
# After a rebalance the broker's description and our own assignment may differ for a moment.
SETTLING_S: Final = 15.0
# A request waits for its click for at most 60 s, and holds the commits of its partition meanwhile.
STANDING_S: Final = 90.0


class Standing(NamedTuple):
    """How far the worker is in one partition of requests."""

    partition: int
    done: int  # the offset that may be committed
    lag: int  # records behind the end, >= 0


class Membership:
    """The view of one group. `look` is pure but for what it remembers; time is passed in."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self._partitions = partitions  # count by topic
        self._since: dict[str, float] = {}  # when each suspicion began
        self._done: dict[int, int] = {}

    def look(
        self,
        group: Group | None,
        held: Collection[TopicPartition],
        requests: Iterable[Standing],
        now_s: float,
    ) -> str | None:
        """The problem at this moment, as a sentence. A suspicion becomes a problem when it has lasted.

        Args:
            group: as the broker describes it; None if it did not.
            held: the partitions that this worker's own consumer holds.
            requests: the partitions of requests among them.
            now_s: of a monotonic clock.
        """
        suspicions: dict[str, tuple[str, float]] = {}
        if group is not None:
            suspicions |= self._of_group(group, held)
        for each in requests:
            if each.lag > 0 and self._done.get(each.partition) == each.done:
                suspicions[f"requests {each.partition}"] = (
                    f"the requests of partition {each.partition} have not moved for {STANDING_S:g} s, with {each.lag} "
                    "behind: expected answers within 60 s; look at this worker's log, then restart it",
                    STANDING_S,
                )
            self._done[each.partition] = each.done
        self._since = {name: self._since.get(name, now_s) for name in suspicions}
        lasting = (
            text for name, (text, limit_s) in suspicions.items() if now_s - self._since[name] >= limit_s
        )
        return next(lasting, None)

    def _of_group(self, group: Group, held: Collection[TopicPartition]) -> dict[str, tuple[str, float]]:
        if group.state != STABLE:
            return {
                "rebalance": (
                    f"the group {group.name} has been rebalancing for {REBALANCE_S:g} s ({group.state}): expected "
                    "seconds; stop the consumer that joins it, or restart the workers",
                    REBALANCE_S,
                )
            }
        # A stable assignment is a fact: what a foreign member holds is a problem at once.
        foreign = any(member.partitions for member in group.foreign())
        found = {text: (text, 0.0 if foreign else SETTLING_S) for text in complaints(group, self._partitions)}
        if not held and len(group.members) <= max(self._partitions.values()):
            found["nothing held"] = (
                f"this worker holds no partition of the group {group.name}, which has {len(group.members)} members for "
                f"{max(self._partitions.values())} partitions: restart it, and look at the broker's log",
                SETTLING_S,
            )
        return found


class WatchedGroup(NamedTuple):
    """One group of this worker."""

    name: str
    partitions: Mapping[str, int]  # the count of each topic that it reads
    held: Callable[[], Collection[TopicPartition]]  # what this worker's consumer holds now
    requests: Callable[[], Iterable[Standing]]  # and how far it is in the requests among them


async def watch(
    settings: Settings, groups: Sequence[WatchedGroup], tell: Callable[[str | None], None]
) -> None:
    """Look at the groups every few seconds and tell the problem, or None; until it is cancelled.

    A broker that does not describe groups is no problem of the worker: then None is told.
    """
    views = [(group, Membership(group.partitions)) for group in groups]
    while True:
        admin = AIOKafkaAdminClient(**settings.kafka_options(), request_timeout_ms=int(_TIMEOUT_S * 1000))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await admin.start()
            while True:
                problems = []
                for group, view in views:
                    async with asyncio.timeout(_TIMEOUT_S):
                        seen = await describe(admin, group.name)
                    problems.append(view.look(seen, group.held(), group.requests(), time.monotonic()))
                tell(next(filter(None, problems), None))
                await asyncio.sleep(LOOK_S)
        except (KafkaError, OSError, TimeoutError, ValueError) as error:
            log.debug("groups_not_described", error=f"{type(error).__name__}: {error}")
        finally:
            await admin.close()
        for _, view in views:
            view.look(None, (), (), time.monotonic())
        tell(None)
        await asyncio.sleep(LOOK_S)
