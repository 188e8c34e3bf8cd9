"""Values of one column: ids and texts, numbers, flags and lists, whatever the file wrote them as.

A type is that of most values. What then does not fit is bad by itself, and the others stay.
"""

import ast
import re
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import msgspec
import polars as pl

from headwater.files.contents import ImportFileError

Type = Literal["text", "number", "flag", "list", "time"]
Decimal = Literal["auto", ".", ","]
# How tables write a missing value, in lower case.
MISSING: Final = ("", "nan", "null", "none", "<na>", "nat", "\\n", "undefined", "n/a")
# How R writes it. As a text it may be Namibia, or a size.
_NOT_AVAILABLE: Final = "NA"
# Whole numbers that went through floats: 7.0, Java's 1.2345678E7 and R's 1e+05. Codes such as 1e5 are none.
_FLOAT: Final = r"^-?\d+\.0+$|^-?\d\.\d+E\d+$|^-?\d(?:\.\d+)?e\+\d+$"
# What a spreadsheet leaves of a long number, 8.71235E+12, or a float of one above 2^53: other numbers may begin so too.
_SHORTENED: Final = r"^-?\d(?:[.,]\d+)?E\+\d+$|^-?\d\.\d+(?:E|e\+)(?:1[6-9]|[2-9]\d)$"
# Of an id that does not fit.
LOST_DIGITS: Final = (
    "a number that has lost digits; expected all of them, as text or a whole number up to 2^53"
)
# The largest whole number up to which floats have all.
_EXACT: Final = 2**53
_MONEY: Final = r"(?:\p{L}{1,3}\.?|[Ee]uros?|[Dd]ollars?|[A-Z]{0,2}[$€£¥₹₽₩₺฿₫₴₦]|zł|Kč|元|円)"
_DIGITS: Final = r"(?:\d[\d.,'’\u00a0\u202f ]*\d|\d|[.,]\d+)"
_NUMBER: Final = rf"^{_MONEY}?\s*([+-]?{_DIGITS}(?:[eE][+-]?\d+)?)\s*{_MONEY}?$"
# A price in an export, as dots and commas of the United States write it.
PRICE: Final = re.compile(r"^\s*\$?\s*\d[\d,]*(\.\d+)?\s*$")
_YES: Final = (
    "true", "1", "yes", "y", "t", "on", "available", "in stock", "instock", "active", "preorder", "pre order", "backorder",
    "back order", "limited availability", "online only", "enabled", "published",
    "ja", "j", "wahr", "auf lager", "lieferbar", "verfügbar", "oui", "vrai", "en stock", "sí", "si", "sì", "verdadero", "disponible",
    "disponibile", "sim", "disponível", "tak",
)  # fmt: skip
_NO: Final = (
    "false", "0", "no", "n", "f", "off", "unavailable", "out of stock", "outofstock", "oos", "sold out", "soldout", "inactive",
    "discontinued", "archived", "draft", "disabled", "unpublished", "not available",
    "nein", "falsch", "ausverkauft", "nicht lieferbar", "nicht verfügbar", "nicht auf lager", "non", "faux", "rupture de stock",
    "en rupture", "falso", "agotado", "no disponible", "esaurito", "não", "nao", "esgotado", "nee", "nie",
)  # fmt: skip
# What flags of attributes are written as. A column of "no" alone may name Norway.
_FLAG_WORDS: Final = {"true": "false", "yes": "no"}
# What stands around ids unseen.
_BLANKS: Final = " \t\r\n\v\f\u00a0\u200b\u2060\u202f\u3000\ufeff"
_LIST_SEPARATORS: Final = ("|", ";", ",")


class Read(NamedTuple):
    """A column as it is read, and as it was written: null in ``values`` and text in ``shown`` is a value that does not fit."""

    values: pl.Series
    shown: pl.Series  # text; null where it is missing

    @property
    def unfit(self) -> pl.Series:
        """(rows,) whether there is a value that does not fit."""
        return self.values.is_null() & self.shown.is_not_null()


def present(source: pl.Series) -> pl.Series:
    """A column as text, null where the value is missing.

    Raises:
        ImportFileError: the column's type has no text form.
    """
    if source.dtype.is_float():
        source = source.fill_nan(None)
        whole = source.cast(pl.Int64, strict=False)
        as_whole = (whole.cast(pl.Float64) == source).fill_null(False) & (source.abs() <= _EXACT).fill_null(
            False
        )
        text = source.cast(pl.String)
        return whole.cast(pl.String).zip_with(as_whole, text)
    try:
        text = source.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise ImportFileError(
            f"column {source.name}: got {source.dtype}, expected text or numbers"
        ) from error
    return text.set(text.str.strip_chars().str.to_lowercase().is_in(list(MISSING)), None)


def _without_na(text: pl.Series) -> pl.Series:
    return text.set((text == _NOT_AVAILABLE).fill_null(False), None)


