"""The command lines of docs/networks.md: each is typed at the machine that it says.

A section is played on hosts of a network made for it, with a home and a name each. There is no
sshd: ``ssh`` and ``scp`` are programs of ours that do the same between these hosts.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.end_to_end.waiting import until

from .namespaces import Host, Network

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "networks.md").read_text()
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"(\w+)\$ (.+)")
READY = {
    "dispy-node": "CPUs at",
    "dispy-broker": "nodes dial",
    "dispy-relay": "nodes dial",
    "ssh": "forwarding",
}
MODULES = {
    "dispy": "dispy.cli",
    "dispy-broker": "dispy.broker.cli",
    "dispy-node": "dispy.node.cli",
    "dispy-relay": "dispy.relay.cli",
}
STEPS = "Several machines, step by step"
RELAYS = "Relays"
MESSAGES = "What messages mean"
WORK = "#!/bin/sh\necho work $1\n"
SECRET = "dispy1_" + "A" * 43
LIMIT_S = 25.0

BETWEEN_HOSTS = """\
import ctypes, os, shutil, socket, subprocess, sys, threading

HOMES, PREFIX = os.environ["TEST_HOMES"], os.environ["TEST_PREFIX"]


def enter(host):
    with open(f"/run/netns/{PREFIX}{host}") as there:
        assert ctypes.CDLL(None).setns(there.fileno(), 0x40000000) == 0


def scp(source, target):
    host, _, path = target.partition(":")
    shutil.copy2(source, os.path.join(HOMES, host, path))


def carry(near, far):
    try:
        while data := near.recv(1 << 16):
            far.sendall(data)
    except OSError:
        pass
    for one in (near, far):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def connect(near, host, target):
    if host:
        enter(host)
    try:
        far = socket.create_connection(target)
    except OSError:
        near.close()
        return
    threading.Thread(target=carry, args=(near, far), daemon=True).start()
    carry(far, near)


def forward(host, way, what):
    port, target, target_port = what.split(":")
    opened = []

    def listen():
        if way == "-R":
            enter(host)
        opened.append(socket.create_server(("127.0.0.1", int(port))))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    print("forwarding", file=sys.stderr, flush=True)
    while True:
        near, _ = opened[0].accept()
        there = host if way == "-L" else ""
        aim = (near, there, (target, int(target_port)))
        threading.Thread(target=connect, args=aim, daemon=True).start()


def ssh(host, words):
    home = os.path.join(HOMES, host)
    sys.exit(subprocess.run(words, cwd=home, env={**os.environ, "HOME": home}).returncode)


name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "scp":
    scp(*[word for word in words if word != "-p"])
elif words[0] == "-N":
    forward(words[3], *words[1:3])
else:
    ssh(words[0], words[1:])
"""


def sections() -> dict[str, list[list[tuple[str, str]]]]:
    """Return the blocks of each section: lines, as hosts and what is typed there."""
    found: dict[str, list[list[tuple[str, str]]]] = {}
    for block in BLOCK.finditer(GUIDE):
        section = HEADING.findall(GUIDE[: block.start()])[-1]
        lines = [LINE.fullmatch(line) for line in block[1].splitlines()]
        assert all(lines), block[1]
        found.setdefault(section, []).append([(line[1], line[2]) for line in lines if line])
    return found


SECTIONS = sections()


class Place:
    """Machines with homes, where commands are typed."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self.daemons: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self.homes = folder / "homes"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, module in MODULES.items():
            self._program(name, f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        for name in ("ssh", "scp"):
            self._program(name, f"#!{sys.executable}\n{BETWEEN_HOSTS}")

    def _program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def add(self, name: str) -> Host:
        """Make a machine with a home."""
        home = self.homes / name
        (home / "tmp").mkdir(parents=True)
        (home / "work.sh").write_text(WORK)
        (home / "work.sh").chmod(0o755)
        self.hosts[name] = self.network.host(name)
        return self.hosts[name]

    def hand_out(self) -> None:
        """Give all machines the same secret."""
        for name in self.hosts:
            path = self.homes / name / ".config" / "dispy" / "secret"
            path.parent.mkdir(parents=True, mode=0o700)
            path.write_text(SECRET)
            path.chmod(0o600)

    def type(self, host: str, line: str) -> str:
        """Run a command at a machine to its end, or until a daemon is ready; return its output."""
        words = shlex.split(line)
        is_daemon = words[0] in READY and (words[0] != "ssh" or words[1] == "-N")
        log = self.homes / host / f"log{len(self.daemons)}"
        command = self._command(host, f"exec {line}")
        environment = self._environment(host)
        if not is_daemon:
            # Whatever takes too long is killed.
            command = ["timeout", "-k", "1", str(LIMIT_S), *command]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{host}$ {line}\n{done.stdout}{done.stderr}{self.logs()}"
            return done.stdout
        with log.open("wb") as err:
            process = subprocess.Popen(command, env=environment, stdout=err, stderr=err)
        self.daemons.append((f"{host}$ {line}", process, log))
        until(lambda: self._is_ready(words[0], process, log), f"{host}$ {line}", LIMIT_S)
        return ""

    @staticmethod
    def _is_ready(name: str, process: subprocess.Popen[bytes], log: Path) -> bool:
        said = log.read_text()
        assert process.poll() is None, said
        return READY[name] in said

    def _command(self, host: str, line: str) -> list[str]:
        names = self.homes / host / "hosts"
        known = {name: self._seen_from(host, name) for name in self.hosts}
        known |= {"localhost": "127.0.0.1", "gate.example.org": "192.0.2.1"}
        names.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        within = 'hostname "$1"; mount --bind "$2" /etc/hosts; cd; exec sh -c "$3"'
        start = ["unshare", "-mu", "sh", "-ec", within, "sh", host, str(names), line]
        return [*self.hosts[host].through, *start]

    def _seen_from(self, host: str, name: str) -> str:
        """Return the address of a machine in a network of this one, if there is one."""
        own = {plug.subnet for plug in self.hosts[host].plugs}
        plugs = self.hosts[name].plugs
        return next((each for each in plugs if each.subnet in own), plugs[0]).addresses[0]

    def _environment(self, host: str) -> dict[str, str]:
        home = str(self.homes / host)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XDG_", "DISPY_")) or name == "DISPY_ROOT"
        }
        own = {"HOME": home, "TMPDIR": f"{home}/tmp", "TEST_HOMES": str(self.homes)}
        prefix = self.hosts[host].namespace.removesuffix(host)
        path = f"{self.bin}:{os.environ['PATH']}"
        return {**kept, **own, "TEST_PREFIX": prefix, "PATH": path, "LOGNAME": "ann"}

    def logs(self) -> str:
        """Return what the daemons have said."""
        return "".join(f"\n-- {line}\n{log.read_text()}" for line, _, log in self.daemons)

    def stop(self) -> None:
        """End all daemons: those of ours end well."""
        for line, process, log in reversed(self.daemons):
            process.send_signal(signal.SIGTERM)
            code = process.wait(LIMIT_S)
            assert code == 0 or "ssh" in line, f"{line}\n{log.read_text()}"
        self.daemons.clear()


