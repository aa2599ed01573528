"""What all commands share: logs, the spelling of options, options in files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dispy.protocol import configfile, logs
from dispy.protocol.commandline import SETTINGS

log = logging.getLogger("dispy.test")
visible = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1)
plain = visible.filter(lambda text: text[0] not in "[#;")  # a list, or a comment


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Logging is the process's own, which runs other tests."""
    root, dispy = logging.getLogger(), logging.getLogger("dispy")
    handlers, levels = root.handlers[:], (root.level, dispy.level)
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    dispy.setLevel(levels[1])


def lines_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_is_a_line_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs.configure(logging.INFO, logs.JSON, path)
    log.info("two\nlines, %s", "ü\udc80")
    try:
        raise KeyError("x")
    except KeyError:
        log.exception("failed")
    log.debug("not this")
    first, second = lines_of(path)
    assert first["message"] == "two\nlines, ü\udc80" and first["logger"] == "dispy.test"
    assert "exception" not in first and first["level"] == "INFO"
    assert second["exception"].endswith("KeyError: 'x'") and second["level"] == "ERROR"


def test_text_is_for_people(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs.configure(logging.DEBUG, logs.TEXT, path)
    log.debug("words")
    assert path.read_text().endswith("dispy.test DEBUG: words\n")


def test_what_is_said_too_early_is_logged_once(tmp_path: Path) -> None:
    logs.later("dispy.test", "100% old")
    logs.configure(logging.INFO, logs.JSON, tmp_path / "log")
    logs.configure(logging.INFO, logs.JSON, tmp_path / "again")
    assert [line["message"] for line in lines_of(tmp_path / "log")] == ["100% old"]
    assert not (tmp_path / "again").read_text()


# -- options --------------------------------------------------------------------------------


@click.command(context_settings=SETTINGS)
@click.option("-n", "--some-nodes", "nodes", multiple=True)
@click.option("--cpu-count", default=0)
@click.option("--is-quiet", is_flag=True)
@click.option("--config", is_eager=True, expose_value=False, callback=configfile.read_options)
@click.option("--save-config")
@click.pass_context
def command(
    context: click.Context,
    nodes: tuple[str, ...],
    cpu_count: int,
    is_quiet: bool,
    save_config: str | None,
) -> None:
    """Say what was understood."""
    if save_config:
        configfile.save_options(context, save_config)
    click.echo(json.dumps([nodes, cpu_count, is_quiet]))


def understood(*arguments: str) -> object:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.mark.parametrize("option", ["--some-nodes", "--some_nodes", "-n"])
def test_options_may_have_underscores_and_their_values_keep_them(option: str) -> None:
    assert understood(option, "a_b", "--cpu_count=3", "--is_quiet") == [["a_b"], 3, True]
    assert understood("-na_b") == [["a_b"], 0, False]


@given(st.lists(plain), st.integers(-9, 9), st.booleans())
def test_what_is_saved_is_read_again(nodes: list[str], cpus: int, is_quiet: bool) -> None:
    arguments = [f"--some-nodes={node}" for node in nodes]
    arguments += [f"--cpu-count={cpus}", *(["--is-quiet"] if is_quiet else [])]
    with TemporaryDirectory() as folder:
        path = f"{folder}/file"
        saved = CliRunner().invoke(command, [*arguments, "--save-config", path])
        assert saved.exit_code == 0, saved.output
        assert understood("--config", path) == [nodes, cpus, is_quiet]


def test_the_command_line_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("[DEFAULT]\nsome_nodes = a\n  b\ncpu_count = 3\nis_quiet = True\n")
    assert understood("--config", str(path)) == [["a", "b"], 3, True]
    assert understood("--config", str(path), "-n", "c", "--cpu-count", "1") == [["c"], 1, True]


def test_files_of_dispy_have_lists_as_python_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("[DEFAULT]\nsome_nodes = ['a', 'b']\ncpu_count = \n")
    assert understood("--config", str(path)) == [["a", "b"], 0, False]
    path.write_text("[DEFAULT]\nsome_nodes = [__import__('os').getcwd()]\n")
    assert understood("--config", str(path)) == [["[__import__('os').getcwd()]"], 0, False]
