"""Texts that shops keep as HTML, as plain text: encoders read words, and no tags."""

import html
import re
from typing import Any, Final

import polars as pl

_TAGS: Final = (
    r"(?is)</?(?:p|br|div|span|ul|ol|li|dl|dt|dd|b|i|u|s|strong|em|h[1-6]|table|tbody|thead|tr|td|th|a|img|font|section|article|"
    r"header|footer|iframe|style|script|blockquote|hr|sup|sub|small|pre|code|center|figure|figcaption|picture|video|button|label)"
    r"(?:\s[^<>]*)?/?>"
)
_ENTITIES: Final = r"&(?:[A-Za-z]{2,31}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});"
_UNSEEN: Final = re.compile(r"(?is)<(style|script)\b.*?</\1\s*>|<!--.*?-->")
_TAG: Final = re.compile(r"<[^<>]*>")


def without_markup(text: str) -> str:
    """A text without tags, styles and entities, its blanks single.

    >>> without_markup("<p>Salt &amp; <b>pepper</b></p>")
    'Salt & pepper'
    """
    return " ".join(html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", text))).split())


def plain_text(value: Any) -> str | None:
    """A text without markup; None for what is no text."""
    return without_markup(value) if isinstance(value, str) else None


def plain(source: pl.Series) -> tuple[pl.Series, int]:
    """A column of texts without markup, and how many had any. A text such as "5 < 6 & 7" has none, and stays as it is."""
    marked = source.str.contains(f"{_TAGS}|{_ENTITIES}").fill_null(False)
    if not marked.any():
        return source, 0
    places = marked.arg_true()
    made = pl.Series([without_markup(text) for text in source.filter(marked)], dtype=pl.String)
    return source.scatter(places, made), len(places)
