"""What freshness is worth: recall of what a worker would answer, if clicks reached it only after a delay.

A click after the delay is not in the log, the counters or the popular items. A user of whom nothing has arrived gets what was
popular by then, as any new user does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headwater.encoder import runtime as encoder
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.judging.comparison import usual_k
from headwater_models.judging.evaluation import Measure, encoded, freshness, question_sets
from headwater_models.judging.protocols import Scorer, Split
from headwater_models.judging.served import ANY_SOURCE, served
from headwater_models.judging.trending import Trending
from headwater_models.progress import progress

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True)
class Freshness:
    """Recall by delay: question set -> delay in ms -> recall at k."""

    data: str
    fingerprint: str
    bundle: str
    seed: int
    k: int
    questions: dict[str, int]  # targets of each set
    curves: dict[str, dict[int, Measure]]


def of_bundle(
    bundle: Path,
    data: Dataset,
    asked: Split,
    delays_ms: Sequence[int],
    *,
    k: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Freshness:
    """Ask the questions of a split at each delay.

    Raises:
        BundleError: there is no bundle.
        DatasetError: the data does not fit it, or has no times.
    """
    if asked.protocol != "prequential":
        raise DatasetError(
            f"the protocol is {asked.protocol}: delays expect prequential, in which popularity goes on"
        )
    k = k or usual_k(asked.protocol)
    items = len(data.item_ids)
    with progress() as report:
        loaded = encoder.load(bundle, threads=threads)
        catalog = encoded(loaded, data, partial(report, f"encoding items of {loaded.name}"))
        trending = Trending.of(asked, items)

        def late(delay_ms: int) -> Scorer:
            return served(loaded, catalog, k, ANY_SOURCE, trending=trending, delay_ms=delay_ms)

        sets = question_sets(asked)
        curves = {
            name: freshness(late, asked.log, cases, items, k, delays_ms, partial(report, f"delays: {name}"))
            for name, cases in sets.items()
        }
    targets = {name: len(cases.targets) for name, cases in sets.items()}
    return Freshness(data.name, data.fingerprint, loaded.name, seed, k, targets, curves)


def delays_of(text: str) -> list[int]:
    """Delays in ms, in the order of a text such as `0s,1m,1h`.

    Raises:
        DatasetError: one of them is none, or comes twice.

    >>> delays_of("0s, 1m,1.5h")
    [0, 60000, 5400000]
    """
    found = []
    for part in text.split(","):
        written = part.strip()
        number = written.rstrip("smhd")
        unit = written.removeprefix(number)
        if not number.replace(".", "", 1).isdecimal() or unit not in _UNITS_MS:
            raise DatasetError(f"--delay {text}: got {written!r}, expected delays such as 0s,1m,10m,1h,1d")
        found.append(round(float(number) * _UNITS_MS[unit]))
    if len(set(found)) < len(found):
        raise DatasetError(f"--delay {text}: expected each delay once")
    return found


def named(delay_ms: int) -> str:
    """A delay in words.

    >>> named(0), named(600_000), named(86_400_000), named(90_000)
    ('0 s', '10 min', '1 day', '90 s')
    """
    names: Mapping[str, int] = {"day": 86_400_000, "h": 3_600_000, "min": 60_000}
    for name, size in names.items():
        if delay_ms and delay_ms % size == 0:
            count = delay_ms // size
            return f"{count} {name}s" if name == "day" and count > 1 else f"{count} {name}"
    return f"{delay_ms / 1000:g} s"
