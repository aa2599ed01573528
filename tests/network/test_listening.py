"""Where each kind of process listens when nothing is said: without a secret, for us only."""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .lans import PROGRAM, SECRET
from .namespaces import Host, Network

PATIENCE_S = 60.0
EPHEMERAL = 32768  # ports from here on: of what asks for others, and waits for answers
COMMANDS = {
    "node": ("dispy.node.cli", "-c", "1"),
    "relay": ("dispy.relay.cli",),
    "broker": ("dispy.broker.cli", "--no-journal"),
}
TCP = {"node": {9701}, "relay": {9700, 9701}, "broker": {9700, 9702}, "program": {9700}}
UDP = {"node": {9701}, "relay": {9700, 9701}, "broker": {9700}, "program": {9700}}
KINDS = pytest.mark.parametrize("kind", TCP)


@pytest.fixture
def host(network: Network) -> Host:
    host = network.host("alone")
    host.join(network.subnet("lan"), "10.3.0.1/24", "fd00:3::1/64")
    return host


def start(host: Host, kind: str, folder: Path, secret: str) -> None:
    """Start a process with nothing but defaults."""
    environment = {"DISPY_SECRET": secret, "DISPY_SECRET_FILE": "", "TMPDIR": str(folder)}
    if kind == "program":
        cluster = json.dumps({"recover_file": str(folder / "recover")})
        record = str(folder / "record")
        command = [PROGRAM, "many", cluster, record, "1", "60"]
    else:
        command = ["-m", *COMMANDS[kind]]
    host.start(sys.executable, *command, environment=environment)


def listening(host: Host, protocol: str) -> set[tuple[str, int]]:
    """Return all addresses at which somebody takes what comes."""
    found = set()
    for line in host.run("ss", "-Hln", f"--{protocol}").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        found.add((address.partition("%")[0].strip("[]"), int(port)))
    return found


def until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def is_loopback(address: str) -> bool:
    return address != "*" and ipaddress.ip_address(address).is_loopback


@KINDS
def test_without_a_secret_nobody_else_can_reach_it(host: Host, tmp_path: Path, kind: str) -> None:
    start(host, kind, tmp_path, "")
    until(lambda: {port for _, port in listening(host, "tcp")} >= TCP[kind])
    if kind == "program":  # its node dials it
        until(lambda: (tmp_path / "record").exists())
    assert all(is_loopback(address) for address, _ in listening(host, "tcp"))
    assert not listening(host, "udp")


@KINDS
def test_with_a_secret_only_doors_are_open_to_others(host: Host, tmp_path: Path, kind: str) -> None:
    start(host, kind, tmp_path, SECRET)
    until(lambda: {port for _, port in listening(host, "tcp")} >= TCP[kind])
    if kind == "program":
        until(lambda: (tmp_path / "record").exists())
    for protocol, doors in (("tcp", TCP[kind]), ("udp", UDP[kind])):
        until(lambda: {port for _, port in listening(host, protocol)} >= doors)  # noqa: B023
        found = [port for address, port in listening(host, protocol) if not is_loopback(address)]
        asking = {port for port in found if protocol == "udp" and port >= EPHEMERAL}
        assert set(found) - asking == doors, protocol
