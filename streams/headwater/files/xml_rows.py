"""XML as rows: the items of an RSS or Atom feed, or the elements that repeat. Entities of a document's own are refused.

    <item><g:id>7</g:id><g:shipping><g:price>1 EUR</g:price></g:shipping><param name="Size">M</param></item>

is ``{"id": "7", "shipping": {"price": "1 EUR"}, "param.Size": "M"}``.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from xml.parsers import expat

from headwater.files.contents import ImportFileError
from headwater.files.json_rows import Flatten, Object, Rows, flattened

# A row has one of these names, or is not alone.
_ROWS: Final = ("item", "entry", "product", "offer", "shopitem", "row", "record")
# Where a feed has a title of its own and one of Google's, Google's holds.
_GOOGLE: Final = "http://base.google.com/ns/1.0"
_BETWEEN: Final = " "  # a namespace and a name
_MAX_DEPTH: Final = 64
# What many shops forget to escape: ampersands, and control characters, which XML has none of.
_UNESCAPED: Final = re.compile(rb"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_OTHER_ENCODING: Final = re.compile(rb"""encoding\s*=\s*["'](?!utf-?8)""", re.IGNORECASE)
# What stands for a byte that is no UTF-8, and the letter that it is in windows-1252.
_WESTERN: Final = {
    0xDC00 + byte: bytes([byte]).decode("windows-1252", "replace") for byte in range(0x80, 0x100)
}
_START: Final = re.compile(rb"(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?\s*<([?!A-Za-z_])")


class Document(NamedTuple):
    """The rows of a document, and how it was read."""

    rows: Rows
    notes: list[str]


def is_xml(raw: bytes) -> bool:
    """Whether bytes begin as XML does."""
    return _START.match(raw[:200].replace(b"\x00", b"")) is not None


def rows_of(path: Path, raw: bytes, encoding: str = "auto", flatten: Flatten | None = None) -> Document:
    """The rows of a document, with the lines they begin on. What follows damage is not read, and the damage is a bad row.

    The document is read twice: for what the rows are, and for the rows, of which one at a time is a tree. With ``auto``, its
    first line names its encoding.

    Raises:
        ImportFileError: no element is a row, the document declares entities, or it is not of this encoding.
    """
    text: str | bytes = raw
    if encoding != "auto":
        try:
            text = raw.decode(encoding)
        except (LookupError, UnicodeDecodeError) as error:
            raise ImportFileError(f"{path} cannot be read as {encoding}: {error}") from None
    outline, notes = _Outline(), list[str]()
    damage = _parse(path, text, outline)
    if damage is not None and isinstance(text, bytes) and b"\x00" not in raw[:200]:
        mended = _mended(raw)
        again = _Outline()
        if (later := _parse(path, mended, again)) is None or later.line > damage.line:
            text, outline, damage = mended, again, later
            notes.append(
                "damage is mended: ampersands that are not escaped, control characters, bytes that are no UTF-8"
            )
    reader = _Reader(outline.row(path, damage))
    _parse(path, text, reader)
    rows, lines = reader.rows, reader.lines
    if damage is not None and not rows:
        raise ImportFileError(
            f"{path} cannot be read (line {damage.line}: {damage.reason}): expected a whole file"
        )
    if flatten is not None:
        rows, lines = flattened(rows, lines, flatten)
    return Document(Rows(rows, lines, {} if damage is None else {damage.line: damage.reason}, "line"), notes)


def _mended(raw: bytes) -> bytes:
    """A document with its bare ampersands escaped and its control characters left out. In UTF-8, with other bytes read as
    windows-1252.
    """
    mended = _CONTROL.sub(b"", _UNESCAPED.sub(b"&amp;", raw))
    if _OTHER_ENCODING.search(mended[:200]):
        return mended
    return mended.decode("utf-8", "surrogateescape").translate(_WESTERN).encode("utf-8", "replace")


class _Damage(NamedTuple):
    line: int
    reason: str


class _Elements:
    """Follows the elements of a document; ``path`` are the names of those that are open."""

    def __init__(self) -> None:
        self.path: tuple[str, ...] = ()

    def started(self, name: str, attributes: dict[str, str], line: int) -> None:
        """An element begins; it is the last of the path."""

    def ended(self) -> None:
        """The last element of the path ends."""

    def text(self, text: str) -> None:
        """A part of the text of the last element."""


