"""The options of ``dispy-node`` that are numbers with a meaning."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from dispy.node.cli import main


@pytest.mark.parametrize("option", ["--max-file-size", "--max_file_size"])
@pytest.mark.parametrize("value", ["x", "-1", "5q", "m", "1.5g", ""])
def test_a_size_that_is_none_is_refused(option: str, value: str) -> None:
    result = CliRunner().invoke(main, [option, value])
    assert result.exit_code == 2
    assert f"{value!r} is not a number, or one with k, m, g or t" in result.output


@pytest.mark.parametrize(
    "value, expected",
    [
        ("0", 0),
        ("1000", 1000),
        ("3k", 3 << 10),
        ("10M", 10 << 20),
        ("2g", 2 << 30),
        ("1t", 1 << 40),
    ],
)
def test_sizes(value: str, expected: int) -> None:
    context = main.make_context("dispy-node", ["--max_file_size", value, "--client_shutdown"])
    assert context.params["max_file_bytes"] == expected
    assert context.params["client_shutdown"] is True


def test_help_names_the_options() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for option in ("--max-file-size", "--client-shutdown", "--dest-path-prefix"):
        assert option in result.output
