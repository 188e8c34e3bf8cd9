"""The parts of `headwater doctor`: a finding, a check, and how checks are run."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from headwater.errors import HeadwaterError
from headwater.kafka.fast_client.consumer import Consumer
from headwater.kafka.rights import Role
from headwater.kafka.topics import Topics
from headwater.settings import Settings

# One call to the broker or a worker.
TIMEOUT_S: Final = 10.0
# All of one check. Checks run at once, so `headwater doctor` takes no longer than this.
LIMIT_S: Final = 30.0


class Finding(NamedTuple):
    """One line: what was checked, whether it is well, and what was seen, with the remedy if it is not."""

    what: str
    ok: bool
    seen: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.ok else 'WRONG'}  {self.what}: {' '.join(self.seen.split())}"


@dataclass(frozen=True)
class System:
    """What checks look at. Each opens the clients that it needs, so that no check waits for another."""

    settings: Settings
    web: str | None  # host:port of a worker's HTTP server, if one is known
    roles: tuple[Role, ...] = ("interests", "catalog")  # those that this process's user is to work for

    @property
    def topics(self) -> Topics:
        """The names of the topics."""
        return Topics.named(self.settings.topic_prefix)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """An admin client for as long as the block runs. Raises KafkaError, TimeoutError."""
        admin = AIOKafkaAdminClient(**self.settings.kafka_options(), request_timeout_ms=int(TIMEOUT_S * 1000))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await admin.start()
            yield admin
        finally:
            await admin.close()

    @asynccontextmanager
    async def consumer(self) -> AsyncIterator[Consumer]:
        """A consumer without a group for as long as the block runs. Raises KafkaError, TimeoutError."""
        consumer = Consumer(**self.settings.kafka_options(), group_id=None, isolation_level="read_committed")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await consumer.start()
            yield consumer
        finally:
            await consumer.stop()


class Check(NamedTuple):
    """One thing to look at. `look` yields findings and may raise whatever it meets: that becomes a finding."""

    what: str
    look: Callable[[System], AsyncIterator[Finding]]
    needs_broker: bool = True  # left out where no broker answers


async def run(checks: Sequence[Check], system: System, limit_s: float = LIMIT_S) -> list[Finding]:
    """The findings of all checks, in their order. They run at once, each for at most ``limit_s``."""
    found = await asyncio.gather(*(_findings(check, system, limit_s) for check in checks))
    return [finding for each in found for finding in each]


async def _findings(check: Check, system: System, limit_s: float) -> list[Finding]:
    """What one check found, up to where it broke."""
    found: list[Finding] = []

    async def look() -> None:
        async for finding in check.look(system):
            found.append(finding)  # noqa: PERF401 - what was found before it breaks is kept

    started_s = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            await look()
    except HeadwaterError as error:
        found.append(Finding(check.what, False, str(error)))
    except TimeoutError:
        seen = (
            f"not done after {time.monotonic() - started_s:.0f} s: expected {limit_s:g} s at most; look at the "
            "broker's log, and try again"
        )
        found.append(Finding(check.what, False, seen))
    except (KafkaError, OSError) as error:
        seen = f"could not be looked at ({type(error).__name__}: {error}); has this user the right to do it?"
        found.append(Finding(check.what, False, seen))
    except Exception as error:  # noqa: BLE001 - the other checks go on
        seen = f"this check itself is broken ({type(error).__name__}: {error}); the others are as they say"
        found.append(Finding(check.what, False, seen))
    return found
