"""What daemons and commands log, as text for people or as JSON lines for machines.

`configure` is called once, by a command line, before anything is logged. Libraries and user
programs never call it: there, logging belongs to the program.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

from .printable import PrintableFormatter, short

TEXT = "text"
JSON = "json"
FORMATS = (TEXT, JSON)
TEXT_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"


_waiting: list[tuple[str, str]] = []


class JsonLines(logging.Formatter):
    """One JSON object per record.

    Its keys: time (ISO 8601, UTC, milliseconds), level, logger, message, and exception (the
    traceback) when there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of ASCII, whatever its message contains."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": short(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _open_closed_streams() -> None:
    """Let nothing else get the numbers of stdin, stdout and stderr, which are written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the next one to be opened gets it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def configure(level: int, format: str = TEXT, file: Path | None = None) -> None:
    """Log from ``level`` up as ``format`` says, to ``file`` or else to standard error.

    A file is appended to, and opened anew when it has been moved away, so it can be rotated.
    Raises `OSError` if it can't be opened.
    """
    _open_closed_streams()
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = WatchedFileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(JsonLines() if format == JSON else PrintableFormatter(TEXT_FORMAT))
    for before in logging.root.handlers[:]:
        logging.root.removeHandler(before)
        before.close()
    logging.root.addHandler(handler)
    logging.root.setLevel(level)
    logging.getLogger("dispy").setLevel(level)  # it may have got one of its own
    while _waiting:
        logger, message = _waiting.pop(0)
        logging.getLogger(logger).warning("%s", message)


def later(logger: str, message: str) -> None:
    """Warn of something as soon as it is known how to log."""
    _waiting.append((logger, message))


class Seldom:
    """Remembers what has been logged of late, so that nobody can fill the log."""

    def __init__(self, interval_s: float = 60.0, most: int = 200) -> None:
        """Allow each thing once in ``interval_s`` seconds, and in that time ``most`` things."""
        self._interval_s = interval_s
        self._most = most
        self._said: dict[object, float] = {}  # in the order of time

    def allows(self, thing: object, now: float) -> bool:
        """Return whether to log this now; if so, it counts as logged."""
        while self._said:
            oldest = next(iter(self._said))
            if now < self._said[oldest] + self._interval_s:
                break
            del self._said[oldest]
        if thing in self._said or len(self._said) >= self._most:
            return False
        self._said[thing] = now
        return True
