"""The bytes of a dead letter as text for a person, on a terminal or a page. Pure."""

from typing import Final

import msgspec

_BYTES_A_LINE: Final = 16


def decoded(value: bytes | None) -> str | None:
    """As UTF-8; what is none is escaped."""
    return None if value is None else value.decode(errors="backslashreplace")


def indented(value: bytes) -> str | None:
    """JSON with a field a line; None: it is no JSON."""
    try:
        return msgspec.json.format(value).decode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def hex_lines(value: bytes, *, with_ascii: bool = True) -> list[str]:
    """Sixteen bytes a line: their place, hexadecimal, and text where they are ASCII."""
    lines = []
    for start in range(0, len(value), _BYTES_A_LINE):
        part = value[start : start + _BYTES_A_LINE]
        if with_ascii:
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
            lines.append(f"{start:06x}  {part.hex(' '):<{3 * _BYTES_A_LINE}} {text}")
        else:
            lines.append(f"{start:06x}  {part.hex(' ')}")
    return lines
