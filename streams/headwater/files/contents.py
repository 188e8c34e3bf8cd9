"""What a file holds: unpacked from gzip, zip or zstd, and decoded to lines of text."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Final, NamedTuple

import cramjam

from headwater.errors import HeadwaterError

_GZIP, _ZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"PAR1"
_UTF16: Final = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
# Bytes above 127 that texts in windows-1252 have: letters, quotes, dashes, money, degrees. 0xFE and 0xFF are rather damage.
_WESTERN: Final = frozenset(range(0x80, 0xFE)) - {0x81, 0x8D, 0x8F, 0x90, 0x9D}


class ImportFileError(HeadwaterError):
    """The file or the mapping cannot be used: one sentence with what is there and what is expected."""


class Text(NamedTuple):
    """The lines of a file, without their ends. Lines that cannot be decoded are empty, and in ``bad`` with the reason."""

    lines: list[str]
    bad: dict[int, str]  # by line, counted from 1
    encoding: str


def is_parquet(raw: bytes) -> bool:
    """Whether these are the bytes of a Parquet file."""
    return raw.startswith(_PARQUET)


def unpacked(path: Path, member: str | None = None) -> bytes:
    """The bytes of a file; those of the one file in it where it is an archive.

    Args:
        member: which file of a zip archive, by its name or the end of it.

    Raises:
        ImportFileError: no such file, a damaged archive, or several files in it.
    """
    if not path.is_file():
        near = []
        if path.parent.is_dir():
            near = [other.name for other in sorted(path.parent.glob("*")) if other.is_file()][:20]
        there = f"; in {path.parent} there is {', '.join(near)}" if near else ""
        raise ImportFileError(f"{path} is no file: expected a CSV, Parquet or JSON lines file{there}")
    try:
        raw = path.read_bytes()
        if raw.startswith(_GZIP):
            return bytes(cramjam.gzip.decompress(raw))
        if raw.startswith(_ZSTD):
            return bytes(cramjam.zstd.decompress(raw))
        if raw.startswith(_ZIP):
            return _of_archive(path, raw, member)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, cramjam.DecompressionError) as error:
        raise ImportFileError(f"{path} cannot be read ({error}): expected a whole file") from error
    return raw


def _of_archive(path: Path, raw: bytes, member: str | None) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if "[Content_Types].xml" in names:
            raise ImportFileError(f"{path} cannot be read: got a spreadsheet, expected it saved as CSV")
        names = [name for name in names if not name.startswith("__MACOSX/")]
        found = [name for name in names if member is None or name == member or name.endswith(f"/{member}")]
        if len(found) != 1:
            asked = f"no one file {member}" if member else f"{len(names)} files"
            raise ImportFileError(f"{path} holds {asked}: name one of {', '.join(names[:20])} with --member")
        return archive.read(found[0])


def text_of(path: Path, raw: bytes, encoding: str = "auto") -> Text:
    """The lines of a file. With ``auto``: UTF-16 and UTF-8 with their marks, else UTF-8, else windows-1252.

    A line that is no UTF-8 stands alone as bad, unless most lines beyond ASCII are none and read well as windows-1252.

    Raises:
        ImportFileError: the bytes are no text.
    """
    if encoding == "auto":
        encoding = _UTF16.get(raw[:2]) or _utf16_without_mark(raw) or "utf-8"
    if encoding not in ("utf-8", "utf8", "utf-8-sig"):
        try:
            return Text(_split(raw.decode(encoding).removeprefix("\ufeff")), {}, encoding)
        except LookupError:
            raise ImportFileError(
                f"--encoding {encoding}: no such encoding; expected utf-8, utf-16, latin-1, windows-1252 or another"
            ) from None
        except UnicodeDecodeError as error:
            raise ImportFileError(
                f"{path} cannot be read as {encoding} ({error.reason} at byte {error.start})"
            ) from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if b"\x00" in raw[:4096]:
        raise ImportFileError(
            f"{path} cannot be read (bytes that are no text): expected CSV, Parquet or JSON lines"
        )
    try:
        return Text(_split(raw.decode()), {}, "utf-8")
    except UnicodeDecodeError:
        return _by_line(raw)


def _utf16_without_mark(raw: bytes) -> str | None:
    start = raw[:200]
    if len(start) >= 4 and start[1::2].count(0) > 0.8 * len(start[1::2]) and 0 not in start[0::2]:
        return "utf-16-le"
    if len(start) >= 4 and start[0::2].count(0) > 0.8 * len(start[0::2]) and 0 not in start[1::2]:
        return "utf-16-be"
    return None


def _split(text: str) -> list[str]:
    if "\n" not in text and "\r" in text:
        text = text.replace("\r", "\n")
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _by_line(raw: bytes) -> Text:
    lines, bad, beyond_ascii, western = [], dict[int, str](), 0, True
    parts = raw.replace(b"\r\n", b"\n").split(b"\n")
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
    if western and len(bad) > beyond_ascii:
        return Text(_split(raw.decode("windows-1252")), {}, "windows-1252")
    return Text(lines[:-1] if parts[-1] == b"" else lines, bad, "utf-8")
