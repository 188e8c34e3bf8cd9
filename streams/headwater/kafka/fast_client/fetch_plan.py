"""Which partitions the next fetch asks each broker for.

**Stalled fetches.** aiokafka keeps one fetch in flight per broker and asks only for partitions whose buffer is empty.
While any buffer holds records it waits 100 ms, then long-polls the rest for up to 500 ms. A partition that is drained
meanwhile is not fetched until that returns. Here it waits 2 ms, and such a fetch is held for 10 ms at most.

**Urgent topics apart.** Clicks and requests would share one fetch. Behind a backlog of clicks, megabytes that are
read piece by piece in a busy loop, a request waited 100 ms until it was seen. So urgent topics have fetches of their
own, over a connection of their own. The next one already waits at the broker while a click is applied.

**Less work.** Where nothing but fetching is to be done, the plan is made here, in a third of aiokafka's time.
"""

import random
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.protocol.fetch import FetchRequest

from headwater.kafka.fast_client.eager_frames import parse_eagerly

# Buffered records may wait so long to be polled before the other partitions are fetched without theirs.
POLLED_WITHIN_S: Final = 0.002
PARTIAL_MAX_WAIT_MS: Final = 10
# aiokafka's client numbers its connections to a broker: 0 is for records, 1 for the group.
_URGENT_CONNECTION: Final = 2


class UrgentNode(NamedTuple):
    """A broker as the urgent topics know it. A fetch in flight to the plain node does not hold theirs back."""

    node: int


Node = int | UrgentNode
# As aiokafka's `_get_actions_per_node`: fetches, offset resets, seconds to wait, metadata wanted, resume futures.
Plan = tuple[list[tuple[Node, FetchRequest]], dict[Any, Any], float, bool, list[Any]]


class UrgentConnections:
    """A client that sends an urgent node's fetches over their own connection; a broker answers one at a time on each."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, node: Node, request: Any) -> Any:
        """Send a request over the connection of its urgency. Raises what the client's own ``send`` does."""
        number, group = node, ConnectionGroup.DEFAULT
        if isinstance(node, UrgentNode):
            number, group = node.node, _URGENT_CONNECTION
        parse_eagerly(self._client._conns.get((number, group)))
        return await self._client.send(number, request, group=group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def install_fast_planner(fetcher: Any, urgent: Collection[str]) -> None:
    """Have the fetcher plan by :func:`plan`, and by its own planner where that returns None."""
    fetcher._prefetch_backoff = POLLED_WITHIN_S
    theirs, max_wait_ms = fetcher._get_actions_per_node, fetcher._fetch_max_wait_ms

    def planned(assignment: Any) -> Any:
        found = plan(fetcher, assignment, urgent, max_wait_ms, fetcher._in_flight)
        if found is not None:
            return found
        fetcher._fetch_max_wait_ms = PARTIAL_MAX_WAIT_MS if fetcher._records else max_wait_ms
        in_flight = fetcher._in_flight
        fetcher._in_flight = {node.node if isinstance(node, UrgentNode) else node for node in in_flight}
        try:
            return theirs(assignment)
        finally:
            fetcher._in_flight, fetcher._fetch_max_wait_ms = in_flight, max_wait_ms

    fetcher._get_actions_per_node = planned


def node_of(fetcher: Any, tp: TopicPartition, urgent: Collection[str]) -> Node | None:
    """The broker that a partition is fetched from; None: its leader is unknown."""
    leader = fetcher._client.cluster.leader_for_partition(tp)
    if leader is None or leader == -1:
        return None
    return UrgentNode(leader) if tp.topic in urgent else leader


def next_request(
    fetcher: Any, assignment: Any, urgent: Collection[str], max_wait_ms: int, node: Node
) -> FetchRequest | None:
    """The next fetch of one node alone; None: there is none, or aiokafka has to plan it."""
    found = plan(fetcher, assignment, urgent, max_wait_ms, (), node)
    return dict(found[0]).get(node) if found is not None else None


def plan(
    fetcher: Any,
    assignment: Any,
    urgent: Collection[str],
    max_wait_ms: int,
    in_flight: Collection[Node],
    only: Node | None = None,
) -> Plan | None:
    """Plan the next fetch per broker and urgency, for ``only`` one of them if given.

    Equal to aiokafka's own plan where nothing but fetching is to be done. Otherwise None, and aiokafka plans. Its
    fetch covers both halves, so an urgent partition may be fetched twice. The second copy is discarded, because it
    does not begin at the partition's position.
    """
    if fetcher._preferred_read_replica:
        return None
    state_of = assignment.state_value
    records, max_bytes = fetcher._records, fetcher._max_partition_fetch_bytes
    wanted: dict[Node, dict[str, list[tuple[int, int, int]]]] = {}
    waits_s: dict[Node, list[float]] = {}  # until a buffered partition holds up the others no longer
    resumed: list[Any] = []  # awaited by the fetcher, so that a partition is fetched as soon as it is resumed
    has_buffered = {tp.topic in urgent for tp in records}
    tps = list(assignment.tps)
    # A response may have no room for all partitions: each is among the first some of the time.
    random.shuffle(tps)
    for tp in tps:
        node, state = node_of(fetcher, tp, urgent), state_of(tp)
        if node is None or not state.has_valid_position:
            return None
        if only is not None and node != only:
            continue
        if tp in records:
            if wait_s := records[tp].calculate_backoff():
                waits_s.setdefault(node, []).append(wait_s)
        elif node in in_flight:
            continue
        elif state.paused:
            resumed.append(state.resume_fut)
        else:
            topics = wanted.setdefault(node, {})
            topics.setdefault(tp.topic, []).append((tp.partition, state.position, max_bytes))
    fetches = [
        (
            node,
            FetchRequest(
                PARTIAL_MAX_WAIT_MS if isinstance(node, UrgentNode) in has_buffered else max_wait_ms,
                fetcher._fetch_min_bytes,
                fetcher._fetch_max_bytes,
                fetcher._isolation_level,
                list(topics.items()),
                rack_id=fetcher._client_rack or "",
            ),
        )
        for node, topics in wanted.items()
        if node not in waits_s
    ]
    wait_s = min(map(max, waits_s.values())) if waits_s else fetcher._fetcher_timeout
    return fetches, {}, wait_s, False, resumed
