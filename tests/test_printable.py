"""What others say doesn't move the cursor, and doesn't forge lines of a log."""

from __future__ import annotations

import logging

import pytest

from dispy.protocol.printable import CHARS_MAX, PrintableFormatter, line, lines, short

RECORD = "2026-01-01 dispy.broker INFO: all is well"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("node é 節点", "node é 節点"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\udcff", "\\udcff"),
        ("\0", "\\x00"),
    ],
)
def test_a_line_is_one_line_without_effects(text: str, seen: str) -> None:
    assert line(text) == seen


def test_lines_stay_lines() -> None:
    assert lines("a\n\tb\x1b[1m\r\n") == "a\n\tb\\x1b[1m\\r\n"


def test_a_record_cannot_look_like_two() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "node %s", (f"n\n{RECORD}",), None)
    text = PrintableFormatter("%(levelname)s: %(message)s").format(record)
    assert text == f"INFO: node n\n    {RECORD}"
    assert not any(each.startswith("2026") for each in text.splitlines())


def test_long_ones_are_cut() -> None:
    assert short("x" * CHARS_MAX) == "x" * CHARS_MAX
    assert short("x" * (CHARS_MAX + 7)) == "x" * CHARS_MAX + "... (7 more characters)"
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", ("n" * (1 << 20),), None)
    assert len(PrintableFormatter("%(message)s").format(record)) < 2 * CHARS_MAX
