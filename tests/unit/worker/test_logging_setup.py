"""Every line of a log is an event with fields, whichever logger it comes from."""

import json
import subprocess
import sys

SCRIPT = """
import logging, structlog
from headwater.settings import Settings
from headwater.worker.logging_setup import configure_logging

configure_logging(Settings(log_json=True))
structlog.get_logger().info("ours", partition=3)
logging.getLogger("headwater.index").warning("reads %s", "again", extra={"partition": 3})
logging.getLogger("aiokafka").info("chatter")
try:
    raise ValueError("no such thing")
except ValueError:
    logging.getLogger("headwater.index").exception("failed")
"""


def test_json_logs_are_json_whoever_writes_them() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    ours, theirs, failed = (json.loads(line) for line in run.stderr.splitlines())
    assert (ours["event"], ours["level"], ours["partition"]) == ("ours", "info", 3)
    assert (theirs["event"], theirs["level"], theirs["partition"]) == ("reads again", "warning", 3)
    assert theirs["logger"] == "headwater.index"
    assert "no such thing" in failed["exception"]
