"""Logging that a test sets up for its process, and that ends with the test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_logging() -> Iterator[None]:
    """Puts back what the root logger, this package's and loguru's were."""
    loggers = logging.getLogger(), logging.getLogger("chroma_plugin")
    before = [(log, log.handlers[:], log.level) for log in loggers]
    try:
        yield
    finally:
        for log, handlers, level in before:
            log.handlers[:] = handlers
            log.setLevel(level)
        if "loguru" in sys.modules:
            from loguru import logger

            logger.remove()
            logger.add(sys.__stderr__ or sys.stderr)
