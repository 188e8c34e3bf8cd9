"""Baseline: Quix Streams as its documentation teaches it, in an environment of its own (`others.py`).

A state write per click into its store on disk, with its changelog topic; no encoder and no index. A user's value has the
size of our own record of that user: a head, and an entry for each of the newest 50 events.
Prints clicks a second and processor microseconds per click.

python quix_job.py SERVERS TOPIC HEAD_BYTES ENTRY_BYTES CLICKS
"""

import sys
import tempfile
import time
import uuid

from quixstreams import Application, State

_LOG_LENGTH = 50


def main(servers: str, topic: str, head_bytes: str, entry_bytes: str, clicks: str) -> None:
    head, width, total = bytes(int(head_bytes)), int(entry_bytes), int(clicks)
    warm = total // 10  # the first ones pay for the start
    count, started, cpu_s = 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=servers,
            consumer_group=f"quix-{uuid.uuid4().hex[:8]}",
            auto_offset_reset="earliest",
            state_dir=folder,
            auto_create_topics=True,  # its changelog
            loglevel="WARNING",
        )

        def apply(click: dict[str, str], state: State) -> None:
            nonlocal count, started, cpu_s
            log = (state.get_bytes("profile") or head)[len(head) :]
            entry = click["item_id"].encode().ljust(width)[:width]
            state.set_bytes("profile", head + (log + entry)[-_LOG_LENGTH * width :])
            count += 1
            if count == warm:
                started, cpu_s = time.monotonic(), time.process_time()
            elif count == total:
                used_us = 1e6 * (time.process_time() - cpu_s) / (total - warm)
                print((total - warm) / (time.monotonic() - started), used_us, flush=True)
                app.stop()

        app.dataframe(app.topic(topic, value_deserializer="json")).update(apply, stateful=True)
        app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
