"""Every architecture learns an order, and its exported bundle computes what torch does however a log is cut or padded."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.encoder.bundle import Origin  # noqa: E402 - after the skip
from headwater.encoder.features import MAX_GAP_S  # noqa: E402 - after the skip
from headwater.encoder.runtime import Encoder  # noqa: E402 - after the skip
from headwater_models.bundles import sequence_bundle  # noqa: E402 - needs torch
from headwater_models.bundles.sequence_bundle import Named  # noqa: E402 - needs torch
from headwater_models.judging.protocols import split  # noqa: E402 - after the skip
from headwater_models.networks import ARCHITECTURES, Events  # noqa: E402 - needs torch
from headwater_models.training.sequence_loop import FitConfig, IdModel, fit  # noqa: E402 - needs torch
from tests.support import cycles  # noqa: E402 - after the skip

torch.set_num_threads(1)  # threads of tiny products wait for each other, and on busy cores for long

LENGTH = 6
SIZES = {
    "lru": {"width": 16, "blocks": 2},
    "gru4rec": {"hidden": 16},
    "narm": {"hidden": 16},
    "multi-interest": {"hidden": 16, "interests": 2},
    "sasrec": {"length": LENGTH},
    "bert4rec": {"length": LENGTH, "hidden": 0.3},
}
Trained = tuple[IdModel, Encoder, float]


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(0)
    config, network = ARCHITECTURES[request.param]
    model = IdModel(cycles.ITEMS, network(config(dim=16, dropout=0.1, **SIZES[request.param])))
    folder = tmp_path_factory.mktemp(request.param)
    data = cycles.dataset()
    fit_config = FitConfig(length=LENGTH, epochs=20, patience=20, positions=64, learning_rate=0.01)
    progress = fit(model, split(data, "leave-one-out"), fit_config, folder / "checkpoint", lambda *_: None)
    with torch.no_grad():
        for parameter in model.parameters():  # what training left near zero has to be in play too
            parameter += 0.1 * torch.randn_like(parameter)
    origin = Origin("cycles", None, "a test", 0, 0.0, {}, {})
    bundle = sequence_bundle.write(
        folder / "bundle", model, data.item_ids, LENGTH, Named(request.param, "", origin)
    )
    return model, bundle, progress.best


def test_it_learns_the_order_of_the_items(trained: Trained) -> None:
    assert trained[2] > 0.8  # the most popular items first: about a third


def test_the_item_graph_has_each_items_vector_and_the_mean_for_any_other(trained: Trained) -> None:
    model, bundle, _ = trained
    ids = [f"item-{n}" for n in range(cycles.ITEMS)]
    table = model.table.weight.detach().numpy()
    np.testing.assert_array_equal(bundle.encode_items([], ids), table)
    np.testing.assert_allclose(bundle.encode_items([], ["new"])[0], table.mean(0), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_log_gives_the_same_interests_alone_padded_or_in_pieces(trained: Trained, seed: int) -> None:
    model, bundle, _ = trained
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LENGTH + 1, 4)
    items = rng.normal(size=(4, LENGTH, bundle.dim)).astype(np.float32)
    actions = rng.integers(1, 9, (4, LENGTH))
    gaps = (rng.random((4, LENGTH)) ** 4 * MAX_GAP_S).astype(np.float32)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.float32)
    now = (rng.random(4) * MAX_GAP_S).astype(np.float32)

    def whole(rows: slice, width: int) -> NDArray[np.float32]:
        given = [part[rows, :width] for part in (items, actions, gaps, mask)]
        if bundle.kind == "windowed":
            return bundle.window(*given, now[rows])[0]
        return bundle.read(bundle.step(bundle.initial_state(len(given[0])), *given), now[rows])[0]

    together = whole(slice(None), LENGTH)
    with torch.inference_mode():
        events = Events(*(torch.from_numpy(part) for part in (items, actions, gaps, mask)))
        wanted = model.encoder.answer(events, torch.from_numpy(now))
    close(together, wanted.numpy())
    for user, length in enumerate(lengths):
        close(whole(slice(user, user + 1), length), together[user : user + 1])
    if bundle.kind == "recurrent":
        state = bundle.initial_state(4)
        for part in pieces(rng):
            state = bundle.step(state, items[:, part], actions[:, part], gaps[:, part], mask[:, part])
        close(bundle.read(state, now)[0], together)


def test_training_reads_every_prefix_as_serving_does(trained: Trained) -> None:
    model, bundle, _ = trained
    if bundle.name == "bert4rec":
        pytest.skip("BERT4Rec is trained on hidden events, not on prefixes")
    torch.manual_seed(0)
    items, gaps = torch.randn(3, LENGTH, bundle.dim), 1000 * torch.rand(3, LENGTH)
    actions, ones, now = torch.ones(3, LENGTH, dtype=torch.int64), torch.ones(3, LENGTH), torch.rand(3, 1)
    events = (items, actions, gaps, ones)
    with torch.inference_mode():
        every = model.encoder(Events(*events), torch.cat([gaps[:, 1:], now], dim=1))
    for end in range(1, LENGTH + 1):
        given = [part[:, :end].numpy() for part in events]
        asked = (gaps[:, end] if end < LENGTH else now[:, 0]).numpy()
        if bundle.kind == "windowed":
            served, _ = bundle.window(*given, asked)
        else:
            served, _ = bundle.read(bundle.step(bundle.initial_state(3), *given), asked)
        close(served, every[:, end - 1].numpy())


def pieces(rng: np.random.Generator) -> Sequence[slice]:
    cuts = np.flatnonzero(rng.random(LENGTH - 1) < 0.5) + 1
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, LENGTH], strict=True)]


def close(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
