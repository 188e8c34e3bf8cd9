"""Logging, set up once by the commands: one line an event on stderr, as text or JSON."""

import logging
import sys
from typing import Final

import structlog

from headwater.settings import Settings

# What every event gets, of structlog and of the standard library.
_SHARED: Final[tuple[structlog.typing.Processor, ...]] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
)


def configure_logging(settings: Settings) -> None:
    """Log events of structlog at the level of the settings, and of the standard library's loggers from warnings on.

    Faust and aiokafka log much at lower levels. Rooms that may not depend on structlog log by the standard
    library, with their fields as `extra`; their lines look the same.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if settings.log_json
        else [structlog.processors.format_exc_info, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*_SHARED, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                *_SHARED,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])
