"""Tries addresses for ``dispy doctor``: is somebody there, what is it, and who?

First a bare TCP connection, over which a ZeroMQ peer tells in its greeting whether it has a
secret; nothing of ours is said in it. Then, to those that speak as we do, a `Hello` in the role of
a doctor, which asks who is there and starts nothing. All addresses are tried at the same time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

from dispy.protocol import discovery, identity
from dispy.protocol.arrivals import Arrival, Arrived, Down, Route, Up
from dispy.protocol.discovery import Discovery
from dispy.protocol.errors import ProtocolError
from dispy.protocol.guard import Guard
from dispy.protocol.keys import Keys
from dispy.protocol.listening import is_loopback, joined, split
from dispy.protocol.messages import (
    DOCTOR,
    VERSION_MAJOR,
    VERSION_MINOR,
    Goodbye,
    Hello,
    Identity,
    Refused,
    Welcome,
)
from dispy.protocol.seeking import Face
from dispy.protocol.transport import Bus
from dispy.protocol.wire import Codec

from ._version import __version__
from .doctor import (
    DIFFERS,
    FAILED,
    NOT_OURS,
    OPEN,
    PLAIN,
    REFUSED,
    SECRET,
    SILENT,
    Answer,
    Contact,
)

KNOCKS_MAX = 32  # connections that are tried at the same time
# The begin of a ZMTP greeting, as far as it says nothing of how the sender is protected.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03"
MECHANISM = slice(12, 32)  # where the other side's greeting names it
GREETING_BYTES = 64
TEXT_CHARS = 40  # of what somebody says who isn't a peer


def addresses_of(host: str, ports: Sequence[int]) -> list[str]:
    """Return all addresses that a host name stands for, with each port. Raises `OSError`."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    hosts = dict.fromkeys(str(info[4][0]) for info in found)
    return [joined(each, port) for each in hosts for port in ports]


def probe(
    addresses: Sequence[str], keys: Keys | None, insecure: bool, timeout_s: float
) -> list[Contact]:
    """Try all addresses, each for up to about twice ``timeout_s`` seconds."""
    if not addresses:
        return []
    with ThreadPoolExecutor(min(KNOCKS_MAX, len(addresses))) as pool:
        contacts = list(pool.map(lambda address: knock(address, timeout_s), addresses))
    protected = [each.address for each in contacts if each.protection == SECRET]
    plain = [
        each.address
        for each in contacts
        if each.protection == PLAIN and (insecure or is_here([each.address]))
    ]
    answers: dict[str, Answer | str] = {}
    if keys is not None and not insecure and protected:
        answers |= meet(protected, keys, timeout_s)
    if plain:
        answers |= meet(plain, None, timeout_s)
    return [_with_answer(contact, answers) for contact in contacts]


def is_here(addresses: Iterable[str]) -> bool:
    """Whether all of these mean this machine."""
    hosts = (split(address)[0].partition("%")[0] for address in addresses)
    return all(is_loopback("HOST", host) for host in hosts)


def _with_answer(contact: Contact, answers: dict[str, Answer | str]) -> Contact:
    answer = answers.get(contact.address)
    if answer is None:
        return contact
    if isinstance(answer, str):
        return replace(contact, refusal=answer, asked=True)
    return replace(contact, answer=answer, asked=True)


# -- bare connections ---------------------------------------------------------------------------


def knock(address: str, timeout_s: float) -> Contact:
    """Connect to an address, and find out what is there; never raises for what the network does."""
    host, port = split(address)
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except ConnectionRefusedError:
        return Contact(address, REFUSED)
    except TimeoutError:
        return Contact(address, SILENT, f"nothing came back within {timeout_s:g} s")
    except OSError as error:
        return Contact(address, FAILED, (error.strerror or str(error)).lower())
    with closing(connection):
        return _listen_to(connection, address, timeout_s)


def _listen_to(connection: socket.socket, address: str, timeout_s: float) -> Contact:
    end = time.monotonic() + timeout_s
    said, why = b"", "it says nothing"
    try:
        connection.sendall(GREETING)
        while len(said) < GREETING_BYTES:
            connection.settimeout(max(0.01, end - time.monotonic()))
            piece = connection.recv(GREETING_BYTES - len(said))
            if not piece:
                why = "it hangs up"
                break
            said += piece
    except TimeoutError:
        pass
    except OSError as error:
        why = (error.strerror or str(error)).lower()
    mechanism = said[MECHANISM].rstrip(b"\0").decode("ascii", "replace")
    if len(said) == GREETING_BYTES and said[0] == GREETING[0] and said[9:10] == GREETING[9:10]:
        if mechanism in (SECRET, PLAIN):
            return Contact(address, OPEN, protection=mechanism)
        return Contact(address, OPEN, f"ZeroMQ with {mechanism!r}", NOT_OURS)
    if said:
        why = f"it says {said[:TEXT_CHARS].decode('ascii', 'replace')!r}"
    return Contact(address, OPEN, why, NOT_OURS)


# -- asking who is there --------------------------------------------------------------------------


