"""The command lines of a relay: ``dispy-relay``, and ``dispynetrelay`` as it was."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from dispy.protocol import exitcodes
from dispy.protocol.oldoptions import translate
from dispy.relay.cli import main
from dispy.relay.oldcommand import OPTIONS


def test_help_has_examples_and_exit_codes() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for text in ("dispy-relay --broker", "Exit codes:", "--secret-file", "--ext-host"):
        assert text in result.output


@pytest.mark.parametrize("option", ["--broker", "--node", "--host"])
def test_other_machines_need_a_secret(option: str) -> None:
    result = CliRunner().invoke(main, [option, "192.0.2.1"])
    assert result.exit_code == exitcodes.USAGE
    assert "dispy secret new" in result.output
    assert "--insecure" in result.output


@pytest.mark.parametrize("value", ["127.0.0.1:x", "127.0.0.1:70000", ":9700"])
def test_an_address_that_is_none_is_refused(value: str) -> None:
    result = CliRunner().invoke(main, ["--broker", value])
    assert result.exit_code == exitcodes.USAGE
    assert "is not HOST or HOST:PORT" in result.output


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["-i", "127.0.0.1", "-p", port])
    assert result.exit_code == exitcodes.UNAVAILABLE
    assert "Choose other ports with -p" in result.output


def test_options_are_saved_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "relay"
    given = ["--broker", "127.0.0.1:9800", "-n", "127.0.0.1", "--name", "bridge"]
    saved = CliRunner().invoke(main, [*given, "-s", "a secret text", "--save-config", str(path)])
    assert saved.exit_code == 0, saved.output
    assert "a secret text" not in path.read_text()
    context = main.make_context("dispy-relay", ["--config", str(path), "--name", "other"])
    assert context.params["broker"] == "127.0.0.1:9800"
    assert context.params["nodes"] == ("127.0.0.1:9701",)
    assert context.params["name"] == "other"


def test_old_options_are_those_of_today() -> None:
    old = ["-d", "-i", "127.0.0.1", "--ip_addr", "::1", "--scheduler_node", "127.0.0.1"]
    old += ["-p", "9800", "-s", "text", "--keyfile", "k", "--certfile", "c", "--daemon"]
    now = translate("dispynetrelay", "dispy-relay", OPTIONS, old)
    context = main.make_context("dispy-relay", now.arguments)
    assert context.params["hosts"] == ("127.0.0.1", "::1")
    assert context.params["broker"] == "127.0.0.1:9700"
    assert context.params["port"] == 9800
    assert not now.notes


def test_old_options_without_a_meaning_are_noted() -> None:
    old = ["--relay_port", "9701", "--scheduler_port", "9700", "--ipv4_udp_multicast"]
    now = translate("dispynetrelay", "dispy-relay", OPTIONS, old)
    assert not now.arguments
    assert len(now.notes) == 3
