"""What others say doesn't move the cursor, and doesn't forge lines of a log."""

from __future__ import annotations

import logging

import pytest

from dispy.protocol.printable import PrintableFormatter, line, lines

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
