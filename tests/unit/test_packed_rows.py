"""Small records by 64-bit keys, in sorted columns."""

import random

import numpy as np

from headwater.packed_rows import _LEAST_MERGED, PackedRows

FIELDS = np.dtype([("value", "i8"), ("age", "u4")])


def packed() -> PackedRows:
    return PackedRows(FIELDS, np.uint64)


def test_each_key_has_the_record_that_was_last_put_and_removed_ones_have_none() -> None:
    rows, expected, draw = packed(), dict[int, tuple[int, int]](), random.Random(3)
    keys = [draw.getrandbits(64) for _ in range(3 * _LEAST_MERGED)]
    for number in range(20 * _LEAST_MERGED):
        key = draw.choice(keys)
        if draw.random() < 0.3:
            rows.remove(key)
            expected.pop(key, None)
        else:
            rows.put(key, (draw.randrange(-(2**63), 2**63), number))
            expected[key] = rows.get(key) or (0, 0)
            assert expected[key][1] == number
        assert len(rows) == len(expected)
    assert {key: rows.get(key) for key in keys} == {key: expected.get(key) for key in keys}


def test_records_of_a_lower_age_are_forgotten_once_they_are_enough() -> None:
    rows = packed()
    for key in range(1_000):
        rows.put(key, (key, key))
    assert rows.forget_before(50) == 0
    assert rows.forget_before(200) == 200
    assert (rows.get(199), rows.get(200), len(rows)) == (None, (200, 200), 800)


def test_the_oldest_records_are_forgotten() -> None:
    rows = packed()
    for key in range(1_000):
        rows.put(key, (key, 1_000 - key))
    rows.forget_oldest(990)
    assert [key for key in range(1_000) if rows.get(key) is not None] == list(range(10))


def test_a_record_takes_its_own_bytes_and_those_of_its_key() -> None:
    rows = packed()
    for key in range(8 * _LEAST_MERGED):
        rows.put(key, (key, 0))
    assert rows.nbytes == len(rows) * (FIELDS.itemsize + 8)