def ids(source: pl.Series, note: Callable[[str], None] = lambda _: None) -> Read:
    """Ids as text, without the blanks around them. Whole numbers that went through a table of floats, 7.0 for 7, are whole again.

    What was changed is noted. A float above 2^53 has lost digits, and so has a number that a spreadsheet shortened to
    8.71235E+12: they do not fit.
    """
    text = _without_na(present(source))
    if source.dtype.is_float():
        return Read(text.set((source.abs() > _EXACT).fill_null(False), None), text)
    if source.dtype != pl.String:
        return Read(text, text)
    bare = text.str.strip_chars(_BLANKS)
    if blank := int((bare != text).sum() or 0):
        note(f"{source.name}: {blank:,} ids are read without the blanks around them")
        text = bare.set(bare == "", None)
    floats = text.str.contains(_FLOAT).fill_null(False)
    if floats.any():
        numbers = text.str.contains(rf"^-?\d+(\.\d*)?$|{_FLOAT}")
        whole = text.zip_with(~floats, _whole(text.set(~floats, None)))
        # Another file, or another part of this one, has the same ids as whole numbers.
        again = whole.filter(floats).unique().is_in(text.filter(~floats).implode())
        if 2 * int(numbers.sum()) > len(text) - text.null_count() or 2 * int(again.sum()) > len(again):
            note(f"{source.name}: {floats.sum():,} ids written as floats are read as whole numbers")
            text = whole
    shortened = text.str.contains(_SHORTENED).fill_null(False)
    return Read(text.set(shortened, None), text)


def _whole(floats: pl.Series) -> pl.Series:
    """Texts of floats as whole numbers with all their digits; what is none, or has lost digits, as it is."""
    plain = floats.str.replace(r"^(-?\d+)\.0+$", "${1}")
    powers = floats.str.contains("[eE]").fill_null(False)
    if not powers.any():
        return plain
    values = floats.cast(pl.Float64, strict=False)
    exact = powers & ((values % 1 == 0) & (values.abs() <= _EXACT)).fill_null(False)
    return values.set(~exact, None).cast(pl.Int64, strict=False).cast(pl.String).zip_with(exact, plain)


def numbers(source: pl.Series, decimal: Decimal = "auto") -> Read:
    """Float64 numbers, also with a currency, or separators of thousands. Most values say whether a comma is the decimal mark."""
    if source.dtype == pl.Boolean:
        source = source.cast(pl.String)
    if source.dtype.is_numeric():
        shown = present(source)
        values = source.cast(pl.Float64).fill_nan(None)
        return Read(values.set(values.is_infinite().fill_null(False), None), shown)
    shown = _without_na(present(source).str.strip_chars())
    plain = shown.cast(pl.Float64, strict=False)
    if decimal != "," and plain.null_count() == shown.null_count():
        return Read(plain.set(~plain.is_finite().fill_null(True), None), shown)
    digits = _digits(shown)
    if decimal == "auto":
        comma, dot = _decimal_marks(digits)
        decimal = "," if comma > dot else "."
    grouping = "." if decimal == "," else ","
    # Groups have three digits, or two before the last in India: 1.5 where a comma is the decimal mark is neither.
    groups = rf"(\{grouping}\d{{3}})*|(\{grouping}\d\d)*\{grouping}\d{{3}}"
    grouped = rf"^[+-]?\d{{1,3}}({groups})(\{decimal}\d*)?$"
    straight = rf"^[+-]?\d*(\{decimal}\d*)?([eE][+-]?\d+)?$"
    fits = digits.str.contains(f"{grouped}|{straight}").fill_null(False)
    digits = (
        digits.set(~fits, None)
        .str.replace_all(grouping, "", literal=True)
        .str.replace(decimal, ".", literal=True)
    )
    return Read(digits.cast(pl.Float64, strict=False), shown)


def _digits(shown: pl.Series) -> pl.Series:
    """Numbers without their currencies and the blanks between their digits; 12.- and 12,\u2013 are 12. Null for what is none."""
    bare = shown.str.replace(r"^(.*\d)[.,](?:-{1,2}|[–—])(\D*)$", "${1}${2}")
    return bare.str.extract(_NUMBER, 1).str.replace_all(r"['’\u00a0\u202f ]", "")


def _decimal_marks(digits: pl.Series) -> tuple[int, int]:
    """How many numbers show that the decimal mark is a comma, and that it is a dot."""
    comma = digits.str.contains(r"\.\d{3},\d+$|\.\d{3}\.\d{3}$|^[+-]?\d*,(\d{1,2}|\d{4,})$")
    dot = digits.str.contains(r",\d{3}\.\d+$|,\d{3},\d{3}$|^[+-]?\d*\.(\d{1,2}|\d{4,})$")
    return int(comma.sum()), int(dot.sum())


