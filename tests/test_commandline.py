"""The options that several commands have, and where they let a process listen and dial."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from dispy.cli import main as dispy_command
from dispy.protocol import configfile, interfaces, listening, protection
from dispy.protocol import secret as secrets
from dispy.protocol.commandline import (
    SETTINGS,
    SecretOptions,
    addresses,
    config_options,
    host_options,
    listen_at,
    may_dial,
    secret_options,
    secret_options_of,
)
from dispy.protocol.errors import SecretNeededError
from dispy.protocol.interfaces import InterfaceAddress
from dispy.protocol.protection import NOTHING, Protection

SECRET = secrets.new()
SECURED = Protection(secrets.read(SECRET))
INSECURE = Protection(None, True)


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the environment counts, and what is written goes to the test's folder."""
    monkeypatch.delenv("DISPY_HOST", raising=False)
    monkeypatch.delenv("DISPY_SECRET", raising=False)
    monkeypatch.delenv("DISPY_SECRET_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))


def seen(*arguments: str) -> tuple[Result, dict[str, Any]]:
    """Run a command with all of these options; return what it was given."""
    given: dict[str, Any] = {}

    @click.command(context_settings=SETTINGS)
    @host_options
    @click.option("--node", "nodes", multiple=True, callback=addresses(9701))
    @click.option("--broker", default="", callback=addresses(9700))
    @secret_options
    @secret_options_of("node", "nodes")
    @config_options
    def command(save_config: str | None, **more: Any) -> None:
        given.update(more)
        if save_config:
            configfile.save_options(click.get_current_context(), save_config)
        given["protection"] = more["secret"].find()
        given["of nodes"] = more["node_secret"].find(given["protection"])

    return CliRunner().invoke(command, list(arguments)), given


# -- secrets -------------------------------------------------------------------------------------


def test_a_secret_is_found_by_option_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch(0o600)
    file.write_text(SECRET + "\n")
    assert seen("--secret", SECRET)[1]["protection"] == SECURED
    assert seen("-s", SECRET)[1]["protection"] == SECURED
    assert seen("--secret_file", str(file))[1]["protection"] == SECURED
    monkeypatch.setenv("DISPY_SECRET_FILE", str(file))
    assert seen()[1]["protection"] == SECURED
    assert seen("--insecure")[1]["protection"] == INSECURE


def test_one_side_may_have_a_secret_of_its_own() -> None:
    other = secrets.new()
    given = seen("--secret", SECRET, "--node-secret", other)[1]
    assert given["protection"] == SECURED
    assert given["of nodes"] == Protection(secrets.read(other))
    assert seen("--secret", SECRET)[1]["of nodes"] == SECURED


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--secret", "dispy1_short"), "damaged"),
        (("--secret-file", "/no/such/file"), "can't read"),
        (("--keyfile", "/no/such/file"), "can't read"),
        (("--insecure", "--secret", "x"), "choose"),
    ],
)
def test_a_secret_that_is_none_ends_the_command(arguments: tuple[str, ...], says: str) -> None:
    result, _ = seen(*arguments)
    assert result.exit_code == 2 and says in result.output


def test_a_secret_of_the_command_line_is_warned_of() -> None:
    (warning,) = SecretOptions("x").warnings()
    assert "--secret-file" in warning
    assert not SecretOptions(file="x").warnings() and not SecretOptions().warnings()


def test_secrets_are_read_from_files_of_options_but_never_written(tmp_path: Path) -> None:
    file = tmp_path / "saved"
    secret = ("--secret", SECRET, "--node-secret", SECRET)
    seen(*secret, "--host", "127.0.0.1", "--save-config", str(file))
    assert SECRET not in file.read_text() and "host" in file.read_text()
    file.write_text(f"[DEFAULT]\nsecret = {SECRET}\n")
    file.chmod(0o600)
    assert seen("--config", str(file))[1]["protection"] == SECURED
    file.chmod(0o640)
    result, _ = seen("--config", str(file))
    assert result.exit_code == 2 and "chmod 600" in result.output and SECRET not in result.output


def test_what_a_user_should_know() -> None:
    assert not SECURED.warnings() and not NOTHING.warnings()
    assert "can run programs" in INSECURE.warnings()[0]
    assert protection.find(text="short").warnings()


# -- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, expected",
    [
        ("host", "host:9701"),
        ("host:5", "host:5"),
        ("10.1.2.3", "10.1.2.3:9701"),
        ("::1", "[::1]:9701"),
        ("[::1]", "[::1]:9701"),
        ("[::1]:5", "[::1]:5"),
    ],
)
def test_addresses(value: str, expected: str) -> None:
    given = seen("--node", value, "--node", "b", "--broker", value)[1]
    assert given["nodes"] == (expected, "b:9701")
    assert given["broker"] == expected.replace("9701", "9700")


@pytest.mark.parametrize("value", ["host:", "host:x", ":5", "host:0", "host:65536", "[]:5"])
def test_what_is_no_address(value: str) -> None:
    result, _ = seen("--node", value)
    assert result.exit_code == 2 and "is not HOST or HOST:PORT" in result.output


