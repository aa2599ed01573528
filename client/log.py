"""The logger "dispy", an ordinary one of the standard library.

It has the levels as attributes, as programs expect (``dispy.logger.INFO``), and it speaks
from INFO up on standard error for as long as the program has not set up logging itself.
"""

from __future__ import annotations

import logging
import sys
from typing import cast

from dispy.protocol.printable import PrintableFormatter


class Logger(logging.Logger):
    """What `logger` looks like to a type checker; at run time it is a plain Logger."""

    DEBUG: int
    INFO: int
    WARN: int
    WARNING: int
    ERROR: int
    CRITICAL: int
    FATAL: int


class LastResort(logging.Handler):
    """Print a line to standard error if nobody else would."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, unless the program has set up handlers of its own."""
        if logger.handlers != [self] or (logger.propagate and logging.root.handlers):
            return
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def _open() -> Logger:
    opened = cast(Logger, logging.getLogger("dispy"))
    for name in Logger.__annotations__:
        setattr(opened, name, getattr(logging, name))
    if opened.level == logging.NOTSET:
        opened.setLevel(logging.INFO)
    handler = LastResort()
    handler.setFormatter(PrintableFormatter("%(asctime)s dispy - %(message)s", "%Y-%m-%d %H:%M:%S"))
    opened.addHandler(handler)
    return opened


logger = _open()