def _parse(path: Path, text: str | bytes, elements: _Elements) -> _Damage | None:
    """Hand the elements of a document on. Returns what is damaged."""
    parser = expat.ParserCreate(namespace_separator=_BETWEEN)
    parser.buffer_text = True

    def refuse(*_: object) -> NoReturn:
        raise ImportFileError(
            f"{path} cannot be read: got a document that declares entities, expected one whose texts stand in it"
        )

    def start(name: str, attributes: dict[str, str]) -> None:
        elements.path = (*elements.path, name)
        if len(elements.path) > _MAX_DEPTH:
            raise ImportFileError(
                f"{path} cannot be read: got elements in more than {_MAX_DEPTH} others, expected a list of items"
            )
        elements.started(name, attributes, parser.CurrentLineNumber)

    def end(_: str) -> None:
        elements.ended()
        elements.path = elements.path[:-1]

    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = elements.text
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        return _Damage(error.lineno, f"not XML: {reason}; what comes after it in the document is not read")
    except (LookupError, ValueError) as error:  # an encoding that Python does not know, or of several bytes
        raise ImportFileError(
            f"{path} cannot be read ({error}): name its encoding with --encoding"
        ) from error
    return None


class _Outline(_Elements):
    """How often each path of elements occurs, and which of them hold others."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._holding: set[tuple[str, ...]] = set()

    def started(self, name: str, attributes: dict[str, str], line: int) -> None:
        self._counts[self.path] += 1
        self._holding.add(self.path[:-1])

    def row(self, path: Path, damage: _Damage | None) -> tuple[str, ...]:
        """The path of the rows: of what repeats or has the name of a row, the outermost. Raises ImportFileError."""
        found = [
            each
            for each, count in self._counts.items()
            if each in self._holding
            and len(each) > 1
            and (count > 1 or _Name.of(each[-1]).name.lower() in _ROWS)
        ]
        if not found:
            what = damage.reason if damage is not None else "no element with others in it is there twice"
            raise ImportFileError(
                f"{path} cannot be read ({what}): expected XML with an element for each item"
            )
        return min(found, key=lambda each: (len(each), -self._counts[each]))


class _Name(NamedTuple):
    name: str
    is_google: bool

    @classmethod
    def of(cls, qualified: str) -> "_Name":
        space, _, name = qualified.rpartition(_BETWEEN)
        return cls(name, space == _GOOGLE)


class _Node:
    """An element that is open: its parts by name, its attributes, and its text."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name, self.is_google = _Name.of(name)
        self.attributes = {_Name.of(each).name: value for each, value in attributes.items()}
        self.parts: Object = {}
        self.of_google: set[str] = set()
        self.text: list[str] = []

    def add(self, node: "_Node") -> None:
        """Take an element that has ended as a part."""
        text = "".join(node.text).strip()
        if node.parts or not text:
            # Attributes stand for parts of their names, where there is none.
            value: Any = {**node.attributes, **node.parts} or None
            self._put(node.name, value, node.is_google)
        elif "name" in node.attributes:
            self._put(f"{node.name}.{node.attributes['name']}", text, node.is_google)
        else:
            self._put(node.name, text, node.is_google)
            for name, value in node.attributes.items():
                self.parts.setdefault(f"{node.name}.{name}", value)

    def _put(self, name: str, value: Any, is_google: bool) -> None:
        if name not in self.parts or (is_google and name not in self.of_google):
            self.parts[name] = value
        elif is_google or name not in self.of_google:
            there = self.parts[name]
            self.parts[name] = [*there, value] if isinstance(there, list) else [there, value]
        if is_google:
            self.of_google.add(name)


class _Reader(_Elements):
    """The rows, and the lines they begin on. Of a row that is damaged nothing is kept."""

    def __init__(self, row: tuple[str, ...]) -> None:
        super().__init__()
        self.rows: list[Object] = []
        self.lines: list[int] = []
        self._row, self._open, self._line = row, list[_Node](), 0

    def started(self, name: str, attributes: dict[str, str], line: int) -> None:
        if self._open or self.path == self._row:
            self._line = self._line if self._open else line
            self._open.append(_Node(name, attributes))

    def ended(self) -> None:
        if not self._open:
            return
        node = self._open.pop()
        if self._open:
            self._open[-1].add(node)
            return
        self.rows.append({**node.attributes, **node.parts})
        self.lines.append(self._line)

    def text(self, text: str) -> None:
        if self._open:
            self._open[-1].text.append(text)
