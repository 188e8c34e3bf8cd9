"""Marks of deletions: what they say of an item, and when they go."""

import numpy as np

from headwater.encoder.features import item_key
from headwater.index import NO_VERSION, VersionStamp
from headwater.index.deletion_marks import DeletionMarks

TEA = item_key("tea")


def test_a_mark_says_at_which_version_its_item_was_deleted() -> None:
    marks = DeletionMarks(10)
    assert marks.get(TEA, "tea") is None
    for stamp in (VersionStamp(NO_VERSION, 3), VersionStamp(2**63 - 1, 2**62)):
        marks.put(TEA, "tea", stamp, 1_800_000_000.0)
        assert marks.get(TEA, "tea") == stamp
    marks.remove(TEA)
    assert marks.get(TEA, "tea") is None


def test_a_mark_may_be_set_at_any_time_that_a_record_says() -> None:
    marks = DeletionMarks(1_000)
    for number in range(600):  # so many that they are packed
        marks.put(number, "tea", VersionStamp(9, 9), (-1e15, -0.001, 1e15, 7.0)[number % 4])
    assert marks.get(3, "tea") == VersionStamp(9, 9)
    marks.sweep(8.0)
    assert (marks.get(2, "tea"), marks.get(3, "tea")) == (VersionStamp(9, 9), None)


def test_a_mark_says_nothing_of_another_item_with_its_key() -> None:
    marks = DeletionMarks(10)
    marks.put(TEA, "tea", VersionStamp(9, 9), 0.0)
    assert marks.get(TEA, "thief") is None


def test_the_oldest_of_too_many_marks_go() -> None:
    marks = DeletionMarks(8)
    for number in range(10):
        marks.put(number, str(number), VersionStamp(0, number), 100.0 + number)
    assert [number for number in range(10) if marks.get(number, str(number))] == list(range(2, 10))


def test_marks_that_were_set_before_are_swept() -> None:
    marks = DeletionMarks(10)
    for number in range(4):
        marks.put(number, str(number), VersionStamp(0, number), 100.0 + number)
    marks.sweep(102.0)
    assert [number for number in range(4) if marks.get(number, str(number))] == [2, 3]


def test_a_mark_takes_32_bytes() -> None:
    marks = DeletionMarks(100_000)
    for key in np.random.default_rng(1).integers(2**63, size=20_000).tolist():
        marks.put(key, str(key), VersionStamp(0, 1), 0.0)
    assert marks._marks.nbytes <= 32 * len(marks)
