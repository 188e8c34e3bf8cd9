"""`headwater import catalog`, `import clicks` and `import offers`: publish the rows of a file."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from headwater.commands.file_options import EventOptions, FileOptions, ImportOptions, tell_bad_rows
from headwater.commands.terminal import (
    FILES,
    FLAG,
    CommandError,
    print_json,
    run_async,
    running_settings,
    say,
    stderr,
    tell,
)

if TYPE_CHECKING:
    from headwater.commands.import_files import Prepared, Report
    from headwater.files.items import Items
    from headwater.files.presets import Opened
    from headwater.files.values import Type
    from headwater.settings import Settings

_FILE: Final = FileOptions()
_EVENTS: Final = EventOptions()
_IMPORT: Final = ImportOptions()
_SHOWN: Final = 5
_SHOWN_TYPES: Final = 40
# What a record of an item holds, and what it empties where a file does not have it.
_REPLACED: Final = ("title", "description", "tags", "category", "price", "image", "attributes")


def catalog(
    file: Annotated[list[Path], FILES],
    *,
    form: FileOptions = _FILE,
    list_separator: str = "auto",
    full: Annotated[bool, FLAG] = False,
    how: ImportOptions = _IMPORT,
) -> int:
    """Publish a file of items. Each row replaces its item.

    Example: headwater import catalog items.csv --map item_id=sku --map attributes.colour=color

    Parameters
    ----------
    file
        CSV or other separated values, Parquet, JSON lines, a JSON array or XML; also packed (gzip, zstd, zip). Several files,
        a folder or a pattern such as 'days/*.csv' are read as one table.
    form
        How the file is written.
    list_separator
        What stands between tags.
    full
        The file is the whole catalog: also delete the items that it no longer has.
    how
        What is done with the rows.
    """
    settings = running_settings()
    from headwater.commands import import_files
    from headwater.files.contents import named
    from headwater.files.items import items_of

    opened = form.opened(file, "catalog")
    items = items_of(opened.table, opened.chosen, form.item_form(list_separator))
    name = named(file)
    _say_types(name, items.types)
    emptied = [
        name
        for name in _REPLACED
        if not any(f"{field}.".startswith(f"{name}.") for field in opened.chosen.columns)
    ]
    if emptied:
        say(
            f"{name}: each row replaces its item, so what the file does not have is emptied: {', '.join(emptied)}; to change "
            "price, availability or attributes alone, use `headwater import offers`"
        )
    prepared = import_files.prepared_items(items, settings.bundle_path)
    deleted: list[str] = []
    if full and len(prepared):
        deleted = _gone(settings, name, items, "would be" if how.dry_run else "are")
    return _import(settings, prepared, name, opened, deleted, how)


def clicks(
    file: Annotated[list[Path], FILES],
    *,
    form: EventOptions = _EVENTS,
    how: ImportOptions = _IMPORT,
) -> int:
    """Publish a file of events. A second import of the same rows, in any order, changes nothing.

    Example: headwater import clicks events.parquet --map user_id=customer --map at_ms=timestamp

    Parameters
    ----------
    file
        CSV or other separated values, Parquet, JSON lines, a JSON array or XML; also packed (gzip, zstd, zip). Several files,
        a folder or a pattern such as 'days/*.csv' are read as one table.
    form
        How the file is written.
    how
        What is done with the rows.
    """
    settings = running_settings()
    from headwater.commands import import_files
    from headwater.files.contents import named
    from headwater.files.events import events_of

    opened = form.opened(file, "clicks")
    events = events_of(opened.table, opened.chosen, form.event_form(), now_ms=int(time.time() * 1000))
    prepared = import_files.prepared_clicks(events)
    return _import(settings, prepared, named(file), opened, (), how)


def offers(
    file: Annotated[list[Path], FILES],
    *,
    form: FileOptions = _FILE,
    how: ImportOptions = _IMPORT,
) -> int:
    """Publish a file of prices, availability and attributes. The rest of each item stays, its text too.

    Example: headwater import offers prices.csv --map item_id=sku --map available=stock

    Parameters
    ----------
    file
        CSV or other separated values, Parquet, JSON lines, a JSON array or XML; also packed (gzip, zstd, zip). Several files,
        a folder or a pattern such as 'days/*.csv' are read as one table.
    form
        How the file is written. A time of each row (--map at_ms=COLUMN) keeps older offers from newer ones.
    how
        What is done with the rows.
    """
    settings = running_settings()
    from headwater.commands import import_files
    from headwater.files.contents import named
    from headwater.files.offers import offers_of

    opened = form.opened(file, "offers")
    found = offers_of(opened.table, opened.chosen, form.item_form(), now_ms=int(time.time() * 1000))
    _say_types(named(file), found.types)
    prepared = import_files.prepared_offers(found)
    return _import(settings, prepared, named(file), opened, (), how)


def _say_types(file: str, types: "dict[str, Type]") -> None:
    if types:
        kinds = ", ".join(f"{name} is {kind}" for name, kind in list(types.items())[:_SHOWN_TYPES])
        more = f" and {len(types) - _SHOWN_TYPES} more" if len(types) > _SHOWN_TYPES else ""
        say(f"{file}: {kinds}{more}; name types with --map FIELD=COLUMN:TYPE")


def _gone(settings: "Settings", file: str, items: "Items", will: str) -> list[str]:
    """The ids of the items that a full import deletes."""
    from headwater.commands import import_files

    if items.nameless:
        raise CommandError(
            f"--full: {items.nameless:,} rows of {file} have no id that can be read, so their items might be deleted: "
            "correct these rows, or import without --full"
        )
    found = run_async(import_files.gone(settings, items.named.union(row.item.item_id for row in items.rows)))
    shown = f", such as {', '.join(found[:_SHOWN])}" if found else ""
    say(f"{file}: {len(found):,} items of the catalog are not in it and {will} deleted{shown}")
    return found


def _import(
    settings: "Settings",
    prepared: "Prepared",
    file: str,
    opened: "Opened",
    deleted: Sequence[str],
    how: ImportOptions,
) -> int:
    from headwater.commands import import_files

    for note in prepared.notes:
        say(f"{file}: {note}")
    bad = list(prepared.bad)
    if how.rejects is not None:
        # Before anything is published: what is then refused must have a place.
        import_files.check_rejects(how.rejects, opened.table)
    if how.dry_run:
        prepared = run_async(import_files.without_too_large(settings, prepared, say))
        bad = list(prepared.bad)
        for message in import_files.messages(prepared, _SHOWN):
            print_json(message)
        done = f"would publish {len(prepared):,} of {opened.table.rows:,} rows"
    else:
        report = _published(settings, prepared, deleted)
        bad = sorted(bad + report.bad)
        rate = report.published / report.seconds if report.seconds else 0.0
        done = f"published {report.published:,} of {opened.table.rows:,} rows in {report.seconds:.1f} s ({rate:,.0f}/s)"
    tell_bad_rows(bad, opened.table)
    if how.rejects is not None:
        import_files.write_rejects(how.rejects, opened.table, bad)
        say(f"{how.rejects}: {len(bad):,} bad rows with their reasons")
    if not opened.table.rows:
        one = {"clicks": "event", "catalog": "item", "offers": "offer"}[prepared.kind]
        raise CommandError(f"{file} has columns but no rows: expected a row for each {one}")
    if not len(prepared):
        raise CommandError(f"no row of {file} can be published: correct the file or --map")
    tell(done)
    if bad and not how.skip_bad:
        verb = "would not be" if how.dry_run else "were not"
        raise CommandError(
            f"{len(bad):,} rows of {file} {verb} published: correct them (--rejects FILE has them all), or accept it with "
            "--skip-bad"
        )
    return 0


def _published(settings: "Settings", prepared: "Prepared", deleted: Sequence[str]) -> "Report":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from headwater.commands import import_files

    if not len(prepared):
        return import_files.Report()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr(),
    )
    with bar:
        task = bar.add_task("publishing", total=len(prepared))

        def done(count: int) -> None:
            bar.update(task, completed=count)

        return run_async(import_files.publish(settings, prepared, done, deleted=deleted))
