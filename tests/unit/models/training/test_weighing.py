"""Weight of texts and lift of new items are those that find most on validation questions, within what a lift may cost."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.networks.text_beside import Beside
from headwater_models.training.weighing import Found, Part, lifted, tried

# Item 2 is new. By what was learned it is last, by the texts first.
NEW = np.array([False, False, True])
LEARNED = np.array([[0.9, 0.5, 0.0], [0.9, 0.5, 0.0]], dtype=np.float32)
TEXTS = np.array([[0.1, 0.0, 0.9], [0.1, 0.0, 0.9]], dtype=np.float32)


def part(never: np.ndarray | None = None) -> Part:
    nothing = np.zeros((2, 3), dtype=np.bool_)
    return Part(LEARNED, TEXTS, nothing if never is None else never, np.array([0, 2]), np.array([0, 1]))


def test_ndcg_is_of_all_targets_and_of_new_ones_apart() -> None:
    plain, texts, lift = Beside(0.0), Beside(2.0), Beside(0.0, 0.45)
    found = tried([plain, texts, lift], [part(), part()], NEW)
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert found[plain] == pytest.approx(((1 + third) / 2, third))
    assert found[texts] == pytest.approx(((second + 1) / 2, 1.0))
    assert found[lift] == pytest.approx(((1 + third) / 2, third))


def test_items_that_are_out_of_the_ranking_take_no_place_and_are_not_found() -> None:
    never = np.array([[True, False, False], [True, False, False]])
    found = tried([Beside(0.0)], [part(never)], NEW)[Beside(0.0)]
    assert found == pytest.approx((1 / np.log2(3) / 2, 1 / np.log2(3)))


@pytest.mark.parametrize(
    ("found", "cost", "wanted"),
    [
        ({0.0: (0.100, 0.01), 0.1: (0.098, 0.03), 0.2: (0.094, 0.05)}, 0.003, 0.1),  # .2 costs .006
        ({0.0: (0.090, 0.01), 0.1: (0.089, 0.03)}, 0.0, 0.0),
        ({0.0: (0.100, 0.01), 0.1: (0.101, 0.01), 0.2: (0.100, 0.01)}, 0.003, 0.0),
        ({0.0: (0.0, 0.0), 0.1: (0.0, 0.0)}, 0.0, 0.0),
    ],
    ids=["gain", "nothing to spend", "no gain", "nothing found"],
)
def test_a_lift_may_cost_so_much_and_has_to_find_more(
    found: dict[float, tuple[float, float]], cost: float, wanted: float
) -> None:
    assert lifted({lift: Found(*values) for lift, values in found.items()}, cost) == wanted
