"""Text of strangers before a terminal shows it."""

import json

import pytest

from headwater.plain_text import plain, plain_json

STEERING = {
    "an escape sequence": ("\x1b[2J", "\\x1b[2J"),
    "an escape sequence of one byte": ("\x9b31m", "\\x9b31m"),
    "a bell": ("\x07", "\\x07"),
    "a line of its own": ("tea\nok", "tea\\nok"),
    "the start of the line": ("tea\rok", "tea\\rok"),
    "the end of a paragraph": ("tea\u2029", "tea\\u2029"),
    "letters that run the other way": ("\u202egpj.exe", "\\u202egpj.exe"),
    "letters that nobody sees": ("tea\U000e0041", "tea\\U000e0041"),
    "half a character": ("\ud800", "\\ud800"),
}


@pytest.mark.parametrize("kind", STEERING)
def test_what_would_steer_a_terminal_is_escaped(kind: str) -> None:
    given, expected = STEERING[kind]
    assert plain(given) == expected


@pytest.mark.parametrize(
    "text", ["Grüner Tee, 3,20 €", "緑茶\u3000一番", "می\u200cخواهم", "👩\u200d👧", "[b]tea[/b]"]
)
def test_titles_of_all_scripts_stay_as_they_are(text: str) -> None:
    assert plain(text) == text
    assert plain_json(text) == text


def test_some_characters_may_be_kept() -> None:
    assert plain("a\n\tb\x1b", kept="\n") == "a\n\\tb\\x1b"


@pytest.mark.parametrize("kind", STEERING)
def test_json_keeps_its_values(kind: str) -> None:
    given, _ = STEERING[kind]
    spelt = json.dumps({"title": given}, ensure_ascii=False, indent=2)
    safe = plain_json(spelt)
    assert json.loads(safe) == {"title": given}
    assert plain(safe, kept="\n") == safe
