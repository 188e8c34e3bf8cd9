"""What a recipe may depend on: the statistics of events and items, and never their name."""

from dataclasses import dataclass, fields

import numpy as np

from headwater.encoder.features import ACTION_NAMES
from headwater.files.events import NO_TIMES
from headwater_models.data.datasets import Dataset

# Few texts that are told apart say as little as none.
_TELLING_TEXTS = 2
# Events that all lie within ten minutes, as where a column holds the time of the export, have no order in time.
_TELLING_SPAN_MS = 600_000


@dataclass(frozen=True)
class Statistics:
    """Sizes and shares of a data set. A share of nothing is 0."""

    events: int
    users: int
    items: int  # of the catalog
    taken: int  # items with an event
    events_per_user: float  # the mean
    longest: int  # events of the user with most
    repeats: float  # share of the events whose item the user had before
    with_text: float  # share of the items that have a text
    texts: int  # different ones
    has_times: bool  # that tell when events were
    actions: dict[str, int]  # name -> events

    @property
    def is_dense(self) -> bool:
        """Long histories over few items: there is much to learn about each item."""
        return self.events_per_user >= 50 and not self.has_many_items

    @property
    def is_sparse(self) -> bool:
        """Short histories: most items have few events, and what they share with others says most."""
        return self.events_per_user < 20

    @property
    def has_many_items(self) -> bool:
        """A softmax over the whole catalog costs more than all the rest."""
        return self.items > 10_000

    @property
    def has_costly_softmax(self) -> bool:
        """One over the whole catalog takes longer than all else, and what is drawn of it says as much."""
        return self.has_many_items or (self.items > 6_000 and self.events * self.items > 2_000_000_000)

    @property
    def has_texts(self) -> bool:
        """Texts tell most of the items apart."""
        return self.with_text >= 0.5 and self.texts >= _TELLING_TEXTS

    def __str__(self) -> str:
        shown = []
        for each in fields(self):
            value = getattr(self, each.name)
            name = each.name.replace("_", " ")
            if isinstance(value, bool):
                shown.append(f"{name}: {'yes' if value else 'no'}")
            elif isinstance(value, float):
                shown.append(f"{name}: {value:.3g}")
            elif isinstance(value, int):
                shown.append(f"{name}: {value:,}")
            else:
                shown.append(f"{name}: {', '.join(f'{kind} {count:,}' for kind, count in value.items())}")
        return "; ".join(shown)


def tells_times(data: Dataset) -> bool:
    """Whether the times of events say when they were."""
    at_ms = data.log.at_ms
    return NO_TIMES not in data.notes and len(at_ms) > 0 and int(np.ptp(at_ms)) >= _TELLING_SPAN_MS


def statistics_of(data: Dataset) -> Statistics:
    """The statistics of a data set, over all its events."""
    log, items = data.log, len(data.item_ids)
    lengths = np.diff(log.starts)
    lengths = lengths[lengths > 0]
    pairs = len(np.unique(log.owners * max(items, 1) + log.items))
    texts = [text for text in data.texts or [] if text.strip(" .")]
    codes = np.bincount(log.actions)
    by_count = sorted(np.flatnonzero(codes).tolist(), key=lambda code: -int(codes[code]))
    return Statistics(
        events=len(log.items),
        users=len(lengths),
        items=items,
        taken=len(np.unique(log.items)),
        events_per_user=float(lengths.mean()) if len(lengths) else 0.0,
        longest=int(lengths.max(initial=0)),
        repeats=1 - pairs / len(log.items) if len(log.items) else 0.0,
        with_text=len(texts) / items if items else 0.0,
        texts=len(set(texts)),
        has_times=tells_times(data),
        actions={ACTION_NAMES[code]: int(codes[code]) for code in by_count},
    )
