"""The maps of files in the READMEs of both packages, from the first line of each file: `python -m tests.support.file_map`."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.support.checkout import ROOT

_MAP: Final = re.compile(
    r"(?<=<!-- files: made from their first lines by tests/support/file_map.py -->\n).*?(?=<!-- end -->)",
    re.S,
)
# The folders of `headwater` by layer, with their headings. A layer imports only what is below it (tests/project/test_imports.py).
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
PACKAGES: Final[Mapping[Path, Mapping[str, str]]] = {
    ROOT / "streams" / "headwater": LAYERS,
    ROOT / "models" / "headwater_models": {
        "": "Trainings, top to bottom",
        "data": "Data",
        "networks": "Networks",
        "training": "Training",
        "bundles": "Bundles",
        "judging": "Evaluation",
    },
}


def first_line(path: Path) -> str:
    """The first paragraph of a file's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def table(package: Path) -> str:
    """The map of a package in Markdown, one table for each folder."""
    return "\n".join(_lines(package))


def _lines(package: Path) -> Iterator[str]:
    for name, title in PACKAGES[package].items():
        folder = package / name
        paths = sorted(folder.rglob("*.py") if name else folder.glob("*.py"))
        yield f"\n### {title}: `{name or package.name}/`\n"
        yield "| file | what it holds |\n|---|---|"
        for path in paths:
            if line := first_line(path):
                place = path.relative_to(folder).as_posix()
                yield f"| `{place}` | {line.replace('|', chr(92) + '|')} |"
    yield ""


def is_current(package: Path) -> bool:
    """Whether the README of a package has the map that its files give."""
    found = _MAP.search((package / "README.md").read_text(encoding="utf-8"))
    return found is not None and found[0] == table(package) + "\n"


def main() -> None:
    for package in PACKAGES:
        readme = package / "README.md"
        text, made = readme.read_text(encoding="utf-8"), table(package) + "\n"
        readme.write_text(_MAP.sub(lambda _, made=made: made, text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
