"""What all user encoders share: what is predicted from what, the last event, and time that starts by saying nothing."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.networks.gru4rec import GRU4Rec, GRU4RecConfig  # noqa: E402 - needs torch
from headwater_models.networks.sasrec import SASRec, SASRecConfig  # noqa: E402 - needs torch
from headwater_models.networks.user_encoder import Elapsed, Events, at_last  # noqa: E402 - needs torch

DIM = 8


def events(*lengths: int) -> Events:
    width = max(lengths)
    torch.manual_seed(3)
    mask = torch.tensor([[float(place < length) for place in range(width)] for length in lengths])
    return Events(
        torch.randn(len(lengths), width, DIM), torch.ones_like(mask, dtype=torch.int64), 60 * mask, mask
    )


def recurrent() -> GRU4Rec:
    return GRU4Rec(GRU4RecConfig(dim=DIM, hidden=6, dropout=0.0)).eval()


def test_each_event_but_the_first_is_predicted_from_those_before_it() -> None:
    given, encoder = events(4, 2), recurrent()
    vectors, targets = encoder.predictions(given)
    assert targets.tolist() == [[False, True, True, True], [False, True, False, False]]
    assert vectors.shape == (4, 1, DIM)
    # The vector for ann's third event is an answer after her first two.
    two = Events(*(part[:1, :2] for part in given))
    torch.testing.assert_close(vectors[1], encoder.answer(two, given.gaps_s[:1, 2])[0])


def test_at_last_takes_the_last_event_and_place_nought_where_there_is_none() -> None:
    values = torch.arange(6.0).view(3, 2, 1)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert at_last(values, mask)[:, 0].tolist() == [1.0, 2.0, 4.0]


def test_padding_leaves_a_state_as_it_is() -> None:
    encoder, given = recurrent(), events(3)
    state = encoder.step(torch.zeros(1, encoder.state_size), *given)
    nothing = given._replace(mask=torch.zeros_like(given.mask))
    torch.testing.assert_close(encoder.step(state, *nothing), state)


def test_a_window_weighs_nothing_for_a_user_without_events() -> None:
    encoder = SASRec(SASRecConfig(dim=DIM, length=3, dropout=0.0)).eval()
    given = events(3, 1)
    mask = given.mask.clone()
    mask[1] = 0
    _, weights = encoder.window(*given._replace(mask=mask), torch.zeros(2))
    assert weights.tolist() == [[1.0], [0.0]]


def test_a_temperature_makes_scores_cosines() -> None:
    encoder = recurrent()
    vectors = 3 * torch.randn(5, DIM)
    assert encoder.scored(vectors) is vectors
    encoder.temperature = 0.1
    torch.testing.assert_close(encoder.scored(vectors).norm(dim=-1), torch.full((5,), 10.0))


def test_time_says_nothing_before_it_has_learned_and_tells_a_minute_from_a_month_then() -> None:
    elapsed, gaps = Elapsed(DIM), torch.tensor([60.0, 30 * 86_400.0])
    assert not elapsed(gaps).any()
    torch.nn.init.normal_(elapsed.linear.weight)
    minute, month = elapsed(gaps)
    assert (minute - month).abs().max() > 0.1
