"""Logs of one worker: one line an event on stderr, as text or as JSON.

Our own events come from structlog, those of libraries from the standard library's `logging`. Both end in one handler, so
every line has the same form. Warnings and uncaught exceptions are logged too.
Rooms that may not depend on structlog use `logging` and give their fields as `extra`.

Native libraries (ONNX Runtime, gRPC, Qdrant's engine) may write to the process's stderr themselves; that is not Python's
and stays as it is.
"""

import logging
import sys
import threading
from collections.abc import Sequence
from io import StringIO
from types import TracebackType
from typing import Final, TextIO

import structlog

from headwater.plain_text import plain
from headwater.settings import Settings

_OURS: Final = "headwater"
# Faust logs the life of its services under the name of the module that derives from them.
_FAUST_SERVICES: Final = "headwater.kafka.faust_group"

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


def configure_logging(settings: Settings) -> None:
    """Set up logging for the whole process, from `log_level` and `log_json`. Replaces what was set up before.

    Our own modules log from `log_level` on, libraries from `warning` on: Faust and aiokafka are chatty.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    # Of every event, ours or foreign.
    shared: Sequence[structlog.typing.Processor] = (
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json_renderers() if settings.log_json else [_plain_fields, _text_renderer()]),
            ],
        )
    )
    handler.addFilter(_is_wanted)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    logging.getLogger(_OURS).setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _is_wanted(record: logging.LogRecord) -> bool:
    is_structlog = hasattr(record, "_logger")
    return is_structlog or record.levelno >= logging.WARNING or record.name != _FAUST_SERVICES


def _json_renderers() -> list[structlog.typing.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _text_renderer() -> structlog.typing.Processor:
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_plain_traceback)


def _plain_fields(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Text of strangers, such as an id that a library quotes, steers no terminal and begins no line of its own."""
    return {name: plain(value) if isinstance(value, str) else value for name, value in event.items()}


def _plain_traceback(out: TextIO, error: structlog.typing.ExcInfo) -> None:
    lines = StringIO()
    structlog.dev.plain_traceback(lines, error)
    out.write(plain(lines.getvalue(), kept="\n"))


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    log.critical("uncaught_exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is None:
        return
    thread = failure.thread.name if failure.thread is not None else None
    exc_info = (failure.exc_type, failure.exc_value, failure.exc_traceback)
    log.critical("uncaught_exception_in_thread", thread=thread, exc_info=exc_info)
