"""`headwater evaluate` and `bundle`, as processes."""

import json
from pathlib import Path

import numpy as np
import pytest

from headwater.commands import bundles
from headwater.commands.terminal import Exit
from headwater_models.bundles.export import FROM_ALL
from headwater_models.data.datasets import Dataset
from headwater_models.data.events import Log
from tests.support.interests_worker import STARTER
from tests.support.terminal import Terminal


def test_a_bundle_is_judged_on_a_file_of_events(terminal: Terminal) -> None:
    drinks = [("tea", "Green tea"), ("milk", "Whole milk"), ("beer", "Lager beer"), ("wine", "Red wine")]
    rows = [
        f"{user},{item},{1_700_000_000_000 + 60_000 * (user + n)},{title}"
        for user in range(6)
        for n, (item, title) in enumerate(drinks)
    ]
    (terminal.folder / "events.csv").write_text("\n".join(["who,item_id,at_ms,title", *rows, ",tea,1,Tea"]))
    arguments = ("evaluate", "--data", "events.csv", "--map", "user_id=who", "--k", "2")
    found = json.loads(terminal.succeeds(*arguments, "--json"))
    assert found["protocol"] == "leave-one-out"
    assert found["dropped"] == {"such as line 26: user_id: missing, expected an id": 1}
    counted = {"popular", "popular in the last week", "popular texts", "buy again"}
    assert set(found["methods"]) == {"starter", *counted}
    quality = found["methods"]["starter"]["all"]
    assert (quality["targets"], quality["hit"]["value"]) == (6, 1.0)  # three of four drinks are seen
    assert "hit@2" in terminal.succeeds(*arguments)


def test_a_bundle_is_judged_on_a_file_of_cases_and_bad_rows_are_told(terminal: Terminal) -> None:
    (terminal.folder / "items.csv").write_text(
        "item_id,title\ntea,Green tea\nmilk,Whole milk\nhose,Garden hose\n"
    )
    (terminal.folder / "clicks.csv").write_text("who,item_id,at_ms\n1,tea,1700000000\n2,milk,1700000060\n")
    rows = [
        '{"history": ["tea"], "target": "milk"}',
        '{"history": "", "target": "milk"}',
        '{"history": ["tea"], "target": "hose"}',
    ]
    (terminal.folder / "cases.jsonl").write_text("\n".join(rows))
    files = (
        "--cases",
        "cases.jsonl",
        "--catalog",
        "items.csv",
        "--clicks",
        "clicks.csv",
        "--clicks-map",
        "user_id=who",
    )
    refused = terminal.run("evaluate", *files)
    assert "line 2: history: missing" in refused.stderr
    assert "1 of 3 rows of cases.jsonl are no cases" in refused.stderr
    assert (refused.returncode, refused.stdout) == (Exit.FAILED, "")
    printed = terminal.succeeds("evaluate", *files, "--skip-bad", "--rejects", "bad.jsonl", "--json")
    found = json.loads(printed)
    assert (found["protocol"], found["k"]) == ("cases", 10)
    assert {name: sets["targets"] for name, sets in found["methods"]["starter"].items()} == {
        "all": 2,
        "cold": 1,
    }
    assert json.loads((terminal.folder / "bad.jsonl").read_text())["line"] == 2


def test_a_wrong_option_is_one_sentence(terminal: Terminal) -> None:
    cases = [
        (["evaluate", "--at", "noon"], "--at is noon: expected a share of the events such as 0.9, or a date"),
        (["bundle", "compare"], "no bundle named: expected the folders of those to compare"),
        (["evaluate", "--through-the-stream", "--with", "other"], "leave --with out"),
        (["evaluate", "--k", "0"], "--k is 0: expected a whole number from 1 on"),
        (
            ["evaluate", "--catalog", "a.csv"],
            "--catalog goes with a file of cases: expected --cases FILE with it",
        ),
        (["evaluate", "--cases", "a", "--at", "0.5"], "--cases has its own questions: leave --at out"),
    ]
    for sentence, (_, part) in zip(terminal.mistakes(*(words for words, _ in cases)), cases, strict=True):
        assert part in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bundle", "show", "."], "bundle"),
        (["evaluate", "--data", "movielens"], "movielens is no dataset: expected complete-journey"),
        (["evaluate", "--data", "nowhere.csv"], "nowhere.csv is no file: expected a CSV"),
    ],
)
def test_data_or_a_bundle_that_cannot_be_read_is_one_sentence(
    terminal: Terminal, arguments: list[str], sentence: str
) -> None:
    assert sentence in terminal.fails(*arguments, code=Exit.FAILED)


def test_a_bundle_that_knows_the_answers_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((STARTER / "bundle.json").read_bytes())
    manifest["origin"] |= {"data_sha256": "0123", "notes": ["neighbours: none", f"{FROM_ALL} for 7 epochs"]}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    log = Log(["ann"], np.array([0, 1]), np.array([0]), np.array([1]), np.array([1]))
    for fingerprint, knows in (("0123", True), ("4567", False)):
        bundles._tell_known(tmp_path, Dataset("shop", ["a"], None, log, fingerprint))
        assert ("knows the answers" in capsys.readouterr().err) is knows
