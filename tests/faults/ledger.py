"""The oracle: every user's record in the changelog against what was published, computed in plain Python."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from aiokafka import ConsumerRecord

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES, event_key, item_key
from headwater.encoder.runtime import Encoder
from headwater.index.item_vectors import ItemVectors
from headwater.profiles.columns import Columns
from headwater.profiles.event_log import Event
from headwater.profiles.state_records import bundle_key, unpack
from tests.end_to_end.outside import Outside
from tests.end_to_end.story import Story, newest_events
from tests.support.histories import canonical_state, cosine
from tests.support.vector_records import points_of

_SAME: float = 1 - 1e-6


async def check_every_user(outside: Outside, story: Story) -> None:
    """The newest record of each user holds exactly the story's events, in order, and the state that they fold to."""
    encoder = encoders.load(outside.settings.bundle_path)
    columns = await _stored(outside, encoder)
    vectors = await _vectors(outside, encoder)
    wrong = [
        f"{user}: {found}"
        for user in story.users
        if (found := _difference(columns, user.encode(), story.events(user), vectors, encoder))
    ]
    assert not wrong, f"{len(wrong)} of {len(story.users)} users: {'; '.join(wrong[:10])}"


async def check_no_commit_is_ahead(outside: Outside) -> int:
    """What the group has committed is in the changelog: each user's record covers all clicks of theirs below the
    committed offset, and holds exactly those up to the offset that it names. Returns how many clicks are committed.
    """
    committed = await outside.committed(outside.settings.interests_group, outside.topics.clicks)
    encoder = encoders.load(outside.settings.bundle_path)
    columns = await _stored(outside, encoder)  # after the offsets: it may only have grown since
    vectors = await _vectors(outside, encoder)
    clicks: dict[bytes, list[ConsumerRecord]] = {}
    for record in await outside.records_of(outside.topics.clicks):
        clicks.setdefault(record.key, []).append(record)
    wrong = []
    for user, records in clicks.items():
        row = columns.rows.get(user)
        covered = int(columns.offset[row]) if row is not None else -1
        below = [each.offset for each in records if each.offset < committed.get(each.partition, 0)]
        events = [json.loads(each.value) for each in records if each.offset <= covered]
        if below and below[-1] > covered:
            wrong.append(f"{user.decode()}: covered up to {covered}, committed past {below[-1]}")
        elif found := _difference(columns, user, newest_events(events), vectors, encoder):
            wrong.append(f"{user.decode()} up to {covered}: {found}")
    assert not wrong, f"{len(wrong)} of {len(clicks)} users: {'; '.join(wrong[:10])}"
    return sum(committed.values())


def _difference(
    columns: Columns, user: bytes, events: Sequence[Mapping[str, Any]], vectors: ItemVectors, encoder: Encoder
) -> str:
    """What is stored of a user against these events; empty where it is the same."""
    expected = [
        Event(
            each["at_ms"],
            event_key(each["event_id"]),
            item_key(each["item_id"]),
            ACTION_CODES[each["action"]],
        )
        for each in events
    ]
    row = columns.rows.get(user)
    found = columns.log(np.array([row])).events(0) if row is not None else []
    if found != expected:
        return f"{len(found)} events, expected {len(expected)}"
    if row is None:
        return ""
    state, pending = canonical_state(expected, vectors, encoder, encoder.state_size)
    alike = cosine(columns.state[row], state.astype(np.float16))
    if not pending and alike >= _SAME:
        return ""
    return (
        f"another state, cosine {alike:.7f}; {pending} of its items have no vector, "
        f"{columns.pending[row]} by its record"
    )


async def _stored(outside: Outside, encoder: Encoder) -> Columns:
    """The changelog as compaction will leave it."""
    newest = {record.key: record.value for record in await outside.records_of(outside.topics.profiles)}
    live = {user: value for user, value in newest.items() if value is not None}
    columns = Columns(encoder.log_length, encoder.state_size)
    rows = np.array([columns.add(user) for user in live], dtype=np.int64)
    unpack(columns, rows, list(live.values()), bundle_key(encoder.id))
    return columns


async def _vectors(outside: Outside, encoder: Encoder) -> ItemVectors:
    vectors = ItemVectors(encoder.dim)
    for point in points_of(await outside.records_of(outside.topics.vectors)):
        if point.vector is not None:
            vectors.put(point.key, point.vector)
    return vectors
