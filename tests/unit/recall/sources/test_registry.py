"""The sources there are, and the names by which requests ask for them."""

from typing import Any, cast, get_args

from headwater.messages import SourceName
from headwater.recall.sources import Resources
from headwater.recall.sources.registry import DEFAULT_WEIGHTS, REGISTRY, sources_of


def test_a_request_can_name_every_source_and_no_other() -> None:
    assert {source.name for source in REGISTRY} == set(get_args(SourceName))
    assert len({source.name for source in REGISTRY}) == len(REGISTRY)


def test_every_source_can_be_made_of_an_index_alone() -> None:
    sources = sources_of(Resources(cast(Any, None)))
    assert [source.name for source in sources] == [source.name for source in REGISTRY]
    assert [source.name for source in sources if not source.is_there] == ["similar"]


def test_a_request_that_names_no_source_asks_those_with_a_default_weight() -> None:
    assert DEFAULT_WEIGHTS == {"buy-again": 40.0, "similar": 1.0, "interests": 1.0, "query": 1.0, "item": 1.0}
