"""What each role needs to be allowed, as the page for operators has it."""

import pytest

from headwater.kafka import rights
from headwater.kafka.rights import Operation
from headwater.kafka.topic_identity import Allowed
from headwater.kafka.topics import Topics
from headwater.settings import Settings
from tests.support.checkout import ROOT


@pytest.mark.parametrize("field", [*Topics.__annotations__])
def test_the_page_for_operators_says_what_each_role_needs(field: str) -> None:
    needed = [rights._NEEDS[role].get(field, ()) for role in rights.ROLES]
    name = getattr(Topics.named(""), field)
    row = f"| topic `{name}` | {' | '.join(', '.join(map(str, each)) for each in needed)} |".replace(
        "|  |", "| |"
    )
    page = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    assert any(needed) == (row.replace("|  |", "| |") in page), row


def test_a_worker_looks_at_all_topics_and_writes_to_the_reply_topics_that_are_set() -> None:
    settings = Settings(reply_topics=("elsewhere",))
    names = Topics.named(settings.topic_prefix)
    wanted = rights.needs(settings, "interests")
    assert wanted["elsewhere"] == (Operation.WRITE,)
    assert Operation.READ not in wanted[names.responses]
    probing = rights.needs(Settings(probe_s=10), "interests")
    assert {Operation.READ, Operation.WRITE} <= set(probing[names.responses])
    assert wanted[names.catalog] == (Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS)
    assert names.catalog in rights.needs(settings, "client")
    assert names.profiles not in rights.needs(settings, "client")


@pytest.mark.parametrize(
    ("bits", "missing"), [(None, ""), (1 << 3 | 1 << 8, "Write"), (0, "Read, Write"), (0b11111111000, "")]
)
def test_bits_of_the_broker_are_read_as_operations(bits: int | None, missing: str) -> None:
    found = rights._missing(Allowed(bits), (Operation.READ, Operation.WRITE))
    assert ", ".join(map(str, found)) == missing
