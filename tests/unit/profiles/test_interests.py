"""The interests of users at the moment of their requests."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES, MAX_GAP_S, item_key
from headwater.encoder.runtime import Encoder
from headwater.index import IndexUnavailable
from headwater.index.item_vectors import ItemVectors
from headwater.profiles.columns import Columns
from headwater.profiles.encoder_steps import StepEncoder
from headwater.profiles.event_log import Event
from headwater.profiles.interests import UserInterests, WhatIfEvents, interests_of
from tests.support.histories import CLICK, START_MS, apply, canonical_state, cosine
from tests.support.interests_worker import STARTER

F32 = NDArray[np.float32]
ANN, BOB = b"ann", b"bob"
TEXTS = {"coffee": "Ground coffee", "tea": "Green tea bags", "soap": "Hand soap", "new": "Dog food"}
NOTHING = WhatIfEvents([], [], [])
NOW_MS = START_MS + 60_000


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoders.load(STARTER)


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def click(seconds: int, item: str, action: int = CLICK) -> Event:
    return Event(START_MS + seconds * 1000, seconds, item_key(item), action)


class Shop:
    """Items with vectors and users with events, under any encoder."""

    def __init__(
        self, encoder: Any, threads: ThreadPoolExecutor, texts: Encoder, known: Sequence[str]
    ) -> None:
        self.encoder, self.threads = encoder, threads
        self.every = dict(zip(TEXTS, texts.encode_items(list(TEXTS.values())), strict=True))
        self.vectors = ItemVectors(encoder.dim)
        for item in known:
            self.learn(item)
        self.columns = Columns(encoder.log_length, encoder.state_size)
        self._offset = 0

    def learn(self, item: str) -> None:
        self.vectors.put(item_key(item), self.every[item])

    def happened(self, user: bytes, *events: Event, stepper: StepEncoder | None = None) -> None:
        stream = [(user, event) for event in events]
        apply(self.columns, stream, stepper or self.encoder, self.vectors, self._offset)
        self._offset += len(stream)

    async def of(
        self,
        *users: bytes,
        sessions: Mapping[bytes, WhatIfEvents] | None = None,
        now_ms: int = NOW_MS,
        fetch_s: float = 10.0,
        until_ms: Sequence[int] | None = None,
    ) -> list[UserInterests]:
        return await interests_of(
            self.columns,
            users,
            [(sessions or {}).get(user, NOTHING) for user in users],
            np.full(len(users), now_ms, dtype=np.int64),
            self.vectors,
            self.encoder,
            self.threads,
            fetch_s=fetch_s,
            until_ms=None if until_ms is None else np.array(until_ms, dtype=np.int64),
        )


@pytest.fixture
def shop(starter: Encoder, threads: ThreadPoolExecutor) -> Shop:
    return Shop(starter, threads, starter, ["coffee", "tea", "soap"])


def expected(shop: Shop, *events: Event, now_ms: int = NOW_MS) -> F32:
    state, _ = canonical_state(events, shop.vectors, shop.encoder, shop.encoder.state_size)
    last_ms = max((event.at_ms for event in events), default=0)
    gap = np.array([min((now_ms - last_ms) / 1000.0, MAX_GAP_S)], dtype=np.float32)
    interests: F32 = shop.encoder.read(state[None], gap)[0][0]
    return interests


def alike(found: UserInterests, interests: F32) -> bool:
    return all(cosine(one, other) >= 1 - 1e-5 for one, other in zip(found.interests, interests, strict=True))


async def test_interests_are_those_of_the_state_at_the_moment_of_the_request(shop: Shop) -> None:
    events = [click(1, "coffee"), click(5, "tea", ACTION_CODES["purchase"])]
    shop.happened(ANN, *events)
    for now_ms in (NOW_MS, NOW_MS + 400 * 86_400_000):
        (found,) = await shop.of(ANN, now_ms=now_ms)
        assert alike(found, expected(shop, *events, now_ms=now_ms))
    assert found.weights.shape == (len(found.interests),)
    assert found.log is not None
    assert found.log.events(0) == events


async def test_interests_as_they_were_leave_later_events_out_for_those_who_ask(shop: Shop) -> None:
    events = [click(1, "coffee"), click(5, "tea"), click(9, "soap")]
    for user in (ANN, BOB):
        shop.happened(user, *events)
    then, now = await shop.of(ANN, BOB, until_ms=[events[1].at_ms, NOW_MS])
    assert alike(then, expected(shop, *events[:2]))
    assert alike(now, expected(shop, *events))
    assert then.log is not None
    assert then.log.events(0) == events[:2]
    assert (then.last_event, then.pending) == (b"", 0)
    (before,) = await shop.of(ANN, until_ms=[events[0].at_ms - 1])
    assert (len(before.interests), before.log is not None and before.log.n[0]) == (0, 0)
    (after,) = await shop.of(ANN)
    assert alike(after, expected(shop, *events))  # nothing of it is kept


async def test_nobody_has_no_interests_among_users_who_have(shop: Shop) -> None:
    shop.happened(ANN, click(1, "coffee"))
    stranger, ann, other = await shop.of(b"who", ANN, b"else")
    assert stranger.interests.shape == other.interests.shape == (0, shop.encoder.dim)
    assert len(stranger.weights) == 0
    assert stranger.log is not None
    assert stranger.log.events(0) == []
    assert alike(ann, expected(shop, click(1, "coffee")))
    assert [each.interests.shape[0] for each in await shop.of(b"who", b"else")] == [0, 0]


async def test_users_do_not_see_each_others_interests(shop: Shop) -> None:
    shop.happened(ANN, click(1, "coffee"))
    shop.happened(BOB, click(1, "soap"))
    bob, ann = await shop.of(BOB, ANN)
    assert alike(bob, expected(shop, click(1, "soap")))
    assert alike(ann, expected(shop, click(1, "coffee")))


async def test_a_pending_click_is_told_and_counts_once_its_item_has_a_vector(shop: Shop) -> None:
    shop.happened(ANN, click(1, "coffee"), click(2, "new"))
    (before,) = await shop.of(ANN)
    assert before.pending == 1
    assert alike(before, expected(shop, click(1, "coffee")))
    shop.learn("new")
    (after,) = await shop.of(ANN)
    assert after.pending == 0
    assert alike(after, expected(shop, click(1, "coffee"), click(2, "new")))


async def test_a_user_with_nothing_but_pending_clicks_has_no_interests_yet(shop: Shop) -> None:
    shop.happened(ANN, click(2, "new"))
    (found,) = await shop.of(ANN)
    assert (found.interests.shape[0], found.pending) == (0, 1)


async def test_a_state_of_another_bundle_is_never_read(shop: Shop) -> None:
    shop.happened(ANN, click(1, "coffee"))
    row = shop.columns.rows[ANN]
    shop.columns.state[row], shop.columns.stale[row] = 100.0, True
    (found,) = await shop.of(ANN)
    assert alike(found, expected(shop, click(1, "coffee")))


async def test_session_events_are_stepped_on_for_this_answer_alone(shop: Shop) -> None:
    shop.happened(ANN, click(1, "coffee"))
    shop.happened(BOB, click(1, "coffee"))
    before = shop.columns.state.copy()
    what_if = WhatIfEvents(
        [item_key("soap"), item_key("tea")], [CLICK, CLICK], [NOW_MS - 2_000, NOW_MS - 1_000]
    )
    ann, bob = await shop.of(ANN, BOB, sessions={ANN: what_if})
    steps = [
        Event(NOW_MS - 2_000, 90, item_key("soap"), CLICK),
        Event(NOW_MS - 1_000, 91, item_key("tea"), CLICK),
    ]
    assert alike(ann, expected(shop, click(1, "coffee"), *steps))
    assert alike(bob, expected(shop, click(1, "coffee")))
    assert (shop.columns.state == before).all()
    assert ann.log is not None
    assert len(ann.log.events(0)) == 1


async def test_a_session_is_enough_for_a_stranger_and_its_unknown_items_are_left_out(shop: Shop) -> None:
    what_if = WhatIfEvents([item_key("soap"), item_key("no such")], [CLICK, CLICK], [NOW_MS, NOW_MS])
    (found,) = await shop.of(b"who", sessions={b"who": what_if})
    assert alike(found, expected(shop, Event(NOW_MS, 90, item_key("soap"), CLICK)))


async def test_missing_vectors_are_fetched_and_a_failure_to_do_so_is_told(shop: Shop) -> None:
    shop.happened(ANN, click(1, "coffee"), click(2, "new"))
    away = True

    async def fetch(keys: Sequence[int]) -> Mapping[int, F32]:
        if away:
            raise IndexUnavailable("away")
        return {key: shop.every["new"] for key in keys if key == item_key("new")}

    shop.vectors._fetch = fetch
    with pytest.raises(IndexUnavailable):
        await shop.of(ANN)
    (without,) = await shop.of(ANN, fetch_s=0.0)
    assert without.pending == 1
    away = False
    (found,) = await shop.of(ANN)
    assert found.pending == 0
    assert alike(found, expected(shop, click(1, "coffee"), click(2, "new")))


async def test_a_user_erased_while_vectors_are_fetched_does_not_get_the_next_ones_interests(
    shop: Shop,
) -> None:
    shop.happened(ANN, click(1, "coffee"), click(2, "new"))
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def fetch(keys: Sequence[int]) -> Mapping[int, F32]:
        asked.set()
        await go_on.wait()
        return {}

    shop.vectors._fetch = fetch
    asking = asyncio.ensure_future(shop.of(ANN))
    await asked.wait()
    row = shop.columns.rows[ANN]
    shop.columns.remove(ANN)
    shop.happened(BOB, click(9, "soap"))
    assert shop.columns.rows[BOB] == row
    go_on.set()
    (ann,) = await asking
    assert ann.interests.shape[0] == 0
    assert ann.last_event == b""
    assert ann.log is not None
    assert ann.log.events(0) == []


class LastTwo:
    """A windowed encoder whose one interest is the mean of the newest two items; the weight tells the gap to now."""

    kind = "windowed"
    forgets = False
    state_size = 0
    interests = 1

    def __init__(self, dim: int, log_length: int) -> None:
        self.dim, self.log_length = dim, log_length

    def initial_state(self, users: int) -> F32:
        return np.zeros((users, 0), dtype=np.float32)

    def step(self, state: F32, items: F32, actions: Any, gaps_s: F32, mask: F32) -> F32:
        raise AssertionError("a windowed encoder is never stepped")

    def window(
        self, items: F32, actions: NDArray[np.int64], gaps_s: F32, mask: F32, gap_to_now_s: F32
    ) -> tuple[F32, F32]:
        assert ((actions > 0) == (mask > 0)).all()
        assert (np.diff(mask, axis=1) <= 0).all(), "padding is at the end"
        assert (gaps_s[:, 0] == 0).all()
        events = mask.sum(axis=1).astype(int)
        means = [items[i, max(n - 2, 0) : n].mean(axis=0) if n else items[i, 0] for i, n in enumerate(events)]
        return np.stack(means)[:, None, :].astype(np.float32), gap_to_now_s[:, None]


@pytest.fixture
def windowed(starter: Encoder, threads: ThreadPoolExecutor) -> Shop:
    return Shop(LastTwo(starter.dim, 4), threads, starter, ["coffee", "tea", "soap"])


async def test_a_windowed_encoder_sees_the_newest_events_with_the_sessions_last(windowed: Shop) -> None:
    windowed.happened(ANN, click(1, "coffee"), click(2, "tea"), click(3, "coffee"), click(4, "new"))
    windowed.happened(BOB, click(1, "soap"))
    session = WhatIfEvents([item_key("soap"), item_key("no such")], [CLICK, CLICK], [NOW_MS - 5_000, NOW_MS])
    ann, bob, stranger = await windowed.of(ANN, BOB, b"who", sessions={ANN: session})
    every = windowed.every
    assert cosine(ann.interests[0], every["coffee"] + every["soap"]) >= 1 - 1e-6
    assert (ann.pending, ann.weights.tolist()) == (1, [5.0])
    assert cosine(bob.interests[0], every["soap"]) >= 1 - 1e-6
    assert bob.weights.tolist() == [59.0]
    assert stranger.interests.shape[0] == 0


async def test_a_windowed_encoder_sees_a_logs_worth_at_most(windowed: Shop) -> None:
    windowed.happened(ANN, *(click(second, "coffee") for second in range(1, 5)))
    session = WhatIfEvents([item_key("soap")] * 6, [CLICK] * 6, [NOW_MS] * 6)
    (found,) = await windowed.of(ANN, sessions={ANN: session})
    assert cosine(found.interests[0], windowed.every["soap"]) >= 1 - 1e-6