def undecided(source: pl.Series) -> str | None:
    """A number such as 1.299 or 1,299 of a column where no other shows whether its mark is that of decimals or of thousands.

    Dollars and pounds have a dot, so their commas are of thousands.
    """
    if source.dtype != pl.String:
        return None
    shown = present(source).str.strip_chars()
    digits = _digits(shown)
    either = shown.filter(digits.str.contains(r"^[+-]?[1-9]\d{0,2}[.,]\d{3}$").fill_null(False))
    if not len(either) or any(_decimal_marks(digits)):
        return None
    decided = either.str.contains(r"[$£]|USD|GBP|CAD|AUD").all()
    return None if decided and not either.str.contains(".", literal=True).any() else either[0]


def whole_numbers(source: pl.Series) -> Read:
    """Int64 numbers; 3.0 is 3."""
    shown = _without_na(present(source).str.strip_chars())
    return Read(shown.str.replace(r"^([+-]?\d+)\.0*$", "${1}").cast(pl.Int64, strict=False), shown)


def flags(source: pl.Series) -> Read:
    """True or false, also as words of shops such as "in stock". A number of pieces is true above 0."""
    if source.dtype == pl.Boolean:
        return Read(source, source.cast(pl.String))
    shown = _without_na(present(source))
    words = shown.str.strip_chars().str.to_lowercase().str.replace(r"^https?://schema\.org/", "")
    words = words.str.replace_all(r"[_-]+", " ")
    table = {**dict.fromkeys(_YES, True), **dict.fromkeys(_NO, False)}
    found = words.replace_strict(table, default=None, return_dtype=pl.Boolean)
    pieces = words.str.replace_all(" ", "", literal=True).cast(pl.Float64, strict=False) > 0
    # A hyphen was a minus.
    pieces = pieces & ~shown.str.contains(r"^\s*-").fill_null(False)
    return Read(found.zip_with(found.is_not_null(), pieces), shown)


def lists(source: pl.Series, separator: str = "auto") -> pl.Series:
    """Lists of text: JSON arrays, or values between separators. The first of | ; , that is in the column separates it."""
    text = present(source)
    brackets = text.str.contains(r"^\s*\[.*\]\s*$").fill_null(False)
    rest = text.set(brackets, None)
    if separator == "auto":
        found = [each for each in _LIST_SEPARATORS if rest.str.contains(each, literal=True).any()]
        separator = found[0] if found else _LIST_SEPARATORS[0]
    split = rest.fill_null("").str.split(separator).list.eval(pl.element().str.strip_chars())
    split = split.list.eval(pl.element().filter(pl.element() != ""))
    if not brackets.any():
        return split
    parsed = [_members(value) if is_list else None for value, is_list in zip(text, brackets, strict=True)]
    return pl.Series(source.name, parsed, dtype=pl.List(pl.String)).zip_with(brackets, split)


def _members(text: str) -> list[str]:
    """The values of a list in JSON, or as Python prints it; a list in a list is flat, such as paths of categories."""
    value = list_of(text)
    return [each for each in _flat(text.strip()[1:-1].split(",") if value is None else value) if each]


def list_of(text: str) -> list[Any] | None:
    """A list in JSON, or one or several as Python prints them; None where the text is none."""
    try:
        value: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def _flat(value: Any) -> list[str]:
    if isinstance(value, list | tuple | set):
        return [part for each in value for part in _flat(each)]
    if isinstance(value, dict):
        named = value.get("name") or value.get("title")
        return _flat(named) if named else []
    return [] if value is None else [str(value).strip()]


def attribute(source: pl.Series, chosen: Type | None = None, decimal: Decimal = "auto") -> tuple[Read, Type]:
    """An attribute as text, number or flag, and which of them: what was chosen, else what most values are.

    Codes such as 007 are text, and so are numbers of more digits than a float has.
    """
    kind = chosen or _kind_of(source, decimal)
    if kind == "number":
        return numbers(source, decimal), kind
    if kind == "flag":
        return flags(source), kind
    shown = present(source)
    if kind == "list" or (source.dtype == pl.String and shown.str.starts_with("[").any()):
        joined = lists(source).list.join(", ")
        return Read(joined.set(shown.is_null(), None), shown), "text"
    return Read(shown, shown), "text"


def _kind_of(source: pl.Series, decimal: Decimal) -> Type:
    if source.dtype == pl.Boolean:
        return "flag"
    if source.dtype.is_numeric():
        largest = source.abs().max() if len(source) else None
        too_long = source.dtype.is_integer() and largest is not None and largest > _EXACT  # type: ignore[operator]
        return "text" if too_long else "number"
    if source.dtype != pl.String:
        return "text"
    values = present(source).drop_nulls().str.strip_chars()
    digits = values.filter(values.str.contains(r"^-?\d+([.,]\d+)?$"))
    if values.str.contains(r"^-?0\d|^-?\d{16,}").any():
        return "text"
    if 2 * len(digits) > len(values) and not (
        decimal == "." and digits.str.contains(",", literal=True).any()
    ):
        return "number"
    words = values.str.to_lowercase()
    for yes, no in _FLAG_WORDS.items():
        count = int(words.is_in([yes, no]).sum())
        if 2 * count > len(values) and (yes == "true" or words.is_in([yes]).any()):
            return "flag"
    return "text"
