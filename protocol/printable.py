"""Texts from others, for a terminal or a log: nothing in them moves the cursor or forges a line.

A name or a reason that came over the network may hold anything. Pure.
"""

from __future__ import annotations

import logging
import re

# Control characters of both kinds, and those that turn the direction of what follows.
_UNSEEN = "\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINE = re.compile(f"[{_UNSEEN}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_UNSEEN}]")
CHARS_MAX = 20_000  # of one record: a peer may call itself a megabyte
AGAIN = "\n    "  # how a line goes on: it can't be taken for another record


def short(text: str) -> str:
    """Return a text without what is too much of it."""
    left_out = len(text) - CHARS_MAX
    return text if left_out <= 0 else f"{text[:CHARS_MAX]}... ({left_out} more characters)"


def line(text: str) -> str:
    """Return a text as one line, with escapes for what can't be seen."""
    return _IN_LINE.sub(_escaped, text)


def lines(text: str) -> str:
    """Return a text of several lines, with escapes for all else that can't be seen."""
    return _IN_TEXT.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


class PrintableFormatter(logging.Formatter):
    """Formats records as usual, but what they quote can't look like other records."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; lines after the first are indented."""
        return lines(short(super().format(record))).replace("\n", AGAIN)
