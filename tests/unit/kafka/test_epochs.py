"""Epochs of a partition's owners: they only rise, and order records only after what the records rest on."""

from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH, claim_record, next_epoch
from headwater.kafka.headers import Claim, claim_of


def test_an_epoch_rises_though_the_generation_of_the_group_begins_anew() -> None:
    assert next_epoch(highest=12, generation=1) == 13


def test_an_epoch_is_the_generation_while_the_group_lives() -> None:
    """Versions without epochs order by it, and refuse to write where a higher one has written."""
    assert next_epoch(highest=11, generation=14) == 14


def test_an_epoch_stays_one_of_ours() -> None:
    assert next_epoch(MAX_EPOCH, 1) == MAX_EPOCH


def test_a_claim_lasts_under_a_key_that_no_id_is() -> None:
    record = claim_record(Claim(3, topic_id="x"), b"value")
    assert (record.key, record.value) == (CLAIM_KEY, b"value")
    assert claim_of(record.headers) == Claim(3, topic_id="x")
    assert CLAIM_KEY.decode(errors="ignore").encode() != CLAIM_KEY
