"""The figures of the live page: what its worker did in the last seconds, from its metrics, its state and a sample of events."""

import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from headwater.metrics import LATENCY, Metrics
from headwater.paths.observer import Answered, ClickApplied, ItemIndexed, Observed

F64 = NDArray[np.float64]

# Quantiles are over this many seconds: over one second they would jump at a low load.
WINDOW_S: Final = 10
# Of one kind, in one second of the stream.
MOST_SHOWN: Final = 20
_MOST_ITEMS: Final = 10
_MOST_WAITING: Final = 4_096


class ClickToAnswer:
    """How long it takes from a click to the first answer that reflects it.

    Time in which the click is applied and nobody asks is no time of the system's, and is left out.
    """

    def __init__(self) -> None:
        self._clicks: OrderedDict[str, ClickApplied] = OrderedDict()  # the newest of each user

    def take(self, events: Iterable[Observed]) -> list[float]:
        """The times, in ms, that these events complete."""
        found = []
        for event in events:
            if isinstance(event, ClickApplied):
                self._clicks[event.user_id] = event
                self._clicks.move_to_end(event.user_id)
                if len(self._clicks) > _MOST_WAITING:
                    self._clicks.popitem(last=False)
            elif isinstance(event, Answered) and (waited := self._of(event)) is not None:
                found.append(waited)
        return found

    def _of(self, event: Answered) -> float | None:
        click = self._clicks.get(event.response.user_id)
        reflects = event.response.reflects
        if click is None or reflects is None or reflects.last_event_id != click.event_id:
            return None
        del self._clicks[event.response.user_id]
        came_ms, asked_ms = click.applied_ms - click.lag_ms, event.answered_ms - event.took_ms
        return max(event.answered_ms - came_ms - max(asked_ms - click.applied_ms, 0.0), 0.0)


class Figures:
    """Told once a second, by :meth:`second`, while somebody looks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._at_s = time.monotonic()
        self._counts = self._totals()
        self._applied = _Window(metrics.click_to_applied_seconds.counts())
        self._answers = _Window(metrics.request_seconds.counts())
        self._probes = _Window(metrics.probe_click_to_answer_seconds.counts())
        self._click_to_answer = ClickToAnswer()
        self._times: deque[list[float]] = deque(maxlen=WINDOW_S)

    def second(self, events: Sequence[Observed]) -> dict[str, Any]:
        """What happened since the last call; ``events`` are those of this time, as far as they are told."""
        now_s, counts = time.monotonic(), self._totals()
        passed_s = max(now_s - self._at_s, 1e-3)
        rates = {
            f"{name}_per_s": round((count - self._counts[name]) / passed_s, 1)
            for name, count in counts.items()
        }
        self._at_s, self._counts = now_s, counts
        self._times.append(self._click_to_answer.take(events))
        times = [each for some in self._times for each in some]
        return {
            "at_ms": time.time_ns() // 1_000_000,
            **rates,
            "click_to_applied_ms": self._applied.quantiles(self._metrics.click_to_applied_seconds.counts()),
            "answer_ms": self._answers.quantiles(self._metrics.request_seconds.counts()),
            "click_to_answer_ms": {
                "p50": round(float(np.quantile(times, 0.5)), 2) if times else None,
                "p99": round(float(np.quantile(times, 0.99)), 2) if times else None,
                "n": len(times),
            },
            "probe_ms": self._probes.quantiles(self._metrics.probe_click_to_answer_seconds.counts()),
            "probe_failures": by_label(self._metrics.probe_failures_total),
            "rungs": by_label(self._metrics.index_fallbacks_total),
            "statuses": by_label(self._metrics.requests_total),
            "dead_letters": by_label(self._metrics.dead_letters_total),
        }

    def _totals(self) -> dict[str, float]:
        metrics = self._metrics
        return {
            "clicks": sum(by_label(metrics.clicks_total).values()),
            "answers": sum(by_label(metrics.requests_total).values()),
            "items": sum(by_label(metrics.catalog_items_total).values()),
        }


class _Window:
    """The last seconds of a histogram, of which ``counts`` (buckets,) are the counts until now."""

    def __init__(self, counts: F64) -> None:
        self._counts: deque[F64] = deque([counts], maxlen=WINDOW_S + 1)

    def quantiles(self, counts: F64) -> dict[str, float | None]:
        """p50 and p99 in ms, as the buckets tell them; None where nothing was counted."""
        self._counts.append(counts)
        within = counts - self._counts[0]
        return {"p50": quantile_ms(within, 0.5), "p99": quantile_ms(within, 0.99)}


def quantile_ms(counts: F64, share: float) -> float | None:
    """The quantile of values in the buckets of `LATENCY`, (buckets,), as if they lay evenly within each; None without any.

    >>> quantile_ms(np.array([0.0, 4.0] + [0.0] * 14), 0.5)
    1.75
    """
    total = counts.sum()
    if total <= 0:
        return None
    wanted = share * total
    bucket = int(np.searchsorted(counts.cumsum(), wanted))
    lower = LATENCY[bucket - 1] if bucket > 0 else 0.0
    if bucket >= len(LATENCY):
        return LATENCY[-1] * 1000.0
    within = float((wanted - counts[:bucket].sum()) / counts[bucket])
    return round((lower + within * (LATENCY[bucket] - lower)) * 1000.0, 3)


def by_label(counter: Counter) -> dict[str, float]:
    """The values of a counter by its label; by no name where it has none."""
    return {
        "/".join(sample.labels.values()): sample.value
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def shown(events: Sequence[Observed]) -> Mapping[str, list[Any]]:
    """The newest events of each kind, as the stream shows them."""
    clicks = [each for each in events if isinstance(each, ClickApplied)][-MOST_SHOWN:]
    answers = [each for each in events if isinstance(each, Answered)][-MOST_SHOWN:]
    items = [each for each in events if isinstance(each, ItemIndexed)][-MOST_SHOWN:]
    return {
        "clicks": [
            {
                "user_id": each.user_id,
                "item_id": each.item_id,
                "action": each.action,
                "event_id": each.event_id,
                "at_ms": each.at_ms,
                "partition": each.partition,
                "offset": each.offset,
                "lag_ms": each.lag_ms,
            }
            for each in clicks
        ],
        "answers": [_answer(each) for each in answers],
        "items": [
            {
                "item_id": each.item_id,
                "title": each.title,
                "is_removed": each.is_removed,
                "lag_ms": round(each.lag_ms, 1),
            }
            for each in items
        ],
    }


def _answer(event: Answered) -> dict[str, Any]:
    response = event.response
    return {
        "request_id": response.request_id,
        "user_id": response.user_id,
        "status": response.status,
        "rung": response.rung,
        "took_ms": round(event.took_ms, 2),
        "items": [item.item_id for item in response.items[:_MOST_ITEMS]],
        "reflects": response.reflects,
    }
