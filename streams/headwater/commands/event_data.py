"""The events that training and evaluation take, as options of their commands, and their figures as tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cyclopts import Parameter

from headwater.commands.file_options import EventOptions
from headwater.commands.terminal import UsageError, say, stdout

if TYPE_CHECKING:
    from headwater_models.commands import Results
    from headwater_models.data.datasets import Dataset
    from headwater_models.judging.protocols import At


# Written out for the help, which must not import torch. A test holds it equal to the code.
ProtocolOption = Literal["leave-one-out", "global-time", "list-at-split", "prequential", "next-basket"]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions(EventOptions):
    """Which events to use, and how to split them.

    Parameters
    ----------
    data
        complete-journey, ml-100k, beauty, or a file of events as `headwater import clicks` takes it, also with prices and titles.
    path
        The folder of a built-in dataset.
    protocol
        How events are split: see models/README.md. Default: leave-one-out; for complete-journey global-time to train, and
        list-at-split to evaluate.
    at
        The split of the protocols in time: a share of the events (0.9) or a date. Default: 0.9; for complete-journey
        2017-12-01.
    """

    data: str = "complete-journey"
    path: Path | None = None
    protocol: ProtocolOption | None = None
    at: str | None = None

    def protocol_or(self, of_complete_journey: ProtocolOption) -> ProtocolOption:
        """The protocol that was asked for, else the usual one of this data."""
        usual = of_complete_journey if self.data == "complete-journey" else "leave-one-out"
        return self.protocol or usual

    def moment(self) -> "At | None":
        """The moment of the split that was asked for, None without one. Raises UsageError for what is no time."""
        from datetime import datetime

        if self.at is None:
            return None
        try:
            return float(self.at)
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(self.at)
        except ValueError:
            raise UsageError(
                f"--at is {self.at}: expected a share of the events such as 0.9, or a date"
            ) from None

    def load(self, *, lone: bool = False) -> "Dataset":
        """The data. Prints what was read differently or left out. Of files, with users of one event if `lone`.

        Raises:
            UsageError: --map for built-in data.
            HeadwaterError: the data is missing, or its file cannot be used.
        """
        from headwater_models.data.datasets import from_events, is_file, load

        if is_file(self.data) and self.path is None:
            found = from_events(self.opened(Path(self.data), "training"), self.event_form(), lone=lone)
        elif self.map_:
            raise UsageError(
                f"--map {self.map_[0]}: {self.data} is built in, so its columns are known; leave --map out"
            )
        else:
            found = load(self.data, self.path)
        for note in found.notes:
            say(f"{found.name}: {note}")
        for reason, rows in found.dropped.items():
            say(f"{found.name}: {rows:,} rows left out, {reason}")
        return found


EVENTS: Final = DataOptions()


def positive(option: str, value: int | None) -> int | None:
    """The value of a count, None where it is left out. Raises UsageError if it is not positive."""
    if value is not None and value < 1:
        raise UsageError(f"{option} is {value}: expected a whole number from 1 on")
    return value


def print_tables(results: "Results") -> int:
    """Print figures as tables; the exit code of a command that did."""
    from headwater_models.commands import tables

    for table in tables(results):
        stdout().print(table)
    return 0
