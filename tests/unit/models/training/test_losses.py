"""Losses against values worked out by hand or by torch's own."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.training import losses  # noqa: E402 - needs torch


def test_the_full_softmax_and_its_gradient_are_those_of_cross_entropy() -> None:
    torch.manual_seed(0)
    users = torch.randn(300, 8, dtype=torch.float64, requires_grad=True)
    items = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (300,))
    wanted = torch.nn.functional.cross_entropy(users @ items.T, targets)
    wanted_grads = torch.autograd.grad(3 * wanted, (users, items))
    got = losses.full_softmax(users, items, targets)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(3 * got, (users, items)), wanted_grads)


def test_the_full_softmax_in_bfloat16_points_where_the_exact_one_does() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(300, 64), torch.randn(500, 64, requires_grad=True)
    targets = torch.randint(0, 500, (300,))
    (exact,) = torch.autograd.grad(torch.nn.functional.cross_entropy(users @ items.T, targets), items)
    (got,) = torch.autograd.grad(losses.full_softmax(users, items, targets), items)
    assert float((got - exact).norm() / exact.norm()) < 0.01


def test_sampling_every_item_as_often_as_expected_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 6)
    targets = torch.tensor([0, 5, 2, 2])
    hits = torch.arange(6) == targets[:, None]
    got = losses.sampled_softmax(scores[torch.arange(4), targets], scores, torch.zeros(6), hits)
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(scores, targets))


def test_an_item_sampled_twice_as_often_as_it_should_counts_once() -> None:
    right, none = torch.tensor([1.0]), torch.zeros(1, 2, dtype=torch.bool)
    got = losses.sampled_softmax(right, torch.tensor([[0.5, 0.5]]), torch.tensor([math.log(2)] * 2), none)
    assert float(got) == pytest.approx(math.log(1 + math.exp(0.5 - 1.0)))


def test_gbce_at_calibration_zero_is_plain_binary_cross_entropy() -> None:
    right, sampled = torch.tensor([0.3]), torch.tensor([[-1.0, 2.0]])
    wanted = math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(2.0))
    assert float(losses.gbce(right, sampled, items=101, calibration=0.0)) == pytest.approx(wanted)


def test_gbce_at_calibration_one_weighs_the_right_item_by_the_share_that_is_sampled() -> None:
    right, sampled = torch.tensor([0.3]), torch.tensor([[-1.0, 2.0]])
    wanted = 0.02 * math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(2.0))
    assert float(losses.gbce(right, sampled, items=101, calibration=1.0)) == pytest.approx(wanted)


def test_bpr_is_the_mean_over_pairs() -> None:
    got = losses.bpr(torch.tensor([1.0]), torch.tensor([[0.0, 3.0]]))
    assert float(got) == pytest.approx((math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(2.0))) / 2)


def test_info_nce_of_two_pairs() -> None:
    views = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    got = losses.info_nce(views, views, temperature=0.5)  # cosines 1 and 0, over 0.5: 2 and 0
    assert float(got) == pytest.approx(math.log(1 + math.exp(-2.0)))


def test_distillation_is_the_kl_of_two_choices() -> None:
    # At temperature 2 the teacher chooses with e^1 : 1, the student with 1 : 1; both again 4 times.
    teacher = math.e / (1 + math.e)
    wanted = 4 * (teacher * math.log(teacher / 0.5) + (1 - teacher) * math.log((1 - teacher) / 0.5))
    got = losses.distillation(torch.tensor([[3.0, 3.0]]), torch.tensor([[2.0, 0.0]]), temperature=2.0)
    assert float(got) == pytest.approx(wanted)
    shifted = losses.distillation(torch.tensor([[5.0, 3.0]]), torch.tensor([[2.0, 0.0]]), temperature=2.0)
    assert float(shifted) == pytest.approx(0, abs=1e-6)
