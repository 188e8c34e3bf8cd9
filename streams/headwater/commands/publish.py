"""`headwater import catalog` and `import clicks`: publish the rows of a file."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from headwater.commands.terminal import (
    FLAG,
    MANY,
    CommandError,
    TimeOption,
    run_async,
    running_settings,
    say,
    stderr,
)

if TYPE_CHECKING:
    from headwater.commands.import_files import Kind
    from headwater_models.data.tabular_files import TimeUnit


def catalog(
    file: Path,
    *,
    map_: Annotated[list[str], Parameter(name="--map"), MANY] = [],  # noqa: B006 - cyclopts never changes it
    skip_bad: Annotated[bool, FLAG] = False,
) -> int:
    """Publish a file of items.

    Example: headwater import catalog items.csv --map item_id=sku --map attributes.colour=color

    Parameters
    ----------
    file
        CSV, Parquet or JSON lines.
    map_
        FIELD=COLUMN; repeatable. Columns named like a field need none. Tags split on |.
    skip_bad
        Exit 0 although some rows could not be published.
    """
    return _import("catalog", file, map_, "auto", skip_bad)


def clicks(
    file: Path,
    *,
    map_: Annotated[list[str], Parameter(name="--map"), MANY] = [],  # noqa: B006 - cyclopts never changes it
    time: TimeOption = "auto",
    skip_bad: Annotated[bool, FLAG] = False,
) -> int:
    """Publish a file of events.

    Example: headwater import clicks events.parquet --map user_id=customer --map at_ms=timestamp

    Parameters
    ----------
    file
        CSV, Parquet or JSON lines.
    map_
        FIELD=COLUMN; repeatable. Columns named like a field need none.
    time
        What the times are: ISO text (without a zone: UTC), or numbers of seconds or milliseconds.
    skip_bad
        Exit 0 although some rows could not be published.
    """
    return _import("clicks", file, map_, time, skip_bad)


def _import(kind: "Kind", file: Path, maps: list[str], unit: "TimeUnit", skip_bad: bool) -> int:
    settings = running_settings()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from headwater.commands import import_files
    from headwater_models.data import tabular_files

    table = tabular_files.read(file)
    columns = import_files.mapping(kind, table.columns, maps)
    unused = [name for name in table.columns if name not in columns.values()]
    say(
        f"{file}: {len(table):,} rows; {', '.join(f'{name}={column}' for name, column in columns.items())}"
        + (f"; not used: {', '.join(unused)}" if unused else "")
    )
    if kind == "clicks":
        prepared = import_files.prepared_clicks(table, columns, now_ms=int(time.time() * 1000), unit=unit)
    else:
        prepared = import_files.prepared_items(table, columns, unit=unit)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr(),
    )
    with bar:
        task = bar.add_task(f"publishing {kind}", total=len(prepared.rows))
        report = run_async(
            import_files.publish(settings, kind, prepared, lambda done: bar.update(task, completed=done))
        )
    for bad in report.first_bad:
        print(f"row {bad.number}: {bad.reason}", file=sys.stderr)
    if report.bad > len(report.first_bad):
        print(f"... and {report.bad - len(report.first_bad):,} more", file=sys.stderr)
    rate = report.published / report.seconds if report.seconds else 0.0
    print(f"published {report.published:,} of {report.rows:,} rows in {report.seconds:.1f} s ({rate:,.0f}/s)")
    if report.bad and not skip_bad:
        raise CommandError(
            f"{report.bad:,} rows of {file} were not published: correct them, or accept it with --skip-bad"
        )
    return 0