@pytest.mark.parametrize(
    "hosts, with_secret, without",
    [
        ([], ["*"], ["127.0.0.1"]),
        (["127.0.0.1", "localhost", "::1"], ["127.0.0.1", "::1"], ["127.0.0.1", "::1"]),
        (["*"], ["*"], None),
        (["127.0.0.1", "*"], ["*"], None),
        (["0.0.0.0"], ["0.0.0.0"], None),
        (["::"], ["::"], None),
        (["192.0.2.1"], ["192.0.2.1"], None),
    ],
)
def test_where_to_listen(
    hosts: list[str], with_secret: list[str], without: list[str] | None
) -> None:
    assert listen_at(hosts, SECURED) == with_secret
    if without is not None:
        assert listen_at(hosts, NOTHING) == without == listen_at(hosts, INSECURE)
        return
    assert listen_at(hosts, INSECURE) == with_secret
    with pytest.raises(click.UsageError, match="dispy secret new"):
        listen_at(hosts, NOTHING)


def test_names_that_look_like_loopback_are_not() -> None:
    with pytest.raises(click.UsageError, match="can't be found"):
        listen_at(["127.example.invalid"], NOTHING)


def test_the_environment_says_where_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_HOST", "127.0.0.1 ::1")
    assert listen_at([], SECURED) == ["127.0.0.1", "::1"]
    assert listen_at(["127.0.0.2"], SECURED) == ["127.0.0.2"]
    monkeypatch.setenv("DISPY_HOST", "*")
    with pytest.raises(click.UsageError):
        listen_at([], NOTHING)


def test_what_may_be_dialled() -> None:
    assert may_dial("--broker", "localhost:5", NOTHING) == "127.0.0.1:5"
    assert may_dial("--broker", "no.such.host.invalid:5", SECURED) == "no.such.host.invalid:5"
    for address in ("192.0.2.1:5", "no.such.host.invalid:5"):
        with pytest.raises(click.UsageError):
            may_dial("--broker", address, NOTHING)


def test_both_ways_out_are_said() -> None:
    with pytest.raises(SecretNeededError) as raised:
        NOTHING.allow("--host", "192.0.2.1", False)
    text = str(raised.value)
    assert text.startswith("--host: '192.0.2.1'")
    assert "dispy secret new" in text and "--insecure" in text


def test_what_is_told_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        InterfaceAddress("eth0", "192.0.2.7", 24),
        InterfaceAddress("eth0", "2001:db8::7", 64),
        InterfaceAddress("docker0", "172.17.0.1", 16, is_virtual=True),
        InterfaceAddress("eth0", "fe80::7", 64),
        InterfaceAddress("lo", "127.0.0.1", 8, is_loopback=True),
    ]
    monkeypatch.setattr(interfaces, "addresses", lambda: found)
    everywhere = ["192.0.2.7:5", "[2001:db8::7]:5", "172.17.0.1:5"]
    assert listening.addresses_of(["*"], 5) == everywhere
    told = listening.addresses_of(["*"], 5, ["gate.example", "192.0.2.9:6"])
    assert told == ["gate.example:5", "192.0.2.9:6", *everywhere]
    assert listening.addresses_of(["127.0.0.1", "192.0.2.7"], 5) == ["192.0.2.7:5"]
    assert listening.addresses_of(["127.0.0.1"], 5) == ["127.0.0.1:5"]
    monkeypatch.setattr(interfaces, "addresses", lambda: found[3:])
    assert listening.addresses_of(["*"], 5) == ["127.0.0.1:5"]


def test_all_hosts_get_the_same_port() -> None:
    asked: list[str] = []

    def bind(door: str) -> str:
        asked.append(door)
        return door.replace(":0", ":4711")

    doors = listening.listen(bind, ["127.0.0.1:0", "[::1]:0"])
    assert asked == ["127.0.0.1:0", "[::1]:4711"] and doors == ["127.0.0.1:4711", "[::1]:4711"]
    assert listening.addresses_of_doors(doors) == ["127.0.0.1:4711"]
    assert listening.addresses_of_doors([]) == []


# -- dispy secret --------------------------------------------------------------------------------


def dispy_secret(*arguments: str) -> Result:
    return CliRunner().invoke(dispy_command, ["secret", *arguments])


def test_a_new_secret_is_found_and_is_only_ours(tmp_path: Path) -> None:
    assert dispy_secret("check").exit_code == 1
    assert dispy_secret("show").exit_code == 1
    made = dispy_secret("new")
    path = secrets.default_file()
    assert made.exit_code == 0 and str(path) in made.output and "scp" in made.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["secret"]
    text = path.read_text().strip()
    assert text not in made.output
    assert dispy_secret("show").output == text + "\n"
    checked = dispy_secret("check")
    assert checked.exit_code == 0 and str(path) in checked.output and text not in checked.output


def test_a_secret_is_only_replaced_by_force() -> None:
    dispy_secret("new")
    before = secrets.default_file().read_text()
    again = dispy_secret("new")
    assert again.exit_code == 1 and "--force" in again.output
    assert secrets.default_file().read_text() == before
    assert dispy_secret("new", "--force").exit_code == 0
    assert secrets.default_file().read_text() != before


def test_a_secret_of_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "lab.secret"
    made = dispy_secret("new", "--file", str(path))
    assert made.exit_code == 0 and "--secret-file" in made.output
    assert secrets.from_file(path) and not secrets.default_file().exists()


def test_what_others_may_read_is_no_secret() -> None:
    dispy_secret("new")
    secrets.default_file().chmod(0o644)
    for action in ("show", "check"):
        refused = dispy_secret(action)
        assert refused.exit_code == 1 and "chmod 600" in refused.output
