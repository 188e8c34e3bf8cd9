"""Baseline: Bytewax as its documentation teaches it, in an environment of its own (`others.py`).

State in memory and nothing else: no recovery, nothing written, no encoder and no index. A user's value has the size of our
own record of that user: a head, and an entry for each of the newest 50 events.
Prints clicks a second and processor microseconds per click.

python bytewax_job.py SERVERS TOPIC HEAD_BYTES ENTRY_BYTES CLICKS
"""

import json
import sys
import time

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main

_LOG_LENGTH = 50
_BATCH = 5_000  # its default, 1,000, takes twice as long


def main(servers: str, topic: str, head_bytes: str, entry_bytes: str, clicks: str) -> None:
    head, width, total = bytes(int(head_bytes)), int(entry_bytes), int(clicks)
    warm = total // 10  # the first ones pay for the start
    count, started, cpu_s = 0, 0.0, 0.0

    def decoded(message: KafkaSourceMessage[bytes, bytes]) -> tuple[str, str]:
        click = json.loads(message.value)
        return click["user_id"], click["item_id"]

    def apply(profile: bytes | None, item_id: str) -> tuple[bytes, None]:
        nonlocal count, started, cpu_s
        log = (profile or head)[len(head) :]
        entry = item_id.encode().ljust(width)[:width]
        count += 1
        if count == warm:
            started, cpu_s = time.monotonic(), time.process_time()
        elif count == total:
            used_us = 1e6 * (time.process_time() - cpu_s) / (total - warm)
            print((total - warm) / (time.monotonic() - started), used_us, flush=True)
        return head + (log + entry)[-_LOG_LENGTH * width :], None

    flow = Dataflow("profiles")
    source = KafkaSource(servers.split(","), [topic], tail=False, batch_size=_BATCH)
    pairs = op.map("decode", op.input("clicks", flow, source), decoded)
    told = op.filter("nothing", op.stateful_map("apply", pairs, apply), lambda pair: pair[1] is not None)
    op.output("out", told, TestingSink([]))
    run_main(flow)


if __name__ == "__main__":
    main(*sys.argv[1:])
