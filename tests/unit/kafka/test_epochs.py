"""Epochs of a partition's owners: they only rise, and order records only after what the records rest on."""

from collections.abc import Sequence

import pytest
from aiokafka import ConsumerRecord

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka import epochs
from headwater.kafka.epochs import CLAIM_KEY, MAX_EPOCH, claim_record, next_epoch, pass_over_higher
from headwater.kafka.headers import CLAIM, Claim
from headwater.kafka.skipped import SkippedRecords
from headwater.metrics import Metrics


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
    assert CLAIM.of(record.headers) == Claim(3, topic_id="x")
    assert CLAIM_KEY.decode(errors="ignore").encode() != CLAIM_KEY


FORGED = ConsumerRecord("profiles.v1", 0, 7, 0, 0, b"ann", b"", None, 0, 0, ())


async def passed_over(monkeypatch: pytest.MonkeyPatch, said: Sequence[bool], owned: Sequence[bool]) -> None:
    """The broker says ``said``, one after the other, and the worker knows ``owned`` each time."""
    monkeypatch.setattr(epochs, "_ASKED_AGAIN_S", 0.0)
    monkeypatch.setattr(epochs, "_REBALANCE_S", 0.0 if not said[-1] and all(owned) else 60.0)
    told, known = iter(said), iter(owned)

    async def is_member() -> bool:
        return next(told)

    def require() -> None:
        if not next(known):
            raise PartitionLost

    await pass_over_higher(FORGED, 9, 4, require, is_member, SkippedRecords(Metrics()))


async def test_a_record_that_no_owner_wrote_is_passed_over_in_a_rebalance_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it is under way, the broker says of nobody that the partition is theirs."""
    await passed_over(monkeypatch, [False, False, True], [True, True, True])
    with pytest.raises(PartitionLost):
        await passed_over(monkeypatch, [False, False], [True, False])
    with pytest.raises(StopWorker, match="offset 7 was written in epoch 9, expected at most ours, 4"):
        await passed_over(monkeypatch, [False], [True])
