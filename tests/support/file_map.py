"""The map of files in streams/README.md, made from the first line of each file: `python -m tests.support.file_map`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.checkout import ROOT

README: Final = ROOT / "streams" / "README.md"
_PACKAGE: Final = ROOT / "streams" / "headwater"
_MAP: Final = re.compile(
    r"(?<=<!-- files: made from their first lines by tests/support/file_map.py -->\n).*?(?=<!-- end -->)",
    re.S,
)
# From the top floor down, as a visitor meets them.
_ROOMS: Final = {
    "": "What everyone may import",
    "commands": "The terminal",
    "gateway": "HTTP for those who do not speak Kafka",
    "worker": "One process",
    "docs": "What it says of itself",
    "paths": "The three paths",
    "recall": "Candidates",
    "profiles": "Users",
    "index": "Items by vector",
    "kafka": "Everything that knows Kafka",
    "files": "Files of shops",
    "encoder": "Bundles",
}


def first_line(path: Path) -> str:
    """The first paragraph of a file's docstring, on one line."""
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(told.split("\n\n")[0].split())


def table() -> str:
    """The map in Markdown, one table for each room."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for room, title in _ROOMS.items():
        folder = _PACKAGE / room
        paths = sorted(folder.rglob("*.py") if room else folder.glob("*.py"))
        files = [path for path in paths if first_line(path)]
        yield f"\n### {title}: `{room or 'headwater'}/`\n"
        yield "| file | what it holds |\n|---|---|"
        for path in files:
            name = path.relative_to(folder).as_posix()
            yield f"| `{name}` | {first_line(path).replace('|', chr(92) + '|')} |"
    yield ""


def is_current() -> bool:
    """Whether the README has the map as the files tell it."""
    found = _MAP.search(README.read_text(encoding="utf-8"))
    return found is not None and found[0] == table() + "\n"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    README.write_text(_MAP.sub(lambda _: table() + "\n", text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
