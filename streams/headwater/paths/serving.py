"""What a batch is served with. A path asks for it once per batch, so all of one batch is of one bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headwater.encoder.runtime import Encoder
from headwater.index import Index
from headwater.index.item_vectors import ItemVectors
from headwater.recall.pipeline import Recall


@dataclass(frozen=True, slots=True)
class Serving:
    """A bundle and everything that belongs to it.

    Attributes:
        vectors: what user encoders step on; empty in a worker that steps none.
        index: None in a catalog worker whose items each interests worker indexes for itself.
        recall: the sources over the index; None in a worker that answers no requests.
        catalog: the offset that the index has reached in each catalog partition.
        has_other_bundle: the catalog is encoded by another bundle now, so its changes do not reach this index.
        is_index_ready: False while the index is still being filled.
    """

    encoder: Encoder
    vectors: ItemVectors
    index: Index | None = None
    recall: Recall | None = None
    catalog: Mapping[int, int] = field(default_factory=dict)
    is_index_ready: bool = True
    has_other_bundle: bool = False
