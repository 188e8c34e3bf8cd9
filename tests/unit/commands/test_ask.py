"""`headwater click`, `ask` and `user`: beside a running system, and without one."""

import json
from datetime import UTC, datetime

import jsonschema

from headwater.commands.terminal import Exit
from headwater.messages import SESSION_ACTIONS, schemas
from tests.support.terminal import Terminal


def test_a_wrong_option_is_one_sentence_and_nothing_is_asked(terminal: Terminal) -> None:
    cases = [
        (["--after", "3"], "--after is 3: expected partition-offset"),
        (
            ["--after", "3:1", "--after-event-id", "e"],
            "--after and --after-event-id: expected one of the two",
        ),
        (["--filter", "{"], "--filter is {: expected JSON"),
        (["--filter", "[1]"], "--filter is [1]: expected a JSON object"),
        (["--session", "c1:hide"], f"expected one of the actions {', '.join(SESSION_ACTIONS)}"),
        (["--sources", "trends=1"], "--sources is trends=1: expected NAME=WEIGHT"),
        (["--sources", "new=much"], "--sources is new=much: expected NAME=WEIGHT"),
        (["--at", "noon"], "--at is noon: expected a date and time such as"),
        (["--until", "noon"], "--until is noon: expected a date and time such as"),
    ]
    told = terminal.mistakes(*(["ask", "ann", *options] for options, _ in cases))
    for sentence, (_, part) in zip(told, cases, strict=True):
        assert part in sentence


def test_a_retraction_has_to_name_its_event(terminal: Terminal) -> None:
    (sentence,) = terminal.mistakes(["click", "ann", "--action", "retract"])
    assert "--action retract: expected --event-id with it" in sentence


def test_arguments_of_any_bytes_and_length_are_refused_in_a_sentence(terminal: Terminal) -> None:
    told = terminal.mistakes(
        ["user", "\udcff"],
        ["user", ""],
        ["user", "x" * 9_000],
        ["ask", "ann", "--filter", "[" * 50_000],
        ["ask", "ann", "--filter", "\udcff"],
    )
    for sentence, part in zip(
        told,
        ["expected valid Unicode", "got 0 bytes", "got 9000 bytes", "expected JSON", "expected JSON"],
        strict=True,
    ):
        assert part in sentence
        assert len(sentence) < 400


def test_a_user_is_looked_up_at_a_worker_of_this_machine_only(terminal: Terminal) -> None:
    sentence = terminal.fails("user", "ann", code=Exit.UNREACHABLE)
    assert (
        "no running worker that serves users' data is known here: start one with `headwater up`" in sentence
    )


def test_ask_waits_for_the_last_click_from_another_terminal(beside_up: Terminal) -> None:
    partition, offset = map(int, beside_up.succeeds("click", "ann", "c1", "--action", "purchase").split("-"))
    answer = json.loads(beside_up.succeeds("ask", "ann", "--json"))
    jsonschema.validate(answer, schemas()["Response"])
    assert answer["status"] == "ok"
    assert answer["reflects"]["partition"] == partition
    assert answer["reflects"]["offset"] >= offset
    assert answer["reflects"]["events"] == 1
    assert [item["item_id"] for item in answer["items"]] == ["c2", "t1"]
    assert answer["items"][0]["because"][0]["item_id"] == "c1"


def test_ask_prints_titles_and_one_reason_for_each_item(beside_up: Terminal) -> None:
    beside_up.succeeds("click", "bob", "t1", "--action", "purchase")
    printed = beside_up.succeeds("ask", "bob", "--limit", "2")
    assert "Espresso coffee beans" in printed
    assert printed.count("because you bought Green tea just now") == 2
    assert "similarity" in printed
    assert "reflects 1 event up to" in printed


def test_ask_leaves_reasons_out_on_demand(beside_up: Terminal) -> None:
    beside_up.succeeds("click", "gus", "t1")
    printed = beside_up.succeeds("ask", "gus", "--no-explain")
    assert "Espresso coffee beans" in printed
    assert "because" not in printed
    plain, told = (
        json.loads(beside_up.succeeds("ask", "gus", "--json", flag))["items"]
        for flag in ("--no-explain", "--explain")
    )
    assert [item["item_id"] for item in plain] == [item["item_id"] for item in told]
    assert not any("similarity" in item for item in plain)
    assert all(-1 <= item["similarity"] <= 1 for item in told)


def test_a_short_answer_says_why(beside_up: Terminal) -> None:
    beside_up.succeeds("click", "hal", "c1")
    done = beside_up.run("ask", "hal", "--filter", '{"category": "wine"}')
    assert done.returncode == 0
    assert "no items of 10" in done.stderr
    assert "interests: no more items match the filter" in done.stderr.replace(", popular", "")


def test_ask_takes_filters_exclusions_and_sessions(beside_up: Terminal) -> None:
    def asked(*options: str) -> list[str]:
        return [
            item["item_id"]
            for item in json.loads(beside_up.succeeds("ask", "cat", "--json", *options))["items"]
        ]

    assert asked("--session", "c1", "--filter", '{"category": "tea"}') == ["t1"]
    assert asked("--session", "c1", "--exclude", "c2") == ["t1"]
    assert set(asked("--session", "c1", "--include-seen")) == {"c1", "c2", "t1"}
    assert asked("--query", "espresso coffee beans", "--limit", "1") == ["c2"]


def test_ask_takes_sources_times_and_session_actions(beside_up: Terminal) -> None:
    bought = datetime(2026, 11, 20, 12, tzinfo=UTC)
    beside_up.succeeds(
        "click", "ida", "t1", "--action", "purchase", "--at-ms", str(int(bought.timestamp() * 1000))
    )
    printed = beside_up.succeeds("ask", "ida", "--at", "2026-11-23T12:00", "--sources", "interests=1")
    assert "because you bought Green tea 3 days ago" in printed
    answer = json.loads(beside_up.succeeds("ask", "jim", "--json", "--session", "c1:like"))
    assert answer["items"][0]["item_id"] == "c2"


def test_what_a_worker_refuses_is_one_sentence_with_an_exit_code_of_its_own(beside_up: Terminal) -> None:
    assert "limit: got 0" in beside_up.fails("ask", "ann", "--limit", "0", code=Exit.USAGE)
    assert "filter.colour: unknown field" in beside_up.fails(
        "ask", "ann", "--filter", '{"colour": "red"}', code=Exit.REJECTED
    )
    assert "expired" in beside_up.fails(
        "ask", "ann", "--after", "0:999999", "--deadline-ms", "200", code=Exit.EXPIRED
    )
    assert "user_id" in beside_up.fails("click", "u" * 600, "c1", code=Exit.USAGE)


def test_user_shows_the_events_with_titles(beside_up: Terminal) -> None:
    beside_up.succeeds("click", "dan", "c2", "--event-id", "e-77")
    beside_up.succeeds("ask", "dan")
    found = json.loads(beside_up.succeeds("user", "dan", "--json"))
    assert [(event["item_id"], event["title"]) for event in found["events"]] == [
        ("c2", "Espresso coffee beans")
    ]
    assert found["last_event_id"] == "e-77"
    assert "Espresso coffee beans" in beside_up.succeeds("user", "dan")
    assert "user 'nobody' has no events yet" in beside_up.fails("user", "nobody", code=Exit.FAILED)
