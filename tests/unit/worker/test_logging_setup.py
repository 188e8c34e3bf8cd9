"""Logs as lines of one form, whoever writes them. Each case runs in a process of its own: logging is the process's."""

import json
import subprocess
import sys
from textwrap import dedent
from typing import Any

from headwater.kafka import faust_group
from headwater.worker import logging_setup
from tests.support.checkout import ROOT


def logged(lines: str, **settings: object) -> str:
    """What these lines of Python write to stderr after logging is set up."""
    program = f"""
        import logging, threading, warnings
        import structlog
        from headwater.settings import Settings
        from headwater.worker.logging_setup import configure_logging

        configure_logging(Settings(**{settings!r}))
        {dedent(lines).strip().replace(chr(10), chr(10) + " " * 8)}
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)],
        cwd=ROOT / "streams",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == ""
    return done.stderr


def as_json(lines: str, **settings: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(lines, log_json=True, **settings).splitlines()]


def test_our_events_keep_their_fields() -> None:
    (event,) = as_json('structlog.get_logger("headwater.x").info("put", items=3, providers=("a", "b"))')
    assert (event["event"], event["items"], event["providers"]) == ("put", 3, ["a", "b"])
    assert (event["level"], event["logger"]) == ("info", "headwater.x")
    assert event["timestamp"].startswith("20")


def test_lines_of_libraries_have_the_same_form() -> None:
    (event,) = as_json('logging.getLogger("aiokafka.conn").warning("no answer from %s", "broker 3")')
    assert (event["event"], event["level"], event["logger"]) == (
        "no answer from broker 3",
        "warning",
        "aiokafka.conn",
    )
    assert "timestamp" in event


def test_fields_given_to_the_standard_library_as_extra_are_fields() -> None:
    (event,) = as_json('logging.getLogger("headwater.kafka").warning("again", extra={"partition": 3})')
    assert (event["event"], event["partition"]) == ("again", 3)


def test_a_traceback_is_one_line_of_json() -> None:
    first, second = as_json("""
        for logger in (structlog.get_logger("headwater.x"), logging.getLogger("faust")):
            try:
                1 / 0
            except ZeroDivisionError:
                logger.exception("failed")
    """)
    assert "ZeroDivisionError" in first["exception"]
    assert "ZeroDivisionError" in second["exception"]


def test_warnings_are_logged() -> None:
    (event,) = as_json('warnings.warn("this goes away", UserWarning)')
    assert event["logger"] == "py.warnings"
    assert "this goes away" in event["event"]


def test_an_exception_that_nothing_catches_is_logged() -> None:
    thread, process = as_json("""
        other = threading.Thread(target=lambda: 1 / 0, name="clicks")
        other.start()
        other.join()
        raise ValueError("our own bug")
    """)
    assert thread["thread"] == "clicks"
    assert "ZeroDivisionError" in thread["exception"]
    assert "our own bug" in process["exception"]


def test_libraries_speak_from_warning_on_and_our_modules_from_the_level_on() -> None:
    lines = """
        logging.getLogger("headwater.encoder.runtime").info("bundle %s runs on %s", "b", "cpu")
        structlog.get_logger("headwater.x").debug("quiet")
        logging.getLogger("aiokafka").info("chatty")
    """
    assert [event["event"] for event in as_json(lines)] == ["bundle b runs on cpu"]
    assert [event["event"] for event in as_json(lines, log_level="debug")] == [
        "bundle b runs on cpu",
        "quiet",
    ]
    assert as_json(lines, log_level="warning") == []


def test_faust_is_a_library_under_the_name_of_our_module_too() -> None:
    lines = """
        logging.getLogger("headwater.kafka.faust_group").info("[^-_Producer]: Stopping...")
        logging.getLogger("headwater.kafka.faust_group").warning("[^-_Producer]: Crashed")
        structlog.get_logger("headwater.kafka.faust_group").info("batch_dropped")
    """
    assert [event["event"] for event in as_json(lines)] == ["[^-_Producer]: Crashed", "batch_dropped"]


def test_that_module_is_where_we_derive_from_faust() -> None:
    app: Any = faust_group._App
    assert app.logger.name == logging_setup._FAUST_SERVICES


def test_what_json_has_no_form_for_is_written_as_text() -> None:
    (event,) = as_json(
        'from pathlib import Path; structlog.get_logger("headwater.x").info("at", p=Path("/x"))'
    )
    assert event["p"] == "/x"


def test_as_text_a_line_names_its_logger_and_has_no_colours_in_a_file() -> None:
    ours, theirs = logged("""
        structlog.get_logger("headwater.x").info("put", items=3)
        logging.getLogger("aiokafka").warning("no answer")
    """).splitlines()
    assert "put" in ours
    assert "items=3" in ours
    assert "no answer" in theirs
    assert "[aiokafka]" in theirs
    assert "\x1b" not in ours + theirs


def test_text_of_strangers_steers_no_terminal_and_begins_no_line() -> None:
    written = logged("""
        log = structlog.get_logger("headwater.x")
        log.warning("first", item="\\x1b[2J\\nsecond \\u202e")
        logging.getLogger("aiokafka").warning("no \\x9b2J")
        try:
            raise ValueError("\\x1b[2J")
        except ValueError:
            log.exception("failed")
        """)
    assert not any(each in written for each in "\x1b\x9b\u202e")
    assert r"item='\\x1b[2J\\nsecond \\u202e'" in written
    assert r"ValueError: \x1b[2J" in written
    assert len([line for line in written.splitlines() if line[:2] == "20"]) == 3
