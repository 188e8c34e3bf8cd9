"""What a file holds: unpacked from gzip, zip, zstd, bzip2 or xz, and decoded to lines of text."""

import bz2
import fnmatch
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import cramjam

from headwater.errors import HeadwaterError

_PARQUET: Final = b"PAR1"
_ZIPS: Final = (b"PK\x03\x04", b"PK\x05\x06")  # the second is an archive of nothing
_PACKED: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": lambda raw: bytes(cramjam.gzip.decompress(raw)),
    b"\x28\xb5\x2f\xfd": lambda raw: bytes(cramjam.zstd.decompress(raw)),
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
# A table that was packed twice, such as a gzip in a zip; more is no table.
_MAX_LAYERS: Final = 3
# What people take for a table, by how it starts: what it is, and what to do.
_OTHERS: Final[dict[bytes, tuple[str, str]]] = {
    b"\xd0\xcf\x11\xe0": ("a spreadsheet", "it saved as CSV"),
    b"%PDF": ("a PDF document", "the table that it was made from, as CSV"),
    b"SQLite format 3": ("an SQLite database", "one of its tables exported as CSV"),
    b"Obj\x01": ("an Avro file", "it exported as Parquet or JSON lines"),
    b"ORC": ("an ORC file", "it exported as Parquet or JSON lines"),
    b"ARROW1": ("an Arrow file", "it saved as Parquet"),
    b"version https://git-lfs": ("a pointer of Git LFS", "the file itself: `git lfs pull` brings it"),
    b"7z\xbc\xaf": ("a 7z archive", "it unpacked"),
    b"Rar!": ("a RAR archive", "it unpacked"),
}
_WEB_PAGE: Final = re.compile(rb"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
_SQL: Final = re.compile(
    rb"\s*(--[^\n]*\n|/\*|\s)*(insert\s+into|create\s+(table|database)|drop\s+table|copy\s+\S+[^\n]*from\s+stdin)\b",
    re.IGNORECASE,
)
_TAR_MARK: Final = slice(257, 262)
# Files that systems put into archives beside those of people.
_HIDDEN: Final = ("__MACOSX/*", ".*", "*/.*", "Thumbs.db", "*/Thumbs.db", "desktop.ini", "*/desktop.ini")
# The longer ones first: a mark of UTF-32 begins as one of UTF-16 does.
_MARKS: Final = {
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}
# Bytes above 127 that texts in windows-1252 have: letters, quotes, dashes, money, degrees. 0xFE and 0xFF are rather damage.
_WESTERN: Final = frozenset(range(0x80, 0xFE)) - {0x81, 0x8D, 0x8F, 0x90, 0x9D}


_SAMPLE: Final = 1_000
_BEYOND: Final = re.compile(r"[^\x00-\x7f]")
# Three letters or signs beyond ASCII in a row, or a sign between letters: German, French and Spanish have hardly any.
_STRANGE: Final = re.compile(
    r"[^\x00-\x7f]{3,}|[A-Za-z\u00c0-\u00ff][\u00a1-\u00a9\u00ab-\u00b4\u00b6\u00b8\u00b9\u00bb-\u00bf\u00d7\u00f7](?=[A-Za-z\u00c0-\u00ff])"
)
_LETTER: Final = re.compile(r"[^\W\d_]")
# Programs that write "\r\n" as text make two of the first.
_LINE_END: Final = re.compile(r"\r*\n")


class ImportFileError(HeadwaterError):
    """The file or the mapping cannot be used: one sentence with what is there and what is expected."""


class EmptyFile(ImportFileError):
    """A file without any line."""


# A file, a folder, or a pattern such as days/*.csv; or several of these.
Files = Path | Sequence[Path]


def files_of(given: Files) -> list[Path]:
    """The files, in the order of their names where a folder or a pattern stands for them; each once.

    A folder's are those in its folders too, without hidden ones, and those that begin with an underscore as Spark's marks do.

    Raises:
        ImportFileError: a folder or a pattern without a file.
    """
    found: dict[str, Path] = {}
    for path in [given] if isinstance(given, Path) else given:
        inside = [path]
        if path.is_dir():
            below = [each for each in sorted(path.rglob("*")) if each.is_file()]
            inside = [
                each for each in below if not any(_is_hidden(part) for part in each.relative_to(path).parts)
            ]
        elif any(mark in str(path) for mark in "*?[") and not path.exists():
            root = Path(path.anchor)
            inside = [each for each in sorted(root.glob(str(path.relative_to(root)))) if each.is_file()]
        if not inside:
            what = "a folder" if path.is_dir() else "a pattern"
            raise ImportFileError(
                f"{path} is {what} without a file: expected CSV, Parquet, JSON lines or XML files in it"
            )
        for each in inside:
            found.setdefault(os.path.realpath(each), each)
    return list(found.values())


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def named(given: Files) -> str:
    """The files in a message: one by its path, and of several the first and the number of the others."""
    if isinstance(given, Path):
        return str(given)
    more = len(given) - 1
    return str(given[0]) + (f" and {more} more" if more else "")


class Text(NamedTuple):
    """The lines of a file, without their ends. Lines that cannot be decoded are empty, and in ``bad`` with the reason."""

    lines: list[str]
    bad: dict[int, str]  # by line, counted from 1
    encoding: str


def is_parquet(raw: bytes) -> bool:
    """Whether these are the bytes of a Parquet file."""
    return raw.startswith(_PARQUET)


def unpacked(path: Path, member: str | None = None) -> bytes:
    """The bytes of a file; those of the one file in it where it is an archive, or is packed.

    Args:
        member: which file of a zip archive, by its name or the end of it.

    Raises:
        ImportFileError: no such file, a damaged archive, several files in it, or something that is no table.
    """
    if path.is_fifo():
        raise ImportFileError(
            f"{path} is a pipe, and is read more than once: expected a file; write what comes out of it to one"
        )
    if not path.is_file():
        near = []
        if path.parent.is_dir():
            near = [other.name for other in sorted(path.parent.glob("*")) if other.is_file()][:20]
        there = f"; in {path.parent} there is {', '.join(near)}" if near else ""
        raise ImportFileError(f"{path} is no file: expected a CSV, Parquet or JSON lines file{there}")
    try:
        raw = path.read_bytes()
        for _ in range(_MAX_LAYERS):
            unpack = next((each for mark, each in _PACKED.items() if raw.startswith(mark)), None)
            if raw.startswith(_ZIPS):
                raw = _of_archive(path, raw, member)
            elif unpack is not None:
                raw = unpack(raw)
            else:
                break
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImportFileError(
            f"{path} cannot be read ({reason}): expected a whole file that this user may read"
        ) from error
    except (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        cramjam.DecompressionError,
        ValueError,
    ) as error:
        raise ImportFileError(f"{path} cannot be read ({error}): expected a whole file") from error
    _refuse_others(path, raw)
    return raw


def _refuse_others(path: Path, raw: bytes) -> None:
    """Raise ImportFileError with what a file is that is known, and is no table."""
    found = next((each for mark, each in _OTHERS.items() if raw.startswith(mark)), None)
    if raw[_TAR_MARK] == b"ustar":
        found = ("a tar archive", "one of the files in it, unpacked")
    elif _WEB_PAGE.match(raw[:200]):
        found = ("a web page", "the file itself; was the download refused?")
    elif _SQL.match(raw[:2000]):
        found = ("SQL statements", "the table exported as CSV")
    if found is not None:
        raise ImportFileError(f"{path} cannot be read: got {found[0]}, expected {found[1]}")


def _of_archive(path: Path, raw: bytes, member: str | None) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        if "[Content_Types].xml" in infos or "content.xml" in infos:
            raise ImportFileError(f"{path} cannot be read: got a spreadsheet, expected it saved as CSV")
        names = [name for name in infos if not any(fnmatch.fnmatchcase(name, hidden) for hidden in _HIDDEN)]
        if not names:
            raise ImportFileError(
                f"{path} cannot be read: got an archive without a file, expected one with a table"
            )
        found = [name for name in names if member is None or name == member or name.endswith(f"/{member}")]
        if len(found) != 1:
            asked = f"no one file {member}" if member else f"{len(names)} files"
            raise ImportFileError(f"{path} holds {asked}: name one of {', '.join(names[:20])} with --member")
        if infos[found[0]].flag_bits & 1:
            raise ImportFileError(
                f"{path} cannot be read: {found[0]} has a password; expected an archive without one"
            )
        try:
            return archive.read(found[0])
        except NotImplementedError as error:
            raise ImportFileError(f"{path} cannot be read ({error}): expected it unpacked") from error


def text_of(path: Path, raw: bytes, encoding: str = "auto") -> Text:
    """The lines of a file. With ``auto``: UTF-16 and UTF-8 with their marks, else UTF-8, else windows-1252.

    A line that is no UTF-8 stands alone as bad, unless most lines beyond ASCII are none and read well as windows-1252.

    Raises:
        ImportFileError: the bytes are no text.
    """
    guessing = encoding == "auto"
    if guessing:
        marked = next((each for mark, each in _MARKS.items() if raw.startswith(mark)), None)
        encoding = marked or _utf16_without_mark(raw) or "utf-8"
    if encoding not in ("utf-8", "utf8", "utf-8-sig"):
        try:
            return _without_nul(Text(_split(raw.decode(encoding).removeprefix("\ufeff")), {}, encoding))
        except LookupError:
            raise ImportFileError(
                f"--encoding {encoding}: no such encoding; expected utf-8, utf-16, latin-1, windows-1252 or another"
            ) from None
        except UnicodeDecodeError as error:
            raise ImportFileError(
                f"{path} cannot be read as {encoding} ({error.reason} at byte {error.start})"
            ) from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    start = raw[:4096]
    # A single one is damage to its line.
    if sum(byte < 32 and byte not in b"\x01\t\n\r\f\x1a\x1b" for byte in start) > max(4, len(start) // 50):
        raise ImportFileError(
            f"{path} cannot be read (bytes that are no text): expected CSV, Parquet, JSON lines or XML"
        )
    try:
        text = Text(_split(raw.decode()), {}, "utf-8")
    except UnicodeDecodeError:
        text = _by_line(path, raw, guessing)
    return _without_nul(text)


def _without_nul(text: Text) -> Text:
    """A line with a NUL byte is bad: no text has any, and most programs would not show it."""
    if not any("\x00" in line for line in text.lines):
        return text
    for number, line in enumerate(text.lines, 1):
        if "\x00" in line:
            text.bad[number] = "got a NUL byte, expected text"
            text.lines[number - 1] = ""
    return text


def _utf16_without_mark(raw: bytes) -> str | None:
    start = raw[:200]
    if len(start) >= 4 and start[1::2].count(0) > 0.8 * len(start[1::2]) and 0 not in start[0::2]:
        return "utf-16-le"
    if len(start) >= 4 and start[0::2].count(0) > 0.8 * len(start[0::2]) and 0 not in start[1::2]:
        return "utf-16-be"
    return None


def _split(text: str) -> list[str]:
    """The lines of a text. A carriage return ends one too, unless it may stand in a quoted value."""
    lines = text.split("\n")
    if "\r" in text:
        lines = text.split("\r") if len(lines) == 1 else _LINE_END.split(text)
        lines = [part for line in lines for part in ([line] if '"' in line else line.split("\r"))]
    return lines[:-1] if lines[-1] == "" else lines


def _no_words(lines: Sequence[str]) -> str | None:
    """Some of the text that is none in a western language, where a third of what is beyond ASCII is such; None where it is not."""
    text = "\n".join(lines[:_SAMPLE])
    found = [each for each in _STRANGE.finditer(text) if _LETTER.search(each[0])]
    if 3 * sum(len(_BEYOND.findall(each[0])) for each in found) <= len(_BEYOND.findall(text)):
        return None
    return text[max(0, found[0].start() - 5) : found[0].end() + 5].replace("\n", " ")


def _by_line(path: Path, raw: bytes, guessing: bool) -> Text:
    lines, bad, beyond_ascii, western = [], dict[int, str](), 0, True
    parts = re.split(rb"\r*\n", raw)
    for number, part in enumerate(parts, 1):
        try:
            line = part.decode()
            beyond_ascii += not line.isascii()
        except UnicodeDecodeError as error:
            bad[number] = (
                f"got the byte 0x{part[error.start]:02x}, expected UTF-8; name another encoding with --encoding"
            )
            western = western and all(byte < 0x80 or byte in _WESTERN for byte in part)
            line = ""
        lines.append(line)
    if guessing and western and len(bad) > beyond_ascii:
        if strange := _no_words([parts[number - 1].decode("windows-1252") for number in bad]):
            raise ImportFileError(
                f"{path} cannot be read: its bytes are no UTF-8, and as windows-1252 they read {strange!r}; name its encoding "
                "with --encoding, such as windows-1250, windows-1251, gbk or shift_jis"
            )
        return Text(_split(raw.decode("windows-1252")), {}, "windows-1252")
    return Text(lines[:-1] if parts[-1] == b"" else lines, bad, "utf-8")
