"""The cases that `headwater evaluate --cases` takes, as options, with the catalog and the clicks that belong to them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from headwater.commands.event_data import DataOptions
from headwater.commands.file_options import tell_bad_rows
from headwater.commands.terminal import FLAG, MANY, CommandError, UsageError, say

if TYPE_CHECKING:
    from headwater.files.items import Items
    from headwater.messages import Item
    from headwater_models.data.datasets import Dataset
    from headwater_models.judging.protocols import Split


@Parameter(name="*")
@dataclass(frozen=True)
class CaseOptions:
    """Questions of a file instead of a protocol's.

    Parameters
    ----------
    cases
        A file with a history and what came next in each row: history, target (one item or several), and if there are such
        user_id, times (of the history) and at_ms (of the question). --map and the other options of files are for this one.
    catalog
        A file of the items, as `headwater import catalog` takes it; rankings are over all of them. With --cases, or with a file of
        events: then the data is that of `headwater train shop`.
    catalog_map
        FIELD=COLUMN of the catalog; repeatable.
    clicks
        A file of the events that were trained on, as `headwater import clicks` takes it: popularity is theirs, and targets
        without any of them are told apart as cold. With --cases.
    clicks_map
        FIELD=COLUMN of the clicks; repeatable.
    exclude_seen
        Leave the items of a history out of its ranking. With --cases.
    skip_bad
        Leave out rows that are no cases, instead of ending.
    rejects
        A file for all rows that are no cases, as JSON lines: line, reason, row.
    """

    cases: Path | None = None
    catalog: Path | None = None
    catalog_map: Annotated[list[str], MANY] = field(default_factory=list)
    clicks: Path | None = None
    clicks_map: Annotated[list[str], MANY] = field(default_factory=list)
    exclude_seen: Annotated[bool, FLAG] = False
    skip_bad: Annotated[bool, FLAG] = False
    rejects: Path | None = None

    def check(self, events: DataOptions) -> None:
        """Raises UsageError for options that do not go together."""
        if self.cases is not None:
            given = {"--protocol": events.protocol, "--at": events.at, "--path": events.path}
            if wrong := next((option for option, value in given.items() if value is not None), None):
                raise UsageError(f"--cases has its own questions: leave {wrong} out")
            return
        needs_cases: dict[str, object] = {
            "--catalog": self.catalog,
            "--catalog-map": self.catalog_map,
            "--clicks": self.clicks,
            "--clicks-map": self.clicks_map,
            "--exclude-seen": self.exclude_seen,
            "--skip-bad": self.skip_bad,
            "--rejects": self.rejects,
        }
        from headwater_models.data.datasets import is_file

        if is_file(events.data) and events.path is None:
            del needs_cases["--catalog"]
            if self.catalog is not None:
                del needs_cases["--catalog-map"]
        if wrong := next((option for option, value in needs_cases.items() if value), None):
            raise UsageError(f"{wrong} goes with a file of cases: expected --cases FILE with it")

    def shop(self, events: DataOptions) -> "Dataset":
        """The catalog and a file of events, as `headwater train shop` reads them. Prints what was left out.

        Raises:
            HeadwaterError: a file cannot be used.
        """
        from headwater_models.data.datasets import read_events
        from headwater_models.data.shop import shop_of

        assert self.catalog is not None
        clicks = Path(events.data)
        found = read_events(events.opened(clicks, "training"), events.event_form())
        data, said = shop_of(self._read_items(), found, (self.catalog, clicks))
        for line in said:
            say(line)
        return data

    def load(self, events: DataOptions, sample: int | None, seed: int) -> "tuple[Dataset, Split]":
        """The data of the cases and their questions. Prints what was read differently or left out.

        Raises:
            CommandError: rows are no cases, and are not to be left out.
            HeadwaterError: a file cannot be used.
        """
        from headwater.files.cases import cases_of
        from headwater.files.times import TimeForm
        from headwater_models.judging.cases import asked_of

        assert self.cases is not None
        opened = events.opened(self.cases, "cases")
        found = cases_of(
            opened.table, opened.chosen, TimeForm(events.time, events.time_format, events.timezone)
        )
        for note in found.notes:
            say(f"{self.cases}: {note}")
        tell_bad_rows(found.bad, opened.table)
        if self.rejects is not None:
            from headwater.commands.import_files import write_rejects

            write_rejects(self.rejects, opened.table, found.bad)
            say(f"{self.rejects}: {len(found.bad):,} bad rows with their reasons")
        if found.bad and not self.skip_bad:
            raise CommandError(
                f"{len(found.bad):,} of {opened.table.rows:,} rows of {self.cases} are no cases: correct them "
                "(--rejects FILE has them all), or leave them out with --skip-bad"
            )
        clicks = self._clicks() if self.clicks is not None else None
        if clicks is None:
            say(
                f"{self.cases}: popularity is that of the histories; --clicks FILE names the events that were trained on"
            )
        data, asked = asked_of(
            self.cases,
            found.rows,
            self._items(),
            clicks,
            mask_seen=self.exclude_seen,
            sample=sample,
            seed=seed,
        )
        say(f"{data.name}: {len(asked.test):,} cases, ranked over {len(data.item_ids):,} items")
        return data, asked

    def _items(self) -> "list[Item]":
        if self.catalog is None:
            return []
        return list({row.item.item_id: row.item for row in self._read_items().rows}.values())

    def _read_items(self) -> "Items":
        from headwater.files.items import items_of

        assert self.catalog is not None
        form = DataOptions(map_=self.catalog_map)
        opened = form.opened(self.catalog, "catalog")
        found = items_of(opened.table, opened.chosen, form.item_form())
        for note in found.notes:
            say(f"{self.catalog}: {note}")
        tell_bad_rows(found.bad, opened.table)
        if found.bad:
            say(f"{self.catalog}: {len(found.bad):,} rows are no items, and have no text here")
        return found

    def _clicks(self) -> "Dataset":
        assert self.clicks is not None
        return DataOptions(map_=self.clicks_map, data=str(self.clicks)).load(lone=True)


CASES: Final = CaseOptions()
