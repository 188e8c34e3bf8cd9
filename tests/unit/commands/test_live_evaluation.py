"""Figures through broker, worker and index are those of arrays."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from headwater.commands import live_evaluation
from headwater.commands.live_evaluation import Compared, UnlikeAnswerError, _Asking, _check, _ranks
from headwater.encoder import runtime as encoder
from headwater.encoder.features import CANDIDATE_FEATURES
from headwater.messages import Reflects, Response
from headwater_models.commands import Results, tables
from headwater_models.data.datasets import DatasetError
from headwater_models.judging.evaluation import Measure, Quality
from headwater_models.judging.protocols import split
from tests.support.interests_worker import STARTER
from tests.support.terminal import Terminal
from tests.unit.models.judging.test_protocols import dataset

THINGS = ("coffee", "tea", "garden hose", "soap", "bread", "red wine", "cat food", "paper")
KINDS = ("fresh", "frozen", "organic", "blue plastic", "baby", "holiday", "dog", "cheese")
DAY_MS = 86_400_000


def events(path: Path) -> None:
    """Eight shoppers with a taste each, one of them with more events than a log holds."""
    chance = random.Random(0)
    rows = ["user_id,item_id,at_ms,title"]
    for user in range(8):
        for n in range(70 if user == 0 else chance.randint(4, 30)):
            item = 8 * chance.randrange(8) + (user if chance.random() < 0.7 else chance.randrange(8))
            title = f"{KINDS[item // 8]} {THINGS[item % 8]}"
            rows.append(
                f"user-{user},item-{item},{1_700_000_000_000 + (10 * n + user) * DAY_MS // 10},{title}"
            )
    path.write_text("\n".join(rows))


def test_the_stream_finds_what_the_bundle_finds(tmp_path: Path) -> None:
    events(tmp_path / "events.csv")
    arguments = ("--data", "events.csv", "--protocol", "global-time", "--at", "0.5", "--through-the-stream")
    done = Terminal(tmp_path).run("evaluate", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["methods"]) == ["starter", "starter as it serves", "starter through the stream"]
    _, offline, streamed = found["methods"].values()
    for name in ("all", "discovery"):
        assert offline[name]["hit"]["value"] > 0
        for measure in ("hit", "ndcg"):
            expected = offline[name][measure]["value"]
            assert streamed[name][measure]["value"] == pytest.approx(expected, abs=1e-3)
    assert "search: exact, by a scan of " in done.stderr
    assert not list(tmp_path.glob(".headwater*"))  # all of it lived in a folder of its own


@pytest.fixture
def ordered(tmp_path: Path) -> Path:
    """The starter with an order of candidates that puts first what is popular, and what the user had."""
    torch = pytest.importorskip("torch")
    from headwater_models.bundles import score_graph
    from headwater_models.networks.blend import TERMS, TIMED_TERMS, Blend

    starter, blend = encoder.load(STARTER, device="cpu"), Blend(timed=True)
    names = TERMS + TIMED_TERMS
    blend.weight[[names.index(name) for name in ("own_rank", "had", "popularity")]] = torch.tensor(
        [-1.0, 1.0, 2.0]
    )
    probe = np.ones((len(starter.manifest.probe.item_ids), len(CANDIDATE_FEATURES)), dtype=np.float32)
    out = tmp_path / "ordered"
    score_graph.add(starter, blend, probe, 20, "ordered", starter.manifest.origin, out)
    return out


def test_the_stream_answers_in_the_order_of_a_bundle_that_has_one(tmp_path: Path, ordered: Path) -> None:
    events(tmp_path / "events.csv")
    arguments = ("--data", "events.csv", "--protocol", "global-time", "--at", "0.5", "--through-the-stream")
    done = Terminal(tmp_path).run("evaluate", str(ordered), *arguments, "--json")
    assert done.returncode == 0, done.stderr
    _, offline, streamed = json.loads(done.stdout)["methods"].values()
    done = Terminal(tmp_path).run("evaluate", str(ordered), *arguments[:-1], "--json")
    assert done.returncode == 0, done.stderr
    methods = json.loads(done.stdout)["methods"]
    for measure in ("hit", "ndcg"):
        expected = methods["ordered, scored again"]["all"][measure]["value"]
        assert offline["all"][measure]["value"] == pytest.approx(expected)
        assert streamed["all"][measure]["value"] == pytest.approx(expected, abs=1e-3)
    # The order puts the same items elsewhere, so it is told apart by their places.
    ordered_ndcg, alone_ndcg = (
        methods[name]["all"]["ndcg"]["value"] for name in ("ordered, scored again", "ordered")
    )
    assert ordered_ndcg > alone_ndcg + 0.01


def test_figures_further_apart_than_the_tolerance_do_not_agree() -> None:
    results = None
    for difference, agree in ((1e-3, True), (-1e-3, True), (0.0011, False), (-0.0011, False)):
        assert Compared(results, {"hit": 0.0, "NDCG": difference}, "").agree is agree  # type: ignore[arg-type]


def test_a_table_shows_the_methods_that_were_asked() -> None:
    measure = Measure(0.5, 0.4, 0.6)
    quality = Quality(10, 1, 1, measure, measure, {}, 0.0, 0.0, 0.0, {}, {})
    methods = {"offline": {"all": quality, "newcomers": quality}, "through the stream": {"all": quality}}
    shown = tables(Results("shop", "", {}, [], "global-time", None, 0, 10, methods))
    assert [table.row_count for table in shown] == [2, 1]


def test_a_target_has_the_rank_of_its_place() -> None:
    cases = split(
        dataset({"ann": [(0, 1), (1, 2), (2, 3)], "bob": [(3, 1), (4, 2), (5, 3)]}), "leave-one-out"
    ).test
    assert cases.targets.tolist() == [2, 5]
    assert _ranks(np.array([[7, 2, -1], [1, 3, 4]]), cases).tolist() == [2, live_evaluation.metrics.NEVER]


def test_times_that_the_topic_refuses_and_lists_too_long_to_ask_for_are_named() -> None:
    with pytest.raises(
        DatasetError, match="made up has an event at 1 ms: expected times that the clicks topic"
    ):
        _check(dataset({"ann": [(0, 1)]}), 10)
    with pytest.raises(DatasetError, match="--k is 1001: expected at most 1000"):
        _check(dataset({"ann": [(0, 1_700_000_000_000)]}), 1001)


@pytest.mark.parametrize(
    "answer",
    [
        Response("r", "ann", "degraded", rung="popular", reflects=Reflects(0, 9, 3, 0, "event-6")),
        Response("r", "ann", "ok", reflects=Reflects(0, 9, 2, 0, "event-6")),
        Response("r", "ann", "ok", reflects=Reflects(0, 9, 3, 0, "event-5")),
        Response("r", "ann", "ok"),
    ],
    ids=["degraded", "fewer events", "another last event", "no proof"],
)
def test_an_answer_that_does_not_rest_on_what_it_should_is_refused(answer: Response) -> None:
    class Remembering:
        log_length = 3

    asking = object.__new__(_Asking)
    asking._encoder = Remembering()  # type: ignore[assignment]
    asking._require(Response("r", "ann", "ok", reflects=Reflects(0, 9, 3, 0, "event-6")), 7, 6)
    with pytest.raises(
        UnlikeAnswerError, match=r"user ann: the answer is .* expected a full one of 3 events up to event-6"
    ):
        asking._require(answer, 7, 6)