def meet(addresses: Iterable[str], keys: Keys | None, timeout_s: float) -> dict[str, Answer | str]:
    """Ask who listens at these addresses; a text says why one doesn't answer."""
    with closing(Bus(keys)) as bus:
        visit = Visit(bus, keys)
        for address in addresses:
            visit.dial(address)
        end = time.monotonic() + timeout_s
        while visit.open and time.monotonic() < end:
            for arrival in bus.poll(max(0.0, end - time.monotonic())):
                visit.take(arrival)
        return visit.result(timeout_s)


class Visit:
    """A doctor at several doors at the same time."""

    def __init__(self, bus: Bus, keys: Keys | None) -> None:
        self._bus = bus
        self._guard = Guard(identity.new_token(), keys)
        self._me = identity.describe(DOCTOR, __version__, token=self._guard.token)
        self._codec = Codec()
        self._asked_at: dict[Route, float] = {}
        self.open: dict[Route, str] = {}  # addresses that haven't answered so far
        self._found: dict[str, Answer | str] = {}

    def dial(self, address: str) -> None:
        """Begin with an address."""
        self.open[self._bus.dial(address)] = address

    def take(self, arrival: Arrival) -> None:
        """Handle what the bus has delivered."""
        if isinstance(arrival, Up):
            token, proof = self._guard.present(DOCTOR, self._me.instance, arrival.key)
            hello = Hello(VERSION_MAJOR, VERSION_MINOR, self._me, token=token, proof=proof)
            self._asked_at[arrival.route] = time.time()
            header, _ = self._codec.encode(hello)
            self._bus.send(arrival.route, [header])
        elif isinstance(arrival, Arrived):
            self._on_frames(arrival)
        elif isinstance(arrival, Down):
            self._end(arrival.route, DIFFERS if arrival.denied else arrival.reason)

    def result(self, timeout_s: float) -> dict[str, Answer | str]:
        """Return what has come of it; who hasn't answered by now, doesn't."""
        for route, address in self.open.items():
            said = "connected, but" if route in self._asked_at else "the handshake isn't answered;"
            self._found[address] = f"{said} no answer came within {timeout_s:g} s"
        return self._found

    def _end(self, route: Route, found: Answer | str) -> None:
        address = self.open.pop(route, None)
        if address is not None:
            self._found[address] = found
            self._bus.drop(route)

    def _on_frames(self, arrived: Arrived) -> None:
        route, now = arrived.route, time.time()
        try:
            frame, _ = self._codec.decode(arrived.frames[0] if arrived.frames else b"")
        except ProtocolError as error:
            self._end(route, f"its answer can't be understood: {error}")
            return
        if isinstance(frame, Refused):
            if frame.identity is None:
                self._end(route, f"refused: {frame.reason}")
            else:
                clock_s = self._clock(route, frame.time, now)
                self._end(route, self._answer(route, frame.identity, now, frame.reason, clock_s))
        elif isinstance(frame, Welcome):  # it knows no doctors, and has let us in
            header, _ = self._codec.encode(Goodbye("only looking"))
            self._bus.send(route, [header])
            self._end(route, self._answer(route, frame.identity, now, "", None))

    def _clock(self, route: Route, told: float, now: float) -> float | None:
        """Return how far the other clock is ahead, if it has told."""
        return told - (self._asked_at[route] + now) / 2 if told else None

    def _answer(
        self, route: Route, who: Identity, now: float, engaged: str, clock_s: float | None
    ) -> Answer:
        took_s = max(0.0, now - self._asked_at[route])
        return Answer(
            who.role,
            who.name,
            who.software,
            who.python,
            who.platform,
            who.cpus,
            engaged,
            took_s,
            clock_s,
        )


# -- who says that they are there -----------------------------------------------------------------


def seek(keys: Keys, hosts: Sequence[str], timeout_s: float) -> dict[str, list[str]]:
    """Ask the networks of ``hosts`` who has our secret; return addresses, by instance.

    It asks as a broker would, and as a node would, and dials nobody.
    """
    found: dict[str, list[str]] = {}

    def follow(address: str, instance: str) -> None:
        addresses = found.setdefault(instance, [])
        if address not in addresses:
            addresses.append(address)

    with closing(Bus()) as bus:
        seekers = [
            _seeker(bus, keys, hosts, follow, "broker", "node", discovery.NODE_PORT),
            _seeker(bus, keys, hosts, follow, "node", "broker", discovery.BROKER_PORT),
        ]
        end = time.monotonic() + timeout_s
        for each in seekers:
            each.seek(time.monotonic())
        while time.monotonic() < end:
            for each in seekers:
                each.tick(time.monotonic())
            until = min(end, *(each.deadline() for each in seekers))
            bus.poll(max(0.0, until - time.monotonic()))
        for each in seekers:
            each.close()
    return found


def _seeker(
    bus: Bus,
    keys: Keys,
    hosts: Sequence[str],
    follow: Callable[[str, str], None],
    role: str,
    sought: str,
    port: int,
) -> Discovery:
    instance = identity.random_name()
    face = Face(role, instance, (), frozenset({sought, "relay"}), frozenset())
    return Discovery(
        bus,
        face,
        keys.beacon,
        port=0,
        asks=(port,),
        hosts=hosts,
        follow=follow,
        drop=lambda address, instance: None,
        is_known=lambda instance: False,
    )
