"""The checks of the doctor stand alone: one that breaks, or takes too long, reports itself, and the others go on."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from headwater.commands import bundle_checks, doctor, group_checks
from headwater.commands.findings import Check, Finding, System, run
from headwater.errors import HeadwaterError
from headwater.index.vectors_topic import claim_of_owner, offer_record_of
from headwater.kafka import topics
from headwater.kafka.topics import Topics
from headwater.messages import Item, Trend, encode
from headwater.settings import Settings

NOWHERE = System(Settings(kafka_bootstrap_servers="127.0.0.1:1"), None)


async def well(_: System) -> AsyncIterator[Finding]:
    yield Finding("well", True, "as it has to be")


async def broken(_: System) -> AsyncIterator[Finding]:
    yield Finding("half", True, "seen before it broke")
    raise ZeroDivisionError("oh")


async def told(_: System) -> AsyncIterator[Finding]:
    raise HeadwaterError("do\n  this")
    yield


async def endless(_: System) -> AsyncIterator[Finding]:
    await asyncio.sleep(600)
    yield Finding("endless", True, "never")


async def test_a_check_that_breaks_reports_itself_and_the_others_go_on() -> None:
    checks = [Check("broken", broken), Check("told", told), Check("well", well)]
    half, itself, sentence, last = await run(checks, NOWHERE)
    assert (half.what, half.ok) == ("half", True)
    assert str(itself).startswith("WRONG  broken: this check itself is broken (ZeroDivisionError: oh)")
    assert str(sentence) == "WRONG  told: do this"
    assert last == Finding("well", True, "as it has to be")


async def test_a_check_that_hangs_is_left_after_its_time() -> None:
    hung, last = await run([Check("endless", endless), Check("well", well)], NOWHERE, limit_s=0.05)
    assert (hung.what, hung.ok) == ("endless", False)
    assert "expected 0.05 s at most" in hung.seen
    assert last.ok


async def test_without_a_broker_only_what_needs_none_is_looked_at() -> None:
    found = await doctor.examine(NOWHERE.settings, None)
    assert [(each.what, each.ok) for each in found] == [("broker", False), ("bundle", True), ("worker", True)]


@pytest.mark.parametrize(
    ("skew_s", "said"),
    [
        (None, None),
        (0.2, None),
        (2.5, "2.5 s ahead of the broker's, expected 0.5 s at most"),
        (-60, "60 s behind"),
    ],
)
async def test_a_worker_whose_clock_is_off_is_found(
    monkeypatch: pytest.MonkeyPatch, skew_s: float | None, said: str | None
) -> None:
    health = msgspec.json.encode({"ok": True, "ready": True, "role": "all", "clock_skew_s": skew_s})
    monkeypatch.setattr(doctor, "http_get", lambda *_: (200, health))
    found = [each async for each in doctor._of_worker(System(NOWHERE.settings, "127.0.0.1:8080"))]
    clocks = [each for each in found if each.what == "clock"]
    assert [(each.ok, said is not None and said in each.seen) for each in clocks] == [(False, True)] * (
        said is not None
    )


async def test_users_whose_state_a_newer_version_wrote_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    health = msgspec.json.encode({"ok": True, "ready": True, "newer_format_users": 3})
    monkeypatch.setattr(doctor, "http_get", lambda *_: (200, health))
    found = [each async for each in doctor._of_worker(System(NOWHERE.settings, "127.0.0.1:8080"))]
    (seen,) = [each.seen for each in found if not each.ok]
    assert "the states of 3 users" in seen
    assert "headwater dlq redrive --reason newer_format" in seen


@pytest.mark.parametrize(
    ("catalog", "interests", "ok"),
    [
        ([], None, True),
        (["a", "a"], None, True),
        (["a"], "a", True),
        (["a"], "b", False),
        (["a", "b"], "a", False),
    ],
)
async def test_roles_with_different_bundles_are_found(
    settings: Settings, catalog: list[str], interests: str | None, ok: bool
) -> None:
    await topics.create(settings)
    names = Topics.named(settings.topic_prefix)
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for partition, bundle in enumerate(catalog):
            claim = claim_of_owner(1, 0, bundle)
            await producer.send_and_wait(
                names.vectors, claim.value, claim.key, partition, headers=list(claim.headers)
            )
            for number in range(20):  # offers name no bundle, and come in great numbers
                offers = offer_record_of(f"item {number}", None, 0, 1)
                await producer.send(
                    names.vectors, offers.value, offers.key, partition, headers=list(offers.headers)
                )
        await producer.flush()
        if interests is not None:
            await producer.send_and_wait(names.trends, encode(Trend(0, 0, 100.0, [], bundle=interests)), b"0")
    (found,) = [each async for each in bundle_checks.roles(System(settings, None))]
    assert (found.what, found.ok) == ("bundles", ok)
    assert all(bundle in found.seen for bundle in catalog)
    assert ("give both roles the same HEADWATER_BUNDLE" in found.seen) != ok


@pytest.mark.parametrize(
    ("titles", "ok"),
    [(["Green tea", "Ground coffee"], True), (["绿茶", "咖啡豆", "Ground coffee"], False), ([], None)],
)
async def test_texts_that_the_bundle_cannot_read_are_told_with_the_remedy(
    settings: Settings, titles: list[str], ok: bool | None
) -> None:
    await topics.create(settings)
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        catalog = Topics.named(settings.topic_prefix).catalog
        for number, title in enumerate(titles):
            item = Item(f"item-{number}", title=title)
            await producer.send_and_wait(catalog, encode(item), item.item_id.encode())
    found = [each async for each in bundle_checks.texts(System(settings, None))]
    assert [each.ok for each in found] == ([] if ok is None else [ok])
    if ok is False:
        assert "cannot read 2 items, such as" in found[0].seen
        assert "headwater export --model" in found[0].seen


def test_every_check_has_a_name() -> None:
    assert all(check.what for check in doctor.CHECKS)


@pytest.mark.parametrize(("age_s", "stands"), [(0, False), (3600, True)])
async def test_a_request_stands_once_it_is_older_than_any_may_wait(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, age_s: int, stands: bool
) -> None:
    """Nobody has to wait for a minute to learn it: the record's own time says so."""
    await topics.create(settings)
    requests = Topics.named(settings.topic_prefix).requests
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        await producer.send_and_wait(requests, b"{}", partition=1)
    now = datetime.now(UTC).timestamp()
    monkeypatch.setattr(group_checks.time, "time", lambda: now + age_s)
    system = System(settings, None)
    async with system.admin() as admin, system.consumer() as consumer:
        lags = await group_checks._lags(admin, consumer, settings.interests_group, [requests])
        assert lags[TopicPartition(requests, 1)].records == 1
        standing = await group_checks._standing(admin, consumer, settings.interests_group, lags, requests)
    assert standing == ([f"{requests} 1 (at offset 0)"] if stands else [])
