"""Which items are most alike to others."""

import numpy as np

from headwater.recall.similarity import by_similarity, most_similar


def test_the_item_most_alike_to_any_anchor_comes_first_whatever_its_length() -> None:
    candidates = np.array([[9, 9], [1, 0], [0, 0], [0, 5]], dtype=np.float32)
    near = np.array([[3, 0], [1, 7]], dtype=np.float32)
    assert by_similarity(candidates, near).tolist() == [1, 3, 0, 2]


def test_of_items_without_a_vector_nothing_can_be_said() -> None:
    anchors = [np.array([1, 0], dtype=np.float32)]
    vectors = {7: np.array([1, 9], dtype=np.float32), 8: np.array([1, 1], dtype=np.float32)}
    assert most_similar({7: "far", 8: "near", 9: "gone"}, vectors, anchors) == [(8, "near"), (7, "far")]
    assert most_similar({9: "gone"}, {}, anchors) == []
