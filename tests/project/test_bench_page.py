"""The page of the published figures is the one that their JSON makes."""

import json

from tests.bench.page import FIGURES, PAGE, completed, page


def published() -> dict:
    return json.loads(FIGURES.read_text(encoding="utf-8"))


def test_the_page_is_the_one_of_the_figures() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(published())


def test_a_missed_target_shows_on_the_page() -> None:
    figure = {
        "name": "clicks",
        "value": 10.0,
        "unit": "clicks/s",
        "ratio": 0.5,
        "at_least": 1.0,
        "note": "a | b",
    }
    run = published() | {"figures": [figure | {"met": False}]}
    assert "| clicks | 10 clicks/s |  | 0.5 | ≥ 1 | **no** | a \\| b |" in page(run)


def test_what_a_run_could_not_measure_keeps_its_earlier_value_and_date() -> None:
    before = {"at": "2026-01-01", "figures": [{"name": "lm", "value": 3.0, "note": "int8"}]}
    after = [{"name": "lm", "value": None, "note": "no bundle"}, {"name": "new", "value": None, "note": ""}]
    kept, missing = completed(after, before)
    assert (kept["value"], kept["note"]) == (3.0, "int8; of the run of 2026-01-01")
    assert missing["value"] is None
    assert completed(after, {"at": "2026-02-01", "figures": [kept]})[0] == kept
