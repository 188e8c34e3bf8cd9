"""The system under measurement: one broker, one set of topics, filled once and shared by all measures."""

from dataclasses import dataclass, field
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from headwater.kafka import topics
from headwater.kafka.publish import Outgoing
from headwater.kafka.topics import Topics
from headwater.messages import Item, encode
from headwater.settings import Settings
from tests.bench import dataset
from tests.bench.report import Report


@dataclass(frozen=True)
class Scale:
    """How much is fed. The full run is what is published; `--quick` is for a look."""

    items: int
    users: int
    clicks: int
    naive_clicks: int
    rounds: int
    request_s: float
    recovered: int  # users
    backlog: int  # clicks
    backlogs: int  # times
    grown_clicks: int
    patch_cycles: int


FULL = Scale(
    items=92_331,
    users=100_000,
    clicks=400_000,
    naive_clicks=30_000,
    rounds=500,
    request_s=15.0,
    recovered=1_000_000,
    backlog=400_000,
    backlogs=3,
    grown_clicks=300_000,
    patch_cycles=8,
)
QUICK = Scale(
    items=20_000,
    users=100_000,
    clicks=100_000,
    naive_clicks=8_000,
    rounds=150,
    request_s=5.0,
    recovered=100_000,
    backlog=200_000,
    backlogs=1,
    grown_clicks=80_000,
    patch_cycles=1,
)


@dataclass
class System:
    """Settings, topics and data of one run."""

    settings: Settings
    folder: Path
    scale: Scale
    report: Report
    lm_bundle: Path | None
    soak_minutes: float = 60.0
    soak_folder: Path | None = None  # None: a new one among the results
    items: list[Item] = field(default_factory=list)
    filled: bool = False  # the catalog is encoded
    clicked: bool = False  # the clicks are applied
    clicked_again: int = 0  # times, see `clicks.again`

    @property
    def topics(self) -> Topics:
        return Topics.named(self.settings.topic_prefix)

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_of(self.settings)

    def environment_of(self, settings: Settings) -> dict[str, str]:
        """What tells a worker's process to be part of this system."""
        served = {} if settings.qdrant_url is None else {"HEADWATER_QDRANT_URL": settings.qdrant_url}
        return {
            **served,
            "HEADWATER_QDRANT_GRPC_PORT": str(settings.qdrant_grpc_port),
            "HEADWATER_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "HEADWATER_TOPIC_PREFIX": settings.topic_prefix,
            "HEADWATER_DATA_DIR": str(settings.data_dir),
            "HEADWATER_PARTITIONS": str(settings.partitions),
            "HEADWATER_STATE_ON_DISK": str(settings.state_on_disk),
            # A worker is held still while its backlog is published.
            "HEADWATER_SESSION_TIMEOUT_S": "120",
            "HEADWATER_LOG_LEVEL": "warning",
        }

    async def open(self) -> None:
        self.items = dataset.items(self.scale.items)
        await self.create(self.settings)

    async def create(self, settings: Settings) -> None:
        await topics.create(settings)

    async def create_plain(self, *names: str) -> None:
        """Topics of the baselines, with as many partitions as ours."""
        admin = AIOKafkaAdminClient(**self.settings.kafka_options())
        await admin.start()
        await admin.create_topics([NewTopic(name, self.settings.partitions, 1) for name in names])
        await admin.close()

    async def publish_items(self, settings: Settings, count: int) -> None:
        """The first ``count`` items into the catalog topic."""
        records = (Outgoing(item.item_id.encode(), encode(item)) for item in self.items[:count])
        name = Topics.named(settings.topic_prefix).catalog
        await dataset.publish(settings, name, settings.catalog_partitions, records)
