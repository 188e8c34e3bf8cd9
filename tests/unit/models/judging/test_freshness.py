"""What a delay of clicks costs: of a user of whom nothing has arrived, what is popular is all that is known."""

import pytest

from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.judging.freshness import delays_of, of_bundle
from headwater_models.judging.protocols import split
from tests.support.checkout import STARTER
from tests.unit.models.judging.test_protocols import dataset

TEXTS = ["ground coffee", "espresso", "garden hose", "sprinkler", "green tea", "herbal tea"]
DAY_MS = 86_400_000


def visits() -> Dataset:
    """Each day a new user looks at two things of one kind; yesterday everybody looked at tea."""
    start = 1_700_000_000_000 // DAY_MS * DAY_MS
    users = {
        f"user-{day}": [
            ((2 * day) % 4, start + day * DAY_MS + 1),
            ((2 * day) % 4 + 1, start + day * DAY_MS + 60_001),
        ]
        for day in range(20)
    }
    users |= {
        f"other-{n}": [(4, start + 18 * DAY_MS + n), (5, start + 18 * DAY_MS + 10 + n)] for n in range(9)
    }
    return Dataset("visits", [f"item-{n}" for n in range(6)], TEXTS, dataset(users).log, "")


def test_what_has_just_been_looked_at_tells_more_than_what_is_popular() -> None:
    data = visits()
    asked = split(data, "prequential", 0.9)
    found = of_bundle(STARTER, data, asked, [0, 60_001, DAY_MS], k=1)
    assert {name: [*curve] for name, curve in found.curves.items()} == {
        "all": [0, 60_001, DAY_MS],
        "discovery": [0, 60_001, DAY_MS],
    }
    now, minute, day = (measure.value for measure in found.curves["discovery"].values())
    assert now > minute  # the first thing of a visit is not there yet when the second is asked for
    assert minute == day
    assert found.questions["all"] == len(asked.test.targets)


@pytest.mark.parametrize("text", ["", "soon", "1", "-1s", "0s,0m", "1s,,2s", "1w", "nans", "1.2.3s"])
def test_what_is_no_delay_is_one_sentence(text: str) -> None:
    with pytest.raises(DatasetError, match="--delay"):
        delays_of(text)


def test_delays_go_with_the_replay_alone() -> None:
    data = visits()
    with pytest.raises(DatasetError, match="the protocol is global-time"):
        of_bundle(STARTER, data, split(data, "global-time", 0.9), [0])
