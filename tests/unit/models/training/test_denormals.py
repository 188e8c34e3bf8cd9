"""Denormals are zero while training, and only then."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.training.denormals import flushed_denormals  # noqa: E402 - needs torch


def halved() -> float:
    """Half of a number near the smallest normal one: a denormal."""
    return float(torch.tensor(2e-38) / 4)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot flush denormals")
def test_denormals_are_zero_inside_and_numbers_again_after() -> None:
    assert halved() > 0
    with flushed_denormals():
        assert halved() == 0
    assert halved() > 0


def test_an_error_inside_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), flushed_denormals():
        raise ZeroDivisionError
    assert halved() > 0
