"""The oracle: every user's record in the changelog against what was published, computed in plain Python."""

import numpy as np

from streams import encoder as encoders
from streams.catalog import point_of_vector
from streams.columns import Columns
from streams.encoder import Encoder
from streams.features import ACTION_CODES, event_key, item_key
from streams.profile import EVENT_KEY_MASK, Event
from streams.state_records import bundle_key, unpack
from streams.vectors import ItemVectors
from tests.histories import canonical_state, cosine
from tests.kafka.outside import Outside
from tests.kafka.story import Story

_SAME: float = 1 - 1e-6


async def check_every_user(outside: Outside, story: Story) -> None:
    """The newest record of each user holds exactly the story's events, in order, and the state that they fold to."""
    encoder = encoders.load(outside.settings.bundle_path)
    columns = await _stored(outside, encoder)
    vectors = await _vectors(outside, encoder)
    wrong = []
    for user in story.users:
        expected = [
            Event(
                each["at_ms"],
                event_key(each["event_id"]) & EVENT_KEY_MASK,
                item_key(each["item_id"]),
                ACTION_CODES[each["action"]],
            )
            for each in story.events(user)
        ]
        row = columns.rows.get(user.encode())
        found = columns.log(np.array([row])).events(0) if row is not None else []
        if found != expected:
            wrong.append(f"{user}: {len(found)} events, expected {len(expected)}")
        elif row is not None:
            state, pending = canonical_state(expected, vectors, encoder, encoder.state_size)
            alike = cosine(columns.state[row], state.astype(np.float16))
            if pending or alike < _SAME:
                wrong.append(
                    f"{user}: another state, cosine {alike:.7f}; {pending} of its items have no vector, "
                    f"{columns.pending[row]} by its record"
                )
    assert not wrong, f"{len(wrong)} of {len(story.users)} users: {'; '.join(wrong[:10])}"


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
    for record in await outside.records_of(outside.topics.vectors):
        found = point_of_vector(record)
        if found is not None and found[0].vector is not None:
            vectors.put(found[0].key, found[0].vector)
    return vectors
