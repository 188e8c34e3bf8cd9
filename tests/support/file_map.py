"""The map of files in streams/headwater/README.md, made from the first line of each file: `python -m tests.support.file_map`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.checkout import ROOT

_PACKAGE: Final = ROOT / "streams" / "headwater"
README: Final = _PACKAGE / "README.md"
_MAP: Final = re.compile(
    r"(?<=<!-- files: made from their first lines by tests/support/file_map.py -->\n).*?(?=<!-- end -->)",
    re.S,
)
# The folders by layer, each with its heading. A layer imports only what stands below it (tests/project/test_imports.py).
LAYERS: Final = {
    "commands": "The command line",
    "gateway": "The HTTP gateway",
    "worker": "The worker process",
    "docs": "Documentation over HTTP",
    "paths": "Paths: clicks, catalog, requests",
    "recall": "Recall: candidates for a user",
    "profiles": "Profiles of users",
    "index": "The index of items",
    "kafka": "Kafka",
    "files": "Files of events, items and offers",
    "encoder": "Encoders and their bundles",
    "": "The top level",
}


def first_line(path: Path) -> str:
    """The first paragraph of a file's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def table() -> str:
    """The map in Markdown, one table for each layer."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for layer, title in LAYERS.items():
        folder = _PACKAGE / layer
        paths = sorted(folder.rglob("*.py") if layer else folder.glob("*.py"))
        files = [path for path in paths if first_line(path)]
        yield f"\n### {title}: `{layer or 'headwater'}/`\n"
        yield "| file | what it holds |\n|---|---|"
        for path in files:
            name = path.relative_to(folder).as_posix()
            yield f"| `{name}` | {first_line(path).replace('|', chr(92) + '|')} |"
    yield ""


def is_current() -> bool:
    """Whether the README has the map that the files give."""
    found = _MAP.search(README.read_text(encoding="utf-8"))
    return found is not None and found[0] == table() + "\n"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    README.write_text(_MAP.sub(lambda _: table() + "\n", text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
