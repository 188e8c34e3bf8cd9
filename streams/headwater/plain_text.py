"""Text of strangers, as a terminal or a log may show it: nothing in it steers the terminal or hides what it says. Pure."""

import json
import unicodedata
from typing import Final

# Control and format characters (escape sequences, the overrides of reading direction), lone surrogates, ends of lines.
_STEERING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Format characters that belong to the spelling: of Persian words, of Indic scripts, of families of emoji.
_JOINERS: Final = frozenset("\u200c\u200d")


def plain(text: str, kept: str = "") -> str:
    r"""The text with escapes in place of what would steer a terminal, but for the characters in ``kept``.

    >>> print(plain("\x1b[2J, 10%\n"))
    \x1b[2J, 10%\n
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(each)[1:-1] if each not in kept and _steers(each) else each for each in text)


def plain_json(text: str) -> str:
    """The same JSON values, spelt without what would steer a terminal. Line breaks can only be between values."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        json.dumps(each)[1:-1] if each not in "\t\n\r" and _steers(each) else each for each in text
    )


def _steers(char: str) -> bool:
    return unicodedata.category(char) in _STEERING and char not in _JOINERS
