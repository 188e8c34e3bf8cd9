"""`headwater evaluate` and `bundle`, as processes."""

import json

import pytest

from headwater.commands.terminal import Exit
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
    assert set(found["methods"]) == {"starter", "starter: similar", "starter and similar", *counted}
    quality = found["methods"]["starter"]["all"]
    assert (quality["targets"], quality["hit"]["value"]) == (6, 1.0)  # three of four drinks are seen
    assert "hit@2" in terminal.succeeds(*arguments)


def test_a_wrong_option_is_one_sentence(terminal: Terminal) -> None:
    cases = [
        (["evaluate", "--at", "noon"], "--at is noon: expected a share of the events such as 0.9, or a date"),
        (["bundle", "compare"], "no bundle named: expected the folders of those to compare"),
        (["evaluate", "--through-the-stream", "--with", "other"], "leave --with out"),
        (["evaluate", "--k", "0"], "--k is 0: expected a whole number from 1 on"),
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
