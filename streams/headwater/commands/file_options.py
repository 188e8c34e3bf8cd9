"""How a file is read, as options of `headwater import`, `train` and `evaluate`."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from headwater.commands.terminal import FLAG, MANY, say

if TYPE_CHECKING:
    from headwater.files.contents import Files
    from headwater.files.events import EventForm
    from headwater.files.items import ItemForm
    from headwater.files.presets import Kind, Opened
    from headwater.files.table import BadRow, Table

_SHOWN: Final = 5

# Written out for the help, which must not import polars. A test holds them equal to the code.
TimeOption = Literal["auto", "iso", "seconds", "ms", "us", "ns", "excel"]
DecimalOption = Literal["auto", ".", ","]
PresetOption = Literal[
    "movielens",
    "amazon-reviews",
    "amazon-items",
    "retailrocket",
    "yelp",
    "lastfm",
    "shopify",
    "google-merchant",
    "segment",
    "ga4",
    "recbole",
    "woocommerce",
    "magento",
]


@Parameter(name="*")
@dataclass(frozen=True)
class FileOptions:
    """How a file is written; what is left out is detected.

    Parameters
    ----------
    map_
        FIELD=COLUMN or FIELD=COLUMN:TYPE (text, number, flag, list); repeatable. Columns named like a field need none. Nested
        values have a dot in their name: item_id=properties.product_id.
    preset
        A known format: its columns, actions and ratings. --map still overrides.
    encoding
        Encoding of the text, such as utf-16 or latin-1.
    separator
        What stands between values: a character, ::, tab or space.
    quote
        The quoting character, or none.
    columns
        Names of the columns, with commas between, for a file without a header.
    member
        Which file of a zip archive to read.
    decimal
        The decimal mark of numbers.
    time
        Unit of times that are numbers; excel: days of a spreadsheet. Text is read as ISO or another common date format.
    time_format
        Format of all times, such as '%d.%m.%Y %H:%M'.
    timezone
        Zone of times that name none, such as Europe/Berlin.
    """

    map_: Annotated[list[str], Parameter(name="--map"), MANY] = field(default_factory=list)
    preset: PresetOption | None = None
    encoding: str = "auto"
    separator: str = "auto"
    quote: str = "auto"
    columns: str | None = None
    member: str | None = None
    decimal: DecimalOption = "auto"
    time: TimeOption = "auto"
    time_format: str | None = None
    timezone: str = "UTC"

    def opened(self, given: "Files", kind: "Kind") -> "Opened":
        """The rows of files and their mapping. Prints what was found out. Raises ImportFileError."""
        from headwater.files.contents import named
        from headwater.files.delimited import Layout
        from headwater.files.fields import overlooked
        from headwater.files.presets import FIELDS, opened

        columns = tuple(name.strip() for name in self.columns.split(",")) if self.columns else ()
        layout = Layout(self.encoding, self.separator, self.quote, columns, self.member)
        found = opened(given, kind, self.map_, layout, self.preset)
        file = named(given)
        used = found.chosen.columns.values()
        unused = [name for name in found.table.columns if name not in used]
        more = f" and {len(unused) - 20} more" if len(unused) > 20 else ""
        if self.preset is None:
            more += overlooked(FIELDS[kind], found.chosen, found.table.columns)
        parts = len(found.table.parts)
        say(
            f"{file}: {found.table.rows:,} rows{f' in {parts:,} files' if parts else ''}; {found.chosen}"
            + (f"; not used: {', '.join(unused[:20])}{more}" if unused else "")
        )
        for note in found.table.notes:
            say(f"{file}: {note}")
        return found

    def item_form(self, list_separator: str = "auto") -> "ItemForm":
        """How items are written. Raises ImportFileError."""
        from headwater.files.items import ItemForm
        from headwater.files.presets import shape_of
        from headwater.files.times import TimeForm

        if list_separator == "auto" and (shape := shape_of(self.preset, "catalog")) is not None:
            list_separator = shape.list_separator
        return ItemForm(TimeForm(self.time, self.time_format, self.timezone), self.decimal, list_separator)


@Parameter(name="*")
@dataclass(frozen=True)
class EventOptions(FileOptions):
    """How a file of events is written.

    Parameters
    ----------
    action
        NAME=ACTION: what a name in the file means, such as addtocart=add_to_cart; repeatable. The action ignore leaves rows
        out; the name * stands for all others.
    like_from
        Ratings (--map rating=COLUMN) of at least this are a like.
    dislike_to
        Ratings of at most this are a dislike.
    """

    action: Annotated[list[str], MANY] = field(default_factory=list)
    like_from: float | None = None
    dislike_to: float | None = None

    def event_form(self) -> "EventForm":
        """How events are written. Raises ImportFileError."""
        from headwater.files.events import EventForm
        from headwater.files.presets import PRESETS, Preset
        from headwater.files.times import TimeForm

        usual = PRESETS[self.preset] if self.preset is not None else Preset()
        return EventForm(
            TimeForm(self.time, self.time_format, self.timezone),
            (*usual.actions, *self.action),
            usual.like_from if self.like_from is None else self.like_from,
            usual.dislike_to if self.dislike_to is None else self.dislike_to,
            self.decimal,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class ImportOptions:
    """What an import does with the rows of a file.

    Parameters
    ----------
    skip_bad
        Exit 0 although some rows could not be published.
    rejects
        A file for all bad rows as JSON lines: line, reason, row.
    dry_run
        Publish nothing, and show the first rows as they would be published.
    """

    skip_bad: Annotated[bool, FLAG] = False
    rejects: Path | None = None
    dry_run: Annotated[bool, FLAG] = False


def option_words(form: FileOptions, of: type[FileOptions]) -> list[str]:
    """The options of a file that differ from the defaults, as a command that takes those of `of` writes them."""
    words = []
    for each in fields(of):
        value = getattr(form, each.name)
        usual = each.default if each.default_factory is MISSING else each.default_factory()
        if value != usual:
            name = f"--{each.name.strip('_').replace('_', '-')}"
            words += [
                word for one in (value if isinstance(value, list) else [value]) for word in (name, str(one))
            ]
    return words


def tell_bad_rows(bad: "Sequence[BadRow]", table: "Table") -> None:
    """Say the lines of the first bad rows, each with its reason, and how many more there are."""
    for row in bad[:_SHOWN]:
        say(f"{table.place(row.line)}: {row.reason}")
    if len(bad) > _SHOWN:
        say(f"... and {len(bad) - _SHOWN:,} more")
