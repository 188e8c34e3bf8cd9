"""What is committed beside an offset is read back, whoever wrote it, and an old gap is not told for ever."""

import pytest

from headwater.kafka.commit_notes import CommitNote, note_of, note_text
from headwater.messages import Gap

WEEK_MS = 7 * 86_400_000


@pytest.mark.parametrize("note", [CommitNote(), CommitNote("aa"), CommitNote("aa", Gap(3, 7), 1_000, 5)])
def test_a_note_is_read_as_it_was_written(note: CommitNote) -> None:
    assert note_of(note_text(note)) == note


@pytest.mark.parametrize(
    "text", [None, "", "somebody's", "[]", '{"x": ' + "[" * 4_000, '{"gap": 7}', "\udcff", '{"topic_id": 7}']
)
def test_what_others_committed_says_nothing(text: str | None) -> None:
    assert note_of(text) == CommitNote()


def test_a_gap_is_told_for_a_week() -> None:
    note = CommitNote("aa", Gap(3, 7), 1_000, 5)
    assert note.without_old_gap(1_000 + WEEK_MS - 1) == note
    assert note.without_old_gap(1_000 + WEEK_MS) == CommitNote("aa", leader_epoch=5)
