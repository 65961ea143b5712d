"""What a server logs: lines of text or of JSON, with the ids of what they are about.

The standard library's logging, so that uvicorn's lines and everybody else's come in the same form.
A line never holds audio or text of a conversation: what is logged are names, ids, figures and the
names of errors.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, get_args

from chroma_plugin.errors import ConfigError

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
OURS = "chroma_plugin"

_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 (never changed)


@contextmanager
def about(**ids: str | None) -> Iterator[None]:
    """Adds ids (`session`, `turn`, `response`) to every line logged inside, by this task and those
    that it starts; None adds nothing."""
    given = {name: value for name, value in ids.items() if value is not None}
    token = _about.set(_about.get() | given)
    try:
        yield
    finally:
        _about.reset(token)


def tell(log: logging.Logger, name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Logs that something happened, with figures; those that are None are left out."""
    if log.isEnabledFor(level):
        known = {key: value for key, value in fields.items() if value is not None}
        log.log(level, name, extra={"fields": known})


class _Fields(logging.Formatter):
    """What both forms have in common."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """The ids and figures of a line."""
        return _about.get() | getattr(record, "fields", {})

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """UTC, to the millisecond."""
        when = datetime.fromtimestamp(record.created, UTC)
        return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextLines(_Fields):
    """`TIME level logger message key=value ...`; a traceback follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback if there is one."""
        head = f"{self.formatTime(record)} {record.levelname.lower()} {record.name} "
        fields = "".join(f" {key}={_plain(it)}" for key, it in self.fields(record).items())
        line = head + _one_line(record.getMessage()) + fields
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonLines(_Fields):
    """One JSON object a line: `time`, `level`, `logger`, `message`, then ids and figures."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever is in it."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: it for key, it in self.fields(record).items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Lines(logging.StreamHandler[TextIO]):
    """The one handler of a server."""


def set_up(
    form: LogFormat = "text", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Has everything logged in one form, to stderr; what was set up here before is replaced.

    Args:
        form: lines of text or of JSON.
        level: of this package. Other packages are heard from warnings on, whatever it says: at
            lower levels some of them write down what goes over their sockets.
        stream: where to instead.

    Raises:
        ConfigError: there is no such form or level.
    """
    for name, given, known in (
        ("format", form, get_args(LogFormat)),
        ("level", level, get_args(LogLevel)),
    ):
        if given not in known:
            raise ConfigError(f"Log {name} {given!r} is not known; use {', '.join(known)}.")
    handler = _Lines(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    for old in [it for it in root.handlers if isinstance(it, _Lines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(level.upper())
    _take_over_loguru()


def _take_over_loguru() -> None:
    """Pipecat, which may judge turns here, has a log of its own, of everything, in colours."""
    try:
        from loguru import logger
    except ImportError:
        return
    logger.remove()
    logger.add(_pass_on, level="WARNING", format="{message}")


def _pass_on(message: Any) -> None:
    record = message.record
    log = logging.getLogger(record["name"] or "loguru")
    log.log(record["level"].no, "%s", record["message"], exc_info=record["exception"])


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _plain(it: Any) -> str:
    """A value that stays one word, or is quoted."""
    text = f"{it:g}" if isinstance(it, float) else str(it)
    return json.dumps(text) if not text or any(c in text for c in ' "=\n\r\t') else text
