"""How much is done to the system: `make faults` in full (FAULTS=full), `make test` in short."""

import os
from typing import Final, NamedTuple


class Scale(NamedTuple):
    kills: int
    clicks: int
    users: int
    stops: int
    rebalances: int
    broker_kills: int
    silence_s: float
    index_away_s: float
    backlog: int
    erased: int
    fuzz_s: float
    costly: int
    clicks_per_s: int


_FULL: Final = Scale(
    kills=20,
    clicks=200_000,
    users=2_000,
    stops=20,
    rebalances=20,
    broker_kills=10,
    silence_s=60.0,
    index_away_s=60.0,
    backlog=400_000,
    erased=400,
    fuzz_s=600.0,
    costly=10_000,
    clicks_per_s=1_000,
)
_SHORT: Final = Scale(
    kills=2,
    clicks=12_000,
    users=200,
    stops=2,
    rebalances=3,
    broker_kills=1,
    silence_s=35.0,
    index_away_s=3.0,
    backlog=30_000,
    erased=20,
    fuzz_s=8.0,
    costly=200,
    clicks_per_s=200,
)

IS_FULL: Final = os.environ.get("FAULTS") == "full"
SCALE: Final = _FULL if IS_FULL else _SHORT
# The whole suite takes minutes; a single test of it, too.
TIMEOUT_S: Final = 1_800
