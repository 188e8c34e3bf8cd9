"""What the pages say is true: links lead somewhere, commands and options exist."""

import re

import pytest

from headwater.commands.main import app
from headwater.docs import readmes
from tests.support.checkout import ROOT

PAGES = sorted(name for name in readmes.files() if name.endswith(".md"))
# In code, in a terminal, or as an indented line; the other is Python's `from headwater import Client`.
COMMAND = re.compile(r"(?:`|\$ |bin/|^ *)headwater (?!import [A-Z])([a-z][^`\n]*)", re.MULTILINE)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(str(file.relative_to(ROOT))), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    for line in COMMAND.findall(text_of(page)):
        path, apps, _ = app.parse_commands(line.split())
        assert path, f"{page}: headwater {line}"
        has_options = apps[-1].default_command is not None  # `headwater import` has commands only
        arguments = apps[-1].assemble_argument_collection() if has_options else []
        options = {name for argument in arguments for name in argument.names}
        assert set(re.findall(r"--[a-z][a-z0-9-]+", line)) <= options, f"{page}: headwater {line}"


def test_comments_cite_sections_that_exist() -> None:
    headings = text_of("models/RESULTS.md")
    for package in ("streams/headwater", "models/headwater_models"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for section in re.findall(r"`models/RESULTS\.md`,\s+(?:#\s+)?\"([^\"]+)\"", path.read_text()):
                assert f"\n## {section}\n" in headings, f"{path}: {section}"
