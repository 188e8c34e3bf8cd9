"""`headwater train shop` from two files to a bundle that reads the shop's texts."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.commands.event_data import DataOptions  # noqa: E402 - after the skip
from headwater.commands.models import train  # noqa: E402 - after the skip
from headwater.commands.train_shop import ShopOptions  # noqa: E402 - after the skip
from headwater.encoder.runtime import Encoder, load  # noqa: E402 - after the skip
from headwater_models import train_shop  # noqa: E402 - needs torch
from headwater_models.arrays import F32  # noqa: E402 - after the skip
from headwater_models.data.datasets import Dataset  # noqa: E402 - after the skip
from headwater_models.data.events import Log  # noqa: E402 - after the skip
from headwater_models.data.statistics import statistics_of  # noqa: E402 - after the skip
from headwater_models.judging.candidates import Pooling, rescored  # noqa: E402 - after the skip
from headwater_models.judging.comparison import Results  # noqa: E402 - after the skip
from headwater_models.judging.evaluation import encoded  # noqa: E402 - after the skip
from headwater_models.judging.protocols import Cases, Split, next_events  # noqa: E402 - after the skip
from headwater_models.judging.served import served  # noqa: E402 - after the skip
from headwater_models.networks.blend import Blend  # noqa: E402 - after the skip
from headwater_models.networks.user_encoder import UserEncoder  # noqa: E402 - after the skip
from headwater_models.progress import silent  # noqa: E402 - after the skip
from headwater_models.train_shop import asked_of, plan  # noqa: E402 - after the skip
from headwater_models.training import blending  # noqa: E402 - after the skip
from headwater_models.training.how_many_interests import Themed  # noqa: E402 - after the skip

# Kinds of goods, each with words of its own.
THEMES = {
    "coffee": "espresso beans roast", "garden": "flower seeds soil", "bicycle": "wheel chain pedal",
    "kitchen": "pan knife spoon", "music": "guitar string tuner", "baby": "diaper bottle toy",
    "office": "paper pen folder", "fishing": "rod hook line", "camping": "tent stove lantern",
    "beauty": "lipstick cream perfume",
}  # fmt: skip
EACH = 12  # items of a theme


class Made(NamedTuple):
    """What the command left, and what it said."""

    bundle: Encoder
    output: str
    errors: str
    folder: Path


def items() -> list[tuple[str, str]]:
    return [
        (f"{theme}-{n}", f"{theme} {THEMES[theme].split()[n % 3]} number {n}")
        for theme in THEMES
        for n in range(EACH)
    ]


def taken(rng: np.random.Generator, themes: list[str], count: int) -> list[str]:
    """Items of these themes in a random order, as many of each, none twice."""
    own = [f"{theme}-{n}" for theme in themes for n in rng.permutation(EACH)[: count // len(themes)]]
    return [own[place] for place in rng.permutation(len(own))]


class ByPlaces:
    """Scores by a blend that trusts places and distances beside candidates of the same interest, as most blends do."""

    def score(self, features: F32, interests: F32, items: F32, /) -> F32:
        blend = Blend(timed=True)
        blend.weight[:3] = torch.tensor([-1.0, -1.0, 1.0])
        scores: F32 = blend(*map(torch.from_numpy, (features, interests, items))).numpy()
        return scores


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    with (folder / "items.csv").open("w") as file:
        csv.writer(file).writerows([("sku", "title"), *items(), ("bare", "")])
    with (folder / "clicks.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(("customer", "sku", "at_ms", "action"))
        for user in range(160):
            themes = list(rng.permutation(list(THEMES))[: 1 + user % 2])
            start = 1_700_000_000_000 + int(rng.integers(30 * 86_400_000))
            for place, item in enumerate(taken(rng, themes, 8)):
                writer.writerow((f"user-{user}", item, start + 60_000 * place, "click"))
        writer.writerow(("user-1", "gone", 1_700_000_000_000, "click"))
        writer.writerow(("user-2", "coffee-1", "yesterday", "click"))
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    output, errors = StringIO(), StringIO()
    with redirect_stdout(output), redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
        patch.setattr(blending, "LEAST", 5)  # there are few users
        code = train(
            "shop",
            out=folder / "bundle",
            shop=ShopOptions([folder / "items.csv"], ["item_id=sku"], [folder / "clicks.csv"]),
            events=DataOptions(map_=["item_id=sku", "user_id=customer"]),
            epochs=6,
            set_=["encoder.blocks=1"],  # half the graph to export
        )
    assert code == 0
    return Made(load(folder / "bundle"), output.getvalue(), errors.getvalue(), folder)


def test_it_says_what_it_leaves_out_what_it_found_and_what_to_do_next(made: Made) -> None:
    for said in (
        "1 of 121 items have no text, such as bare",
        "1 of 1,281 events (0.1%) are on 1 items that are not in the catalog, such as gone",
        "line 1283 is left out: at_ms: got 'yesterday'",
        "user encoder sasrec: short histories",
    ):
        assert said in " ".join(made.errors.split()), said
    assert "HEADWATER_BUNDLE=" in made.output
    assert "popular" in made.output  # the baselines
    assert sorted(path.name for path in made.folder.iterdir()) == ["bundle", "clicks.csv", "items.csv"]


def test_the_bundle_has_figures_neighbours_and_residuals_that_no_other_text_meets(made: Made) -> None:
    manifest = made.bundle.manifest
    assert manifest.item_inputs == "text"
    assert manifest.origin.figures
    assert made.bundle.neighbours is not None
    served = manifest.origin.figures[
        "shop-clicks, as it serves" if manifest.sources else "shop-clicks and similar"
    ]
    assert served["all"]["ndcg_at_20"] > manifest.origin.figures["popular"]["all"]["ndcg_at_20"]
    assert "what a worker answers beats every baseline: NDCG@20" in made.errors
    scored = manifest.origin.figures.get("shop-clicks, scored again")
    assert (made.bundle.pool > 0) == (scored is not None)
    assert any("order of candidates from" in note for note in manifest.origin.notes) == (made.bundle.pool > 0)
    title = dict(items())["coffee-1"]
    own, foreign = made.bundle.encode_items([title, title], ["coffee-1", "sku-1"])
    assert np.abs(own - foreign).max() > 1e-2
    other = made.bundle.encode_items([f"{title} new"] * 2, ["coffee-1", "sku-1"])
    np.testing.assert_allclose(other[0], other[1], atol=1e-6)


def test_users_with_two_favourite_themes_see_both_among_the_first_ten(made: Made) -> None:
    ids, texts = zip(*items(), strict=True)
    rng = np.random.default_rng(1)
    pairs = [list(rng.permutation(list(THEMES))[:2]) for _ in range(60)]
    place = {item_id: n for n, item_id in enumerate(ids)}
    rows = np.array([[place[item] for item in taken(rng, pair, 10)] for pair in pairs])
    at_ms = 1_700_000_000_000 + 60_000 * np.arange(10)
    starts = np.arange(0, 10 * len(pairs) + 1, 10)
    users = np.arange(len(pairs))
    log = Log(
        [f"new-{n}" for n in users], starts, rows.ravel(), np.ones(rows.size, int), np.tile(at_ms, len(pairs))
    )
    now = np.full(len(pairs), at_ms[-1] + 60_000)
    cases = Cases(users, starts[1:], now, np.arange(len(pairs) + 1), rows[:, 0], mask_seen=True)
    data = Dataset("new", list(ids), list(texts), log, "")
    catalog = encoded(made.bundle, data)
    orders = [served(made.bundle, catalog, 10)]
    pooling = Pooling(made.bundle, catalog, Split("new", log, log, cases, cases), 100)
    orders.append(rescored(ByPlaces(), pooling))
    if made.bundle.pool:  # a request that names no sources gets the bundle's own order
        orders.append(rescored(made.bundle, pooling))
    for order in orders:
        scores = order(log, cases, slice(0, len(pairs)))
        both = 0
        for pair, own in zip(pairs, scores, strict=True):
            shown = {ids[item].partition("-")[0] for item in np.argsort(-own, kind="stable")[:10]}
            both += set(pair) <= shown
        assert both >= 0.9 * len(pairs)


@pytest.mark.parametrize(
    ("found", "interests"),
    [(Themed(0.07, 0.05, 0.007, 432), 1), (Themed(0.047, 0.046, 0.001, 4_000), 3)],
    ids=["themes find fewer", "as many, but for chance"],
)
@pytest.mark.parametrize("user_encoder", [None, "sasrec"])
def test_the_validation_decides_between_one_interest_and_several(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    user_encoder: Any,
    found: Themed,
    interests: int,
) -> None:
    file = tmp_path / "clicks.csv"
    with file.open("w") as events:
        writer = csv.writer(events)
        writer.writerow(("user_id", "item_id", "at_ms"))
        writer.writerows(
            (user, (user + n) % 20, 1_700_000_000 + 3_600 * n) for user in range(12) for n in range(60)
        )

    class Exported(Exception):
        """An export takes long, and others are tested."""

    def export(*arguments: object) -> None:
        raise Exported(cast("UserEncoder", arguments[-1]).interests)

    monkeypatch.setattr(train_shop, "themed", lambda *_: found)
    monkeypatch.setattr(train_shop.sequence_bundle, "write", export)
    with pytest.raises(Exported, match=str(interests)):
        train(
            "shop", shop=ShopOptions(clicks=[file], user_encoder=user_encoder), out=tmp_path / "b", epochs=1
        )
    assert found.note in " ".join(capsys.readouterr().err.split())


def test_many_events_of_few_users_leave_enough_to_choose_by() -> None:
    users, each, items = 700, 100, 50
    rng = np.random.default_rng(0)
    taken = rng.integers(items, size=users * each)
    log = Log(
        [str(user) for user in range(users)],
        np.arange(users + 1) * each,
        taken,
        np.ones_like(taken),
        np.tile(np.arange(each) * 86_400_000, users),
    )
    data = Dataset("long histories", [str(item) for item in range(items)], None, log, "")
    asked = asked_of(data, plan(data, None, None, 0), None)
    assert len(asked.validation) == users // 2


@pytest.mark.parametrize("again", [False, True], ids=["nothing is taken twice", "items are taken again"])
def test_seen_items_may_come_where_users_take_items_again(*, again: bool) -> None:
    users, each = 40, 20
    taken = np.tile(np.arange(each) % (each // 2 if again else each), users)
    at_ms = np.tile(np.arange(each) * 86_400_000, users)
    log = Log([str(n) for n in range(users)], np.arange(users + 1) * each, taken, np.ones_like(taken), at_ms)
    data = Dataset("days", [str(item) for item in range(each)], None, log, "")
    chosen = plan(data, None, None, 0)
    assert chosen.protocol == "global-time"
    asked = asked_of(data, chosen, None)
    assert [asked.validation.mask_seen, asked.test.mask_seen] == [not again, not again]


def test_statistics_tell_texts_that_say_nothing_from_texts_that_do() -> None:
    log = Log(["a", "b"], np.array([0, 2, 4]), np.array([0, 1, 1, 1]), np.array([1, 1, 5, 5]), np.arange(4))
    found = statistics_of(Dataset("two", ["x", "y"], ["same", "same"], log, ""))
    assert (found.events, found.users, found.items, found.repeats) == (4, 2, 2, 0.25)
    assert not found.has_texts
    assert statistics_of(Dataset("two", ["x", "y"], ["one", "other"], log, "")).has_texts
    assert not statistics_of(Dataset("two", ["x", "y"], None, log, "")).has_texts


def test_the_validation_decides_on_an_order_whose_probe_has_a_history_though_the_newest_events_are_of_new_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log(["a", "b"], np.array([0, 3, 4]), np.array([0, 1, 2, 0]), np.ones(4, int), np.arange(4))
    validation, test = (next_events(log, np.array([row]), mask_seen=False) for row in (2, 3))
    asked = Split("global-time", log, log, validation, test, at_ms=3)
    probed: list[int] = []
    judged: list[tuple[Path, int]] = []

    def judge(path: Path, _: Any, of: Split, **__: Any) -> Results:
        judged.append((path, len(of.test)))
        return Results("", "", {}, [], "", None, 0, 20, {})  # no better

    def pooling(_: Log, cases: Cases, part: slice) -> tuple[list[Any], None]:
        count = 8 * int(cases.ends[part][0] - log.starts[cases.users[part][0]])
        return [SimpleNamespace(features=np.ones((count, 3), dtype=np.float32))], None

    monkeypatch.setattr(train_shop, "Pooling", lambda *_: pooling)
    monkeypatch.setattr(train_shop.blending, "LEAST", 0)
    monkeypatch.setattr(train_shop.blending, "questions_of", lambda *_, **__: [])
    monkeypatch.setattr(train_shop.blending, "blended", lambda *_, **__: Blend(timed=True))
    monkeypatch.setattr(train_shop, "_with_order", lambda _, order, *__: probed.append(len(order.probe)))
    monkeypatch.setattr(train_shop.export, "with_sources", lambda *_: None)
    monkeypatch.setattr(train_shop, "judge", judge)
    bundle = SimpleNamespace(
        path=Path("b"), manifest=SimpleNamespace(probe=SimpleNamespace(item_ids=["x"] * 6))
    )
    data = SimpleNamespace(log=log, item_ids=["x", "y", "z"])
    chosen = SimpleNamespace(statistics=SimpleNamespace(has_times=True))
    trial = Path("trial")
    given = (bundle, data, None, asked, chosen, None, {}, lambda bundle: bundle, trial, silent)
    order, _ = train_shop._ordered(*cast(Any, given))
    assert probed == [16]
    assert order is None
    # The other half of one question is empty; the bundle is judged without an order.
    assert judged == [(trial, 0), (bundle.path, 1)]
