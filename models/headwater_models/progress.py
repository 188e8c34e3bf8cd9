"""Progress bars on the terminal, and the callable through which long work reports."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report = Callable[[str, int, int], None]  # report("encoding items", done, total)


def silent(_what: str, _done: int, _total: int) -> None:
    """A Report that tells nobody."""


class _Bars:
    """Progress bars by name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        name = what.split(",")[0]  # the text after a comma changes from call to call
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[name], description=what, completed=done, total=total)


@contextmanager
def progress() -> Iterator[Report]:
    """Bars on standard error, for the duration of the block: `report(name, done, total)` moves the bar of
    that name.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)
