"""What a comparison judges: which methods a bundle and the data allow, each with what it may know of a user."""

import numpy as np
import pytest

from headwater.encoder.runtime import load
from headwater_models.data.datasets import Dataset
from headwater_models.judging.comparison import compare, figures, usual_k, weigh
from tests.support.checkout import GROCERIES
from tests.unit.models.judging.test_protocols import HALF, THREE

TEXTS = ["ground coffee", "espresso", "garden hose", "green tea", "sprinkler", "coffee beans"]
WITH_TEXTS = Dataset("made up", THREE.item_ids[: len(TEXTS)], TEXTS, THREE.log, "")


@pytest.fixture(scope="module")
def name() -> str:
    return load(GROCERIES).name


def test_baselines_alone_need_no_bundle() -> None:
    found = compare(None, THREE, "leave-one-out")
    assert set(found.methods) == {"popular", "popular in the last week", "buy again"}
    assert found.k == usual_k("leave-one-out") == 10
    assert found.methods["popular"]["all"].targets == 1  # ann alone has three events


def test_a_bundle_with_neighbours_is_judged_alone_and_with_each_source_it_is_served_with(name: str) -> None:
    found = compare(GROCERIES, WITH_TEXTS, "global-time", at=HALF)
    assert set(found.methods) >= {
        name,
        f"{name}: new",
        f"{name}: similar",
        f"{name} and similar",
        f"{name}: buy again",
        f"{name}, similar and buy again",
        "popular texts",
    }
    assert {quality["all"].targets for quality in found.methods.values()} == {4}


def test_where_seen_items_are_masked_nothing_is_bought_again(name: str) -> None:
    found = compare(GROCERIES, WITH_TEXTS, "leave-one-out")
    assert f"{name}: buy again" not in found.methods
    assert name in found.methods


def test_two_bundles_of_one_name_stay_apart_and_their_ranks_are_fused(name: str) -> None:
    found = compare(GROCERIES, WITH_TEXTS, "leave-one-out", other=GROCERIES)
    other = load(GROCERIES).id
    fused = [method for method in found.methods if " + " in method]
    assert fused == [f"{name} + {other}"]
    same = (found.methods[f"{name} and similar"]["all"], found.methods[f"{other} and similar"]["all"])
    assert same[0].ndcg.value == same[1].ndcg.value


def test_figures_of_a_manifest_are_rounded_and_named_for_their_k() -> None:
    kept = figures(compare(None, THREE, "leave-one-out", k=3))
    assert set(kept["popular"]["all"]) == {"targets", "hit_at_3", "ndcg_at_3"}
    assert kept["popular"]["all"]["hit_at_3"] == round(kept["popular"]["all"]["hit_at_3"], 4)


def test_bundles_are_weighed_by_their_folders() -> None:
    (folder, weighed), *others = weigh([GROCERIES], WITH_TEXTS, "leave-one-out").items()
    assert (folder, others) == (str(GROCERIES), [])
    assert 0 <= weighed.ndcg.value <= weighed.hit.value <= 1
    assert np.isfinite(weighed.cost.answer_us).all()
