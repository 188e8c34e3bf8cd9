"""What the pages say of the tree is true: links and anchors lead somewhere, and the file map of models/ is complete."""

import re

import pytest

from tests.support.checkout import ROOT

PAGES = ("models/README.md", "models/RESULTS.md", "tests/bench/README.md", "tests/bench/FIGURES.md")


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


def test_every_file_of_training_is_on_the_file_map() -> None:
    page = text_of("models/README.md")
    for path in sorted((ROOT / "models" / "headwater_models").rglob("*.py")):
        assert path.name == "__init__.py" or f"`{path.name}`" in page, f"{path.name} is missing"


def test_every_file_of_the_file_map_is_there() -> None:
    page = text_of("models/README.md").partition("## Files")[2]
    names = {path.name for path in (ROOT / "models" / "headwater_models").rglob("*.py")}
    assert not set(re.findall(r"`(\w+\.py)`", page)) - names


def test_comments_cite_sections_that_exist() -> None:
    headings = text_of("models/RESULTS.md")
    for package in ("streams/headwater", "models/headwater_models"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for section in re.findall(r"`models/RESULTS\.md`,\s+(?:#\s+)?\"([^\"]+)\"", path.read_text()):
                assert f"\n## {section}\n" in headings, f"{path}: {section}"