@pytest.fixture
def place(network: Network, tmp_path: Path) -> Iterator[Place]:
    place = Place(network, tmp_path)
    yield place
    for _, process, _ in place.daemons:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def connect(place: Place, *names: str, last: bool = True) -> None:
    """Connect machines in a row, each to the next one by a network; one network if not a row."""
    if last:
        lan = place.network.subnet("lan")
        for number, name in enumerate(names, 1):
            place.add(name).join(lan, f"10.0.0.{number}/24")
        return
    for name in names:
        place.add(name)
    for number, (one, other) in enumerate(pairwise(names)):
        lan = place.network.subnet(f"lan{number}")
        place.hosts[one].join(lan, f"10.{number}.0.2/24")
        place.hosts[other].join(lan, f"10.{number}.0.3/24")


def play(place: Place, blocks: list[list[tuple[str, str]]]) -> list[str]:
    """Type all that is there; return what the runs have printed."""
    printed = []
    for block in blocks:
        if any(
            line.split()[0] in ("dispy-node", "dispy-broker", "dispy-relay") for _, line in block
        ):
            place.stop()
        for host, line in block:
            output = place.type(host, line)
            if " run " in line:
                assert "work 1" in output and "work 2" in output, output + place.logs()
                printed.append(output)
    place.stop()
    return printed


def test_every_command_is_found() -> None:
    assert sum(len(block) for blocks in SECTIONS.values() for block in blocks) == sum(
        bool(LINE.fullmatch(line)) for line in GUIDE.splitlines()
    )
    assert {STEPS, RELAYS} < SECTIONS.keys() and len(SECTIONS) > 7


@pytest.mark.parametrize("section", [each for each in SECTIONS if each != RELAYS])
def test_a_section_in_one_network(section: str, place: Place) -> None:
    blocks = SECTIONS[section]
    names = dict.fromkeys(["desk", "node1", *(host for block in blocks for host, _ in block)])
    connect(place, *names)
    if section != STEPS:
        place.hand_out()
    if section == MESSAGES:
        place.type("node1", "dispy-node")
    for output in play(place, blocks):
        assert "ssh" in section or "at 127.0.0.1" not in output, "it ran at home"


def test_one_relay(place: Place) -> None:
    [first, _] = SECTIONS[RELAYS]
    connect(place, "desk", "gate", "node1", last=False)
    place.hand_out()
    play(place, [first])


def test_two_relays_in_a_row(place: Place) -> None:
    [_, second] = SECTIONS[RELAYS]
    connect(place, "head", "gate", "gate2", "node1", last=False)
    place.hand_out()
    play(place, [second])


def test_the_messages_are_those_of_the_program() -> None:
    """What stands in the table is a part of what is said, so that it's found."""
    table = GUIDE.partition("## What messages mean")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    sources = [
        path.read_text()
        for folder in ("protocol", "client", "node", "broker", "relay")
        for path in (ROOT / folder).glob("*.py")
    ]
    said = [re.sub(r'"\s*\n\s*f?"', "", source) for source in sources]
    missing = [each for each in messages if not any(each in source for source in said)]
    assert len(messages) > 10 and not missing
