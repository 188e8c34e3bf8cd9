"""The user encoder of the bundle of groceries: a decayed sum of what was clicked, which forgets by events and by time."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater.encoder.features import ACTION_CODES  # noqa: E402 - after the skip
from headwater_models.networks.groceries_encoder import GroceriesEncoder, GroceriesEncoderConfig  # noqa: E402 - needs torch

DIM = 16
CLICK = ACTION_CODES["click"]


@pytest.fixture
def encoder() -> GroceriesEncoder:
    torch.manual_seed(0)
    return GroceriesEncoder(GroceriesEncoderConfig(dim=DIM, state=32, hidden=16)).eval()


def log(count: int, action: int = CLICK, gap_s: float = 60.0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return (
        torch.randn(1, count, DIM),
        torch.full((1, count), action),
        torch.full((1, count), gap_s),
        torch.ones(1, count),
    )


def test_event_by_event_is_all_at_once(encoder: GroceriesEncoder) -> None:
    given, empty = log(7), torch.zeros(1, 32)
    state = empty
    for place in range(7):
        state = encoder.step(state, *(part[:, place : place + 1] for part in given))
    torch.testing.assert_close(state, encoder.step(empty, *given), atol=1e-5, rtol=1e-5)


def test_a_state_keeps_less_after_a_long_pause(encoder: GroceriesEncoder) -> None:
    state, (items, actions, _, mask) = torch.ones(1, 32), log(1)
    soon = encoder.step(state, 0 * items, actions, torch.zeros(1, 1), mask)
    late = encoder.step(state, 0 * items, actions, torch.full((1, 1), 60 * 86_400.0), mask)
    assert (late < soon).all()


def test_after_fifty_events_older_ones_leave_no_trace(encoder: GroceriesEncoder) -> None:
    newest = log(50)
    from_nothing = encoder.step(torch.zeros(1, 32), *newest)
    from_much = encoder.step(torch.ones(1, 32), *newest)
    torch.testing.assert_close(from_nothing, from_much, atol=1e-3, rtol=0)


def test_actions_that_say_nothing_of_taste_start_without_weight(encoder: GroceriesEncoder) -> None:
    state = encoder.step(torch.zeros(1, 32), *log(3, ACTION_CODES["impression"]))
    assert not state.any()


def test_an_untrained_interest_points_where_the_items_do(encoder: GroceriesEncoder) -> None:
    items, actions, gaps, mask = log(1)
    interest = encoder(items, actions, gaps, mask, torch.zeros(1))[0, 0, :-1]
    assert torch.nn.functional.cosine_similarity(interest, items[0, 0, :-1], dim=0) > 0.9
