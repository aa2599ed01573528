"""Networks of several hosts on this machine: namespaces, subnets between them, and their faults.

Nothing of it is in the machine's own network: subnets are bridges in a namespace of their own, so
whatever is broadcast there stays there. All goes away with the `Network`, also when a test fails.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import psutil

PREFIX = f"dispytest{os.getpid()}"  # of the namespaces of this process
NOBODYS = "02:00:00:00:de:ad"  # what is sent there, all others on the subnet ignore
FOLDER = Path("/run/netns")
CLONE_NEWNET = 0x40000000

_numbers = itertools.count(1)


@functools.cache
def why_not() -> str:
    """Say why there can be no namespaces here; empty: there can."""
    if sys.platform != "linux":
        return "namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "only root can make namespaces"
    if shutil.which("ip") is None:
        return "there is no command ip"
    try:
        with Network() as network:
            network.host("a").join(network.subnet("lan"), "10.0.0.1/24", "fd00::1/64")
    except subprocess.CalledProcessError as error:
        return f"namespaces can't be made: {error.stderr.strip()}"
    return ""


@dataclass(eq=False)
class Plug:
    """Where a host is connected to a subnet."""

    subnet: Subnet
    interface: str
    addresses: list[str]  # without the length of their prefix; IPv4 first


@dataclass(eq=False)
class Subnet:
    """What all who join it can reach without a router, by broadcast and multicast as well."""

    name: str
    namespace: str
    plugs: list[Plug] = field(default_factory=list)


@dataclass(eq=False)
class Host:
    """A namespace in which processes can run. It has a loopback interface from the beginning."""

    name: str
    namespace: str
    plugs: list[Plug] = field(default_factory=list)
    cut_off: set[tuple[str, str]] = field(default_factory=set)  # address, interface
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def join(self, subnet: Subnet, *addresses: str) -> str:
        """Connect it to a subnet as the next interface (eth0, ...).

        Addresses are like "10.1.0.1/24". Returns the first of them, without the prefix's length.
        """
        interface = f"eth{len(self.plugs)}"
        port = f"port{len(subnet.plugs)}"
        ends = ("netns", self.namespace, "type", "veth", "peer", "name", port)
        ip("link", "add", interface, *ends, "netns", subnet.namespace)
        ip("-n", subnet.namespace, "link", "set", port, "master", "lan", "up")
        for address in addresses:
            more = ("nodad",) if ":" in address else ("broadcast", "+")
            ip("-n", self.namespace, "address", "add", address, "dev", interface, *more)
        ip("-n", self.namespace, "link", "set", interface, "up")
        bare = [address.partition("/")[0] for address in addresses]
        plug = Plug(subnet, interface, bare)
        self.plugs.append(plug)
        subnet.plugs.append(plug)
        return bare[0] if bare else ""

    @property
    def address(self) -> str:
        """Its first address."""
        return self.plugs[0].addresses[0]

    def route(self, to: str, via: str) -> None:
        """Reach other addresses ("10.2.0.0/24", "default") through a neighbour."""
        ip("-n", self.namespace, "route", "add", to, "via", via)

    def forward(self) -> None:
        """Be a router between the subnets that it is connected to."""
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            _run(*self.through, "sysctl", "-qw", f"{key}=1")

    @property
    def through(self) -> tuple[str, ...]:
        """What goes before a command so that it runs there; the process is the command's own."""
        return ("ip", "netns", "exec", self.namespace)

    def run(self, *command: str, timeout_s: float = 30.0) -> str:
        """Run a command there; return what it has written to stdout.

        Raises `subprocess.CalledProcessError` when it fails.
        """
        return _run(*self.through, *command, timeout_s=timeout_s)

    def start(
        self, *command: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command there; it is killed with the network at the latest."""
        process = subprocess.Popen(
            [*self.through, *command],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)  # it may be on its way into the namespace for a while
        return process

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have sockets that this thread opens, and threads and processes that it starts, be there.

        ZeroMQ opens its sockets in threads that are as old as their context: it is where they are.
        """
        with Path("/proc/thread-self/ns/net").open() as own:
            self.enter()
            try:
                yield
            finally:
                _enter(own.fileno())

    def enter(self) -> None:
        """Go there with this thread, and with all that it starts, for good."""
        with (FOLDER / self.namespace).open() as there:
            _enter(there.fileno())

    # -- faults --------------------------------------------------------------------------------

    def lose(self, other: Host) -> None:
        """Have nothing that is sent to a neighbour arrive, from now on; nobody is told."""
        for plug in self.plugs:
            for far in other.plugs:
                if far.subnet is plug.subnet:
                    for address in far.addresses:
                        self._lose(address, plug.interface)

    def _lose(self, address: str, interface: str) -> None:
        how = ("lladdr", NOBODYS, "dev", interface, "nud", "permanent")
        ip("-n", self.namespace, "neigh", "replace", address, *how)
        self.cut_off.add((address, interface))

    def heal(self) -> None:
        """Have all that it sends arrive again."""
        while self.cut_off:
            address, interface = self.cut_off.pop()
            ip("-n", self.namespace, "neigh", "del", address, "dev", interface)

    def unplug(self, interface: str = "eth0") -> None:
        """Pull the cable. Routes through this interface are gone when it is back."""
        ip("-n", self.namespace, "link", "set", interface, "down")

    def plug_in(self, interface: str = "eth0") -> None:
        """Put the cable back."""
        ip("-n", self.namespace, "link", "set", interface, "up")


def partition(one: Host, other: Host, there: bool = True, back: bool = True) -> None:
    """Cut two neighbours off from each other, in both directions or one; `heal` both after it."""
    if there:
        one.lose(other)
    if back:
        other.lose(one)


class Network:
    """Hosts and subnets that end together, with all processes in them."""

    def __init__(self) -> None:
        self._prefix = f"{PREFIX}x{next(_numbers)}"
        self._namespaces: list[str] = []
        self._hosts: list[Host] = []

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def host(self, name: str) -> Host:
        """Make a host without any connection."""
        self._hosts.append(Host(name, self._namespace(name)))
        return self._hosts[-1]

    def subnet(self, name: str) -> Subnet:
        """Make a subnet that nobody has joined so far."""
        namespace = self._namespace(name)
        ip("-n", namespace, "link", "add", "lan", "type", "bridge", "mcast_snooping", "0")
        ip("-n", namespace, "link", "set", "lan", "up")
        return Subnet(name, namespace)

    def _namespace(self, name: str) -> str:
        namespace = f"{self._prefix}{name}"
        ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def close(self) -> None:
        """Kill what still runs in the hosts, and remove them with all that was connected."""
        for process in [process for host in self._hosts for process in host.started]:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        while self._namespaces:
            namespace = self._namespaces.pop()
            for pid in ip("netns", "pids", namespace).split():
                if int(pid) != os.getpid():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", namespace)


def remove_leftovers() -> None:
    """Remove the namespaces of test runs that were killed."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith("dispytest") and not _is_used(name):
            with suppress(subprocess.CalledProcessError):  # another run may be doing the same
                ip("netns", "del", name)


def _is_used(namespace: str) -> bool:
    pid = namespace.removeprefix("dispytest").partition("x")[0]
    return not pid.isdigit() or psutil.pid_exists(int(pid))


def at(address: str, port: int) -> str:
    """Return "host:port" for an address, "[host]:port" where that must be."""
    return f"[{address}]:{port}" if ip_address(address).version == 6 else f"{address}:{port}"


def ip(*arguments: str) -> str:
    """Run the command ip."""
    return _run("ip", *arguments)


def _run(*command: str, timeout_s: float = 30.0) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"can't go into a namespace: {errno.errorcode.get(number, number)}")
