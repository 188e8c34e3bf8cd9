"""The private names of aiokafka that fast_client leans on are those of its README, and all of them are still there."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.sender import Sender, SendProduceReqHandler
from aiokafka.protocol.fetch import FetchRequest_v11

import headwater.kafka
from headwater.kafka import fast_client

FOLDER = Path(fast_client.__file__).parent
OWNERS: dict[str, type] = {
    owner.__name__: owner
    for owner in (
        AIOKafkaConsumer,
        AIOKafkaProducer,
        AIOKafkaClient,
        AIOKafkaConnection,
        Fetcher,
        FetchResult,
        PartitionRecords,
        GroupCoordinator,
        MessageAccumulator,
        Sender,
        SendProduceReqHandler,
    )
}
# What is called, or replaced by a function of ours, and with which parameters.
CALLED: dict[str, list[str]] = {
    "Fetcher._set_error": ["self", "tp", "error"],
    "Fetcher._notify": ["self", "future"],
    "Fetcher._create_fetch_waiter": ["self"],
    "Fetcher._proc_fetch_request": ["self", "assignment", "node_id", "request"],
    "Fetcher._get_actions_per_node": ["self", "assignment"],
    "FetchResult._update_position": ["self"],
    "GroupCoordinator._do_heartbeat": ["self"],
    "AIOKafkaConnection._handle_frame": ["self", "resp"],
    "Sender._sender_routine": ["self"],
    "Sender._fail_all": ["self", "task"],
}


class Row(NamedTuple):
    """A row of the table."""

    name: str
    used_in: frozenset[str]
    buys: str
    without: str


def table() -> Iterator[Row]:
    for line in (FOLDER / "README.md").read_text().splitlines():
        if found := re.fullmatch(r"\| `(\w+\._\w+)` \| (.+) \| (.+) \| (.+) \|", line):
            yield Row(found[1], frozenset(found[2].split(", ")), found[3], found[4])


ROWS = list(table())


@cache
def defined_by(owner: type) -> frozenset[str]:
    """Methods of the class and its bases, and what they assign to ``self`` or keep in slots."""
    found = set(dir(owner))
    for each in owner.__mro__[:-1]:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return frozenset(found)


def private_names(path: Path) -> set[str]:
    """Names with a leading underscore of objects that are not this file's own.

    These are attributes of anything but ``self``, texts that name one, and what a class has from a base of aiokafka's.
    """
    tree = ast.parse(path.read_text())
    found = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not _is_self(node.value)
    }
    found |= {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [
                OWNERS[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in OWNERS
            ]
            theirs = frozenset[str]().union(*map(defined_by, bases))
            for each in ast.walk(node):
                if isinstance(each, ast.Attribute) and _is_self(each.value):
                    found |= {each.attr} & theirs
                elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                    found |= {each.name} & theirs
    return {name for name in found if re.fullmatch(r"_[a-z]\w*", name)}


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_aiokafka_still_has_the_name(row: Row) -> None:
    owner, _, name = row.name.partition(".")
    assert name in defined_by(OWNERS[owner]), (
        f"aiokafka has renamed or removed {row.name}. {', '.join(sorted(row.used_in))} of kafka/fast_client uses it for: "
        f"{row.buys}. Without it: {row.without}. Port that file, or leave the patch out (README.md says what it buys)"
    )


@pytest.mark.parametrize("name", CALLED)
def test_what_is_called_or_replaced_takes_the_same_arguments(name: str) -> None:
    owner, _, method = name.partition(".")
    function: Callable[..., object] = getattr(OWNERS[owner], method)
    found = list(inspect.signature(function).parameters)
    assert found == CALLED[name], f"{name} takes {found} now: see its callers in kafka/fast_client"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_the_table_names_what_each_file_uses(path: Path) -> None:
    listed = {row.name.partition(".")[2] for row in ROWS if path.name in row.used_in}
    assert private_names(path) == listed


def test_no_other_file_touches_a_private_name_of_aiokafka() -> None:
    """Names so common that Faust or our own classes have them too are left to the review."""
    rare = {row.name.partition(".")[2] for row in ROWS} - {
        *("_client", "_closed", "_records", "_reader", "_requests", "_batches", "_fetcher", "_subscription"),
        *("_acks", "_topic_partition", "_tp", "_coordinator", "_sender", "_notify", "_in_flight"),
    }
    root = Path(headwater.kafka.__path__[0]).parent
    for path in sorted(root.rglob("*.py")):
        if FOLDER not in path.parents:
            assert not private_names(path) & rare, path


def test_a_plan_is_what_the_fetchers_routine_unpacks() -> None:
    source = inspect.getsource(Fetcher._fetch_requests_routine)
    found = re.search(r"\(([^()]*)\) = self\._get_actions_per_node", source)
    assert found is not None
    names = [name.strip() for name in found[1].split(",") if name.strip()]
    assert len(names) == 5, f"_get_actions_per_node returns {names} now: see fetch_plan.Plan"


def test_an_outstanding_request_is_kept_as_its_correlation_its_request_and_its_future() -> None:
    """Else the early acknowledgement writes its future to the wrong place, and no write is ever acknowledged."""
    source = inspect.getsource(AIOKafkaConnection.send)
    kept = re.search(r"self\._requests\.append\(\s*\(([^()]*)\),?\s*\)", source)
    assert kept is not None
    assert len(kept[1].split(",")) == 3, (
        f"an entry of AIOKafkaConnection._requests is ({kept[1]}) now: see producer.py"
    )


def test_a_fetch_of_version_11_has_the_fields_that_the_codec_packs() -> None:
    assert FetchRequest_v11.SCHEMA.names == (
        *("replica_id", "max_wait_time", "min_bytes", "max_bytes", "isolation_level", "session_id"),
        *("session_epoch", "topics", "forgotten_topics_data", "rack_id"),
    )
