"""Datasets by name: catalog and events in the one form that every protocol, model and baseline takes."""

from dataclasses import dataclass, field

from models.events import Log


@dataclass(frozen=True)
class Dataset:
    """Every event, user by user, at_ms strictly increasing within a user (ties move one millisecond apart).

    Items that have a text come first: texts[n] is that of item_ids[n], and the items behind them have none.
    """

    name: str
    item_ids: list[str]  # the catalog; item numbers everywhere are places in it
    texts: list[str] | None
    log: Log
    fingerprint: str  # SHA-256 over the files it came from
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows left out
    notes: list[str] = field(default_factory=list)  # what was read otherwise than it was written
