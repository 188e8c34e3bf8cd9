"""`headwater dlq`: what is refused before anything is looked at, and how a stranger's bytes are shown."""

import re
from pathlib import Path

import pytest
from aiokafka import ConsumerRecord

from headwater.commands import dlq
from headwater.commands.terminal import UsageError
from headwater.kafka.dead_letters import REASONS
from headwater.kafka.headers import dead_letter_headers
from headwater.kafka.letter_text import hex_lines
from headwater.kafka.letters import Letters, Wanted, letter_of
from headwater.settings import Settings
from tests.support.checkout import ROOT
from tests.support.terminal import Terminal

SETTINGS = Settings(topic_prefix="shop.")


def test_mistakes_are_told_with_what_is_expected(terminal: Terminal) -> None:
    place, topic, rate, tries, nothing, both, since = terminal.mistakes(
        ("dlq", "show", "clicks-1-2"),
        ("dlq", "list", "--topic", "profiles"),
        ("dlq", "redrive", "--all", "--rate", "0"),
        ("dlq", "redrive", "--all", "--max-tries", "0"),
        ("dlq", "redrive"),
        ("dlq", "purge", "--all", "--key", "ann"),
        ("dlq", "list", "--since", "yesterday"),
    )
    assert "expected TOPIC/PARTITION/OFFSET" in place
    assert "expected one of catalog, clicks, dead-letters, offers, requests" in topic
    assert "--rate is 0: expected letters a second" in rate
    assert "--max-tries is 0: expected 1 or more" in tries
    assert "expected a filter (--reason, --topic, --since or --key), or --all" in nothing
    assert "and not both" in both
    assert "expected a date and time" in since


def test_an_unknown_reason_is_a_mistake_and_one_that_no_letter_has_is_none() -> None:
    letters = Letters()
    headers = dead_letter_headers("of_a_newer_version", "why", "shop.clicks.v1", 0, 1, b"ann")
    letters.add(ConsumerRecord("dead", 0, 0, 0, 0, b"k", b"{", None, 0, 0, tuple(headers)))
    dlq._check_reasons(Wanted(reasons=("bad_json", "of_a_newer_version")), letters)
    with pytest.raises(
        UsageError, match="--reason is bad_jsno: expected one of bad_correlation_id, bad_field"
    ):
        dlq._check_reasons(Wanted(reasons=("bad_jsno",)), letters)


def test_every_reason_that_a_worker_can_give_says_what_mends_it() -> None:
    """Those on our own topics are told apart: they are skipped there, and become no letters."""
    streams = ROOT / "streams" / "headwater"
    paths: list[Path] = [streams / "messages.py", *sorted((streams / "paths").glob("*.py"))]
    paths += [streams / "kafka" / name for name in ("forwarding.py", "publish.py", "fast_client/records.py")]
    given: set[str] = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        given |= set(re.findall(r'(?:BadMessage\(\s*|DeadLetter\(\s*[^"\n]+,\s*)"([a-z_0-9]+)"', text))
        given |= set(re.findall(r'(?:_pass\([^"\n]+, |Error: )"([a-z_0-9]+)"', text))
    assert {"bad_json", "misrouted", "corrupt", "too_large", "key_collision"} <= given
    assert given <= set(REASONS), given - set(REASONS)


def test_a_time_is_an_age_or_a_date() -> None:
    assert dlq._since_ms("90m", 10_000_000) == 10_000_000 - 90 * 60_000
    assert dlq._since_ms("1970-01-01T00:00:01", 0) == 1_000
    chosen = dlq.LetterFilter(["bad_json"], ["clicks"], None, "ann")
    assert chosen.wanted(SETTINGS) == Wanted(("bad_json",), ("shop.clicks.v1",), None, b"ann")


def test_bytes_of_strangers_cannot_steer_a_terminal() -> None:
    assert hex_lines(b"A\x1b" + bytes(15)) == [
        "000000  41 1b 00 00 00 00 00 00 00 00 00 00 00 00 00 00  A...............",
        "000010  00                                               .",
    ]
    assert dlq._pretty(b'{"a":1}') == '{\n  "a": 1\n}'
    assert dlq._pretty(b"\xff{") == "\\xff{"


def test_a_letter_is_shown_with_what_this_version_makes_of_it() -> None:
    value = b'{"event_id":"e","user_id":"ann","item_id":"tea","at_ms":1700000000000}'
    headers = dead_letter_headers("misrouted", "why", "shop.clicks.v1", 3, 40, b"ann", original=[("n", None)])
    record = ConsumerRecord(
        "shop.dead-letters.v1", 0, 7, 9, 0, b"shop.clicks.v1/3/40", value, None, 0, 0, tuple(headers)
    )
    letter = letter_of(record)
    assert letter is not None
    shown = dlq._described(SETTINGS, letter, record)
    assert (shown["place"], shown["letter"]) == ("shop.clicks.v1/3/40", "shop.dead-letters.v1/0/7")
    assert (shown["key"], shown["text"], shown["now"]) == ("ann", value.decode(), "")
    assert shown["headers"] == [["n", None, None]]
    assert "key_mismatch" in dlq._complaint(SETTINGS, letter, value.replace(b"ann", b"bob"))
