"""Structured logs: one set-up for both processes, one table of key names.

An event is a fixed fact in the past tense (``pod_bound``); what varies is in keys. JSON for
aggregators, coloured lines for a terminal. Input: ``LogSettings``. Output: stderr.

=============  =====================================================
key            meaning
=============  =====================================================
pod            ``namespace/name``
module         which part of the program speaks
uid            the pod's or node's UID
object         any other object, as ``Kind namespace/name``
resource       a kind of objects, by its plural
node, device   node name; device UUID
container      container name
vendor         name of the vendor's row
generation     the cache's counter of a node
attempt        1 for the first try
seconds        a duration
error          what failed, as text
status         an HTTP status
request, verb  id of a request that is being served; what it asks
result         how it ended
=============  =====================================================
"""

from __future__ import annotations

import logging
import sys
from typing import Final, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from hami.config import LogSettings

_given: Final[list[FilteringBoundLogger]] = []
"""Every logger that was given out: one a module."""


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose events carry ``module=name``; it takes its set-up at its first event."""
    logger = cast(FilteringBoundLogger, structlog.get_logger(module=name))
    _given.append(logger)
    return logger


def configure(settings: LogSettings) -> None:
    """Send every log line of this process, the libraries' included, to stderr in one format.

    May be called again; the loggers that were given out follow.
    """
    pretty = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if pretty
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    renew()


def renew() -> None:
    """Have the loggers that were given out take the set-up of now."""
    for logger in _given:
        vars(logger).pop("bind", None)  # where structlog keeps the set-up of the first event
