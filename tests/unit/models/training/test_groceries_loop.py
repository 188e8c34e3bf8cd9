"""Training learns what is there to be learned, on households whose next purchase is obvious."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater.encoder.features import ACTION_CODES, gaps_s  # noqa: E402 - after the skip
from headwater_models.data.events import Log  # noqa: E402 - after the skip
from headwater_models.networks.groceries_encoder import GroceriesEncoder, GroceriesEncoderConfig  # noqa: E402 - needs torch
from headwater_models.networks.static_tower import StaticTower, StaticTowerConfig, Whitening  # noqa: E402 - needs torch
from headwater_models.training.groceries_loop import (  # noqa: E402 - needs torch
    DAY_MS,
    Examples,
    Texts,
    TrainingConfig,
    start_from_popularity,
    train,
)
from headwater_models.training.losses import first_purchases, next_purchases, same_geometry  # noqa: E402 - needs torch

THEMES, PER_THEME, USERS = 5, 8, 60
ITEMS = THEMES * PER_THEME
UNTIL_MS = 100 * DAY_MS


def themed_log() -> Log:
    """Each household buys, daily and at random, from one theme only."""
    rng = np.random.default_rng(0)
    days = 90
    items = [rng.integers(0, PER_THEME, days) + PER_THEME * (user % THEMES) for user in range(USERS)]
    times = np.tile(np.arange(1, days + 1) * DAY_MS, USERS)
    return Log(
        users=[f"user-{user}" for user in range(USERS)],
        starts=np.arange(USERS + 1) * days,
        items=np.concatenate(items),
        actions=np.full(USERS * days, ACTION_CODES["purchase"]),
        at_ms=times,
    )


def small_config(**changes: object) -> TrainingConfig:
    values = {"steps": 60, "batch": 32, "length": 10, "learning_rate": 1e-2, "tail": 5, "geometry": 0.1}
    return TrainingConfig(**{**values, **changes})  # type: ignore[arg-type]


def trained(config: TrainingConfig) -> tuple[StaticTower, GroceriesEncoder, Texts, np.ndarray]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, 16)).astype(np.float32)  # an item's text is one token that tells nothing
    white = torch.from_numpy(rng.normal(size=(ITEMS, 16)).astype(np.float32))
    teacher = torch.nn.functional.normalize(torch.cat([white, white[:10]]), dim=-1)
    texts = Texts(white, np.arange(ITEMS), teacher, white[:10])
    rows = np.arange(1, ITEMS + 1)
    tower = StaticTower(
        StaticTowerConfig(token_dim=16, hidden=16, rows=ITEMS, residual_dim=8), table, Whitening.of(table)
    )
    encoder = GroceriesEncoder(GroceriesEncoderConfig(hidden=32))
    log = themed_log()
    start_from_popularity(tower, texts, rows, np.bincount(log.items, minlength=ITEMS))
    train(tower, encoder, texts, rows, np.arange(ITEMS - 5), Examples(log, UNTIL_MS, config), lambda *_: None)
    return tower, encoder, texts, rows


def test_a_household_is_recommended_its_own_theme() -> None:
    tower, encoder, texts, rows = trained(small_config())
    with torch.no_grad():
        vectors = tower.with_residual(tower.from_text(texts.white), torch.from_numpy(rows))
        log = themed_log()
        right = []
        for user in range(THEMES):
            chosen = log.items[log.starts[user] : log.starts[user] + 6]
            gaps = torch.full((1, 6), 86_400.0)
            actions = torch.full((1, 6), ACTION_CODES["purchase"])
            interests = encoder(
                vectors[chosen][None], actions, gaps, torch.ones(1, 6), torch.tensor([86_400.0])
            )
            best = (interests[0] @ vectors.T).amax(0).topk(PER_THEME).indices.numpy()
            right.append((best // PER_THEME == user).mean())
    assert np.mean(right) > 0.9


def test_the_same_seed_trains_the_same_weights() -> None:
    one, other = (trained(small_config(steps=5))[1].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_examples_never_look_past_their_moment() -> None:
    log = themed_log()
    batch = Examples(log, UNTIL_MS, small_config(batch=256)).draw()
    owners = [int(items[0]) // PER_THEME for items in batch.items]
    assert (batch.mask.sum(axis=1) >= 5).all()
    assert (batch.gap_to_now_s >= 0).all()
    # A household's targets are of its theme, and none of the first purchases is among what it knows.
    assert all(
        owners[user] == item // PER_THEME
        for user, item in zip(batch.target_users, batch.targets, strict=True)
    )
    known = set(zip(batch.known_users.tolist(), batch.known.tolist(), strict=True))
    assert known.isdisjoint(zip(batch.new_users.tolist(), batch.new_targets.tolist(), strict=True))


def test_no_decay_exceeds_its_bound() -> None:
    encoder = GroceriesEncoder(GroceriesEncoderConfig())
    with torch.no_grad():
        encoder.keep.fill_(50.0)
        state = torch.ones(1, encoder.config.state)
        nothing = torch.zeros(1, 1, encoder.config.dim)
        none = torch.zeros(1, 1, dtype=torch.long)
        kept = encoder.step(state, nothing, none, torch.zeros(1, 1), torch.ones(1, 1))
    assert kept.max() <= encoder.config.keep_max + 1e-6


def test_gaps_of_training_are_those_of_serving() -> None:
    log = themed_log()
    batch = Examples(log, UNTIL_MS, small_config()).draw()
    row = batch.gaps_s[0][batch.mask[0] > 0]
    assert row[0] == 0
    np.testing.assert_array_equal(row, gaps_s(np.arange(len(row), dtype=np.int64) * DAY_MS))


def test_softmax_loss_is_the_mean_surprise() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    users, items = torch.tensor([0, 0]), torch.tensor([0, 1])
    loss = next_purchases(scores, torch.zeros(3), users, items)
    assert float(loss) == pytest.approx((np.log(2) + np.log(4)) / 2)


def test_items_that_stand_for_many_weigh_as_many() -> None:
    # Two columns, the second drawn as one of four: 1 / (1 + 4).
    loss = next_purchases(
        torch.zeros(1, 2), torch.tensor([0.0, np.log(4.0)]), torch.tensor([0]), torch.tensor([0])
    )
    assert float(loss) == pytest.approx(np.log(5))


def test_known_items_are_out_of_the_race_for_first_purchases() -> None:
    known = (torch.tensor([0]), torch.tensor([0]))
    loss = first_purchases(
        torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(3), torch.tensor([0]), torch.tensor([1]), known
    )
    assert float(loss) == pytest.approx(np.log(2))


def test_geometry_is_kept_when_the_angles_are() -> None:
    teacher = torch.nn.functional.normalize(
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    assert float(same_geometry(teacher * 3, teacher)) == pytest.approx(0, abs=1e-10)
    assert float(same_geometry(torch.ones(6, 4), teacher)) > 0.1
