"""Records of the vectors topic as tests look at them."""

from collections.abc import Iterable

from aiokafka import ConsumerRecord

from headwater.index import Point
from headwater.index.vectors_topic import VectorRecord, read_record


def points_of(records: Iterable[ConsumerRecord]) -> list[Point]:
    """The points among the records, deletes included, in their order; owners' claims are left out."""
    read = (read_record(record) for record in records)
    return [each.point for each in read if isinstance(each, VectorRecord)]
