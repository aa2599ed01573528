"""Machines of a made-up network with homes and names, at which commands are typed as users do.

There is no sshd: ``ssh`` and ``scp`` are programs of ours that do the same between these hosts.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from tests.end_to_end.waiting import until

from .namespaces import Host, Network

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
        if not is_daemon:
            done = self.run(host, line)
            assert done.returncode == 0, f"{host}$ {line}\n{done.stdout}{done.stderr}{self.logs()}"
            return done.stdout
        with log.open("wb") as err:
            process = subprocess.Popen(
                self._command(host, line), env=self._environment(host), stdout=err, stderr=err
            )
        self.daemons.append((f"{host}$ {line}", process, log))
        until(lambda: self._is_ready(words[0], process, log), f"{host}$ {line}", LIMIT_S)
        return ""

    def run(self, host: str, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command at a machine to whatever end; what takes too long is killed."""
        return subprocess.run(
            ["timeout", "-k", "1", str(LIMIT_S), *self._command(host, line)],
            env=self._environment(host),
            capture_output=True,
            text=True,
            check=False,
        )

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
        start = ["unshare", "-mu", "sh", "-ec", within, "sh", host, str(names), f"exec {line}"]
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

    def kill(self) -> None:
        """End all daemons by force, after a test that failed."""
        for _, process, _ in self.daemons:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self.daemons.clear()


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
