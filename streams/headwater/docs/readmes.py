"""The READMEs as files: of a checkout, or as the wheel carries them, with everything that they link to.

Names are paths in the repository, so that a link from one page to another holds wherever the tree is served from. Only the
standard library is imported: the wheel is built with this file (`deploy/pages_in_wheel.py`).
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PAGES: Final = (
    "README.md",
    "streams/README.md",
    "streams/headwater/README.md",
    "models/README.md",
    "models/headwater_models/README.md",
    "models/RESULTS.md",
    "deploy/README.md",
    "tests/README.md",
    "tests/bench/README.md",
    "tests/bench/FIGURES.md",
    "CHANGELOG.md",
)
# Where the wheel has what lies outside the packages.
FOLDER_IN_WHEEL: Final = "headwater/docs/pages"
# In the wheel anyway.
PACKAGES: Final = ("streams/headwater/", "models/headwater_models/")
_PACKAGE: Final = Path(__file__).resolve().parents[1]
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
# Screenshots are too large for a wheel: a page is read without them.
_PICTURES: Final = (".png", ".gif", ".webp", ".jpg")


def place_of(name: str) -> Path:
    """Where the file of a name is, or would be."""
    packed = _PACKAGE / "docs" / "pages"
    if name.startswith(PACKAGES[0]):
        return _PACKAGE / name.removeprefix(PACKAGES[0])
    if name.startswith(PACKAGES[1]):
        found = find_spec("headwater_models")
        folders = found.submodule_search_locations if found is not None else None
        return Path(next(iter(folders or ["."]))) / name.removeprefix(PACKAGES[1])
    return (packed if packed.is_dir() else _PACKAGE.parents[1]) / name


def files(place: Callable[[str], Path] = place_of) -> dict[str, Path]:
    """By name: every page, and every file that a page links to. A linked folder stands for its README, or its files."""
    found: dict[str, Path] = {}
    waiting = [name for name in PAGES if place(name).is_file()]
    while waiting:
        name = waiting.pop()
        if name in found or name.endswith(_PICTURES):
            continue
        found[name] = place(name)
        if name.endswith(".md"):
            waiting += _linked(name, found[name].read_text(encoding="utf-8"), place)
    return found


def _linked(page: str, text: str, place: Callable[[str], Path]) -> Iterator[str]:
    for link in _LINK.findall(text):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
        if ":" in link or link.startswith("#") or name.startswith(".."):
            continue
        path = place(name)
        if path.is_file():
            yield name
        elif (path / "README.md").is_file():
            yield f"{name}/README.md"
        elif path.is_dir():
            yield from (f"{name}/{each.name}" for each in sorted(path.iterdir()) if each.is_file())


def summary_of(text: str) -> tuple[str, str]:
    """The heading of a page, and its first sentence."""
    lines = text.splitlines()
    title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    paragraph: list[str] = []
    for line in lines:
        if re.match(r"[A-Za-z*`[](?!``)", line):
            paragraph.append(line.strip())
        elif paragraph:
            break
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph)).replace("*", "")
    return title, re.split(r"(?<=[.!?])\s", words)[0]
