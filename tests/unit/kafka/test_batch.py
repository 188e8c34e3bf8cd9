"""The gate where batches wait for the state of their partition."""

import asyncio

import pytest

from headwater.errors import PartitionLost
from headwater.kafka.batch import Gate


async def test_an_open_gate_is_passed_at_once() -> None:
    gate = Gate()
    gate.open()
    await gate.wait_open(0.0)


async def test_a_waiting_batch_passes_when_the_gate_opens() -> None:
    gate = Gate()
    waiting = asyncio.ensure_future(gate.wait_open(None))
    await asyncio.sleep(0)
    gate.open()
    await waiting


async def test_a_gate_that_stays_shut_ends_the_wait_with_its_time() -> None:
    with pytest.raises(TimeoutError):
        await Gate().wait_open(0.001)


@pytest.mark.parametrize("end", [Gate.interrupt, Gate.close])
async def test_a_waiting_batch_is_sent_away_when_the_partition_goes(end: object) -> None:
    gate = Gate()
    waiting = asyncio.ensure_future(gate.wait_open(None))
    await asyncio.sleep(0)
    end(gate)  # type: ignore[operator]
    with pytest.raises(PartitionLost):
        await waiting


async def test_a_batch_of_an_older_generation_does_not_pass_when_the_gate_opens_for_the_next() -> None:
    gate = Gate()
    waiting = asyncio.ensure_future(gate.wait_open(None))
    await asyncio.sleep(0)
    gate.close()
    gate.open()
    with pytest.raises(PartitionLost):
        await waiting


async def test_an_interrupted_gate_can_be_opened_after_it_is_closed() -> None:
    gate = Gate()
    gate.interrupt()
    gate.close()
    gate.open()
    assert gate.is_open
    await gate.wait_open(0.0)


async def test_an_open_gate_survives_an_interruption() -> None:
    gate = Gate()
    gate.open()
    gate.interrupt()
    await gate.wait_open(0.0)
