"""The table of settings in deploy/README.md, made from their definitions: `python -m tests.support.settings_table`."""

import re
import sys
from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

from headwater.settings import PREFIX, Settings
from tests.support.checkout import ROOT

_README: Final = ROOT / "deploy" / "README.md"
_TABLE: Final = re.compile(
    r"(?<=<!-- settings: made from their definitions by tests/support/settings_table.py -->\n).*?(?=<!-- end -->)",
    re.S,
)


def table() -> str:
    """The table in Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "\n| variable | default | meaning |\n|---|---|---|"
    for name, field in Settings.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        allowed = f": {', '.join(f'`{each}`' for each in choices)}" if choices else ""
        yield f"| `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description}{allowed} |"
    yield ""


def _shown(default: Any) -> str:
    if default is None or default in ("", ()):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, (int, float)) else f"`{default}`"


def is_current() -> bool:
    """Whether the README has the table that the definitions give."""
    found = _TABLE.search(_README.read_text(encoding="utf-8"))
    return found is not None and found[0] == table()


def main() -> None:
    text = _README.read_text(encoding="utf-8")
    _README.write_text(_TABLE.sub(lambda _: table(), text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
