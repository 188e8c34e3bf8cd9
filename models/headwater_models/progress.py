"""Progress on the terminal, with the time that is left, and the callable through which long work reports."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[str, int, int], None]  # report("encoding items", done, total)

# Without a terminal, as under nohup or in a log of a build: a line for each stage, and one of each half minute in it.
_EVERY_S: Final = 30.0
_QUICK_S: Final = 5.0  # the end of a shorter stage is told by the begin of the next
# Steps may be epochs of many minutes: the speed is that of the last day.
_SPEED_OF_S: Final = 86_400.0


def silent(_what: str, _done: int, _total: int) -> None:
    """A Report that tells nobody."""


class _Bars:
    """Progress bars by name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        name = _name(what)
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(what, total=total)
        elif done < self._progress.tasks[self._tasks[name]].completed:  # the next training, at its own speed
            self._progress.reset(self._tasks[name])
        self._progress.update(self._tasks[name], description=what, completed=done, total=total)


class _Stage(NamedTuple):
    since_s: float
    done_at_start: int
    done: int
    told_s: float
    is_first: bool = True  # of the trainings, or whatever else begins again under this name


class Lines:
    """Progress as lines: when work begins, while it lasts, and when it is done.

    Args:
        write: takes a line.
        clock: seconds, never going back.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._stages: dict[str, _Stage] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """A Report."""
        name, now_s = _name(what), self._clock()
        stage = self._stages.get(name)
        if stage is None:
            self._write(f"{what}: {done:,} of {total:,}")
            stage = _Stage(now_s, done, done, now_s)
        elif done < stage.done:  # begun again, as the next training is
            stage = _Stage(now_s, done, done, stage.told_s, is_first=False)
        elif done > stage.done:
            passed_s = now_s - stage.since_s
            is_over = stage.is_first and done >= total and passed_s >= _QUICK_S
            if is_over or now_s - stage.told_s >= _EVERY_S:
                left_s = passed_s * (total - done) / (done - stage.done_at_start)
                self._write(
                    f"{what}: {done:,} of {total:,}, {_clock(passed_s)} so far, {_clock(left_s)} left"
                )
                stage = stage._replace(told_s=now_s)
        self._stages[name] = stage._replace(done=done)


@contextmanager
def progress() -> Iterator[Report]:
    """Progress on standard error, for the duration of the block: bars on a terminal, each moved by the reports of its name,
    and lines elsewhere.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=_SPEED_OF_S) as bars:
        yield _Bars(bars)


def _name(what: str) -> str:
    """The name of a stage: what follows a comma changes from call to call."""
    return what.split(",")[0]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
