"""How processes with the same secret find each other in the network: the sockets of `Seeking`.

A seeker asks by broadcast or multicast on each interface, from a socket of its own, to which
answers come; who may be sought has a door at a known port. Only what comes from a network that we
are in ourselves is looked at. It decides nothing else.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from . import beacon, interfaces
from .interfaces import InterfaceAddress
from .logs import Seldom
from .seeking import Ask, Busy, Drop, Effect, Face, Failed, Follow, Reply, Seeking, Stance
from .transport import Bus

BROKER_PORT = 9700  # UDP: where nodes ask for brokers, and for relays to one
NODE_PORT = 9701  # ... and brokers for nodes, and for relays to some
IPV4_GROUP = "239.97.0.1"
IPV6_GROUP = "ff02::9700"  # of the link: routers don't pass it on
LOOPBACK_BROADCAST = "127.255.255.255"
EVERYWHERE = ("*", "0.0.0.0", "::", "[::]", "")
DRAIN_MAX = 64  # datagrams that are taken from a socket before others get their turn
INTERFACES_MAX = 64
LOOK_S = 30.0  # how often interfaces are looked at: some come later than we

log = logging.getLogger("dispy.discovery")


class Discovery:
    """Finds peers for a process, and lets it be found; its sockets are watched by a `Bus`.

    ``port`` is the UDP port of the door (0: none), ``asks`` are those at which to ask.
    ``hosts`` are the addresses where the process listens, "*" for all: only their interfaces are
    used. ``follow(address, instance)`` dials what was found, ``drop(address, instance)`` undoes
    that. With ``multicast`` IPv4 is asked by multicast, else by broadcast.
    All methods are for the thread that owns the bus.
    """

    def __init__(
        self,
        bus: Bus,
        face: Face,
        key: bytes,
        *,
        port: int,
        asks: Sequence[int],
        hosts: Sequence[str],
        follow: Callable[[str, str], object],
        drop: Callable[[str, str], object],
        is_known: Callable[[str], bool],
        interval_s: float = 0.0,
        multicast: bool = False,
    ) -> None:
        self.asks = set(asks)
        self.multicast = multicast
        self.answers = 0  # of peers that may be dialled
        self._bus = bus
        self._port = port
        self._hosts = [host.strip("[]") for host in hosts]
        self._follow = follow
        self._drop = drop
        self._core = Seeking(face, key, _new_nonce, is_known, interval_s)
        self._near: list[InterfaceAddress] = []  # addresses of the interfaces in use
        self._doors: list[socket.socket] = []
        self._askers: dict[InterfaceAddress, socket.socket] = {}
        self._joined: set[tuple[int, str]] = set()  # groups, by family and interface
        self._look_at = 0.0
        self._strangers = 0
        self._seldom = Seldom()
        self._look(time.monotonic())
        if port:
            self._open_doors()

    # -- what a daemon calls -----------------------------------------------------------------

    @property
    def stance(self) -> Stance:
        """How those who seek are answered; to be kept up to date."""
        return self._core.stance

    @stance.setter
    def stance(self, stance: Stance) -> None:
        self._core.stance = stance

    @property
    def interval_s(self) -> float:
        """How often to seek after the first times; 0: no more."""
        return self._core.interval_s

    @interval_s.setter
    def interval_s(self, interval_s: float) -> None:
        self._core.interval_s = interval_s

    @property
    def is_seeking(self) -> bool:
        """Whether something is to be asked, now or later."""
        return self._core.is_seeking

    @property
    def found(self) -> list[str]:
        """The instances that were found, or have found us, and were not forgotten since."""
        return self._core.found

    def seek(self, now: float) -> None:
        """Ask who is there: now, some more times soon, and then as ``interval_s`` says."""
        self._core.seek(now)

    def rest(self) -> None:
        """Ask no more, until `seek`."""
        self._core.rest()

    def deadline(self) -> float:
        """When `tick` next has something to do, in seconds of the same clock as ``now``."""
        return min(self._core.deadline(), self._look_at)

    def tick(self, now: float) -> None:
        """Ask when it is time, forget what has led nowhere, look for new interfaces."""
        if now >= self._look_at:
            self._look(now)
        self._carry_out(self._core.tick(now))
        if self._askers and not self._core.is_seeking and not self._core.expects_answers(now):
            self._close_askers()

    def left(self, instance: str) -> None:
        """A peer has gone: don't dial it again unless it is found anew."""
        self._carry_out(self._core.left(instance))

    def keep_only(self, instances: Sequence[str] = ()) -> None:
        """Forget all that was found but these."""
        self._carry_out(self._core.keep_only(instances))

    def failed(self, address: str, reason: str) -> bool:
        """Note that dialling has failed; return whether the address was found here."""
        return self._core.failed(address, reason)

    def close(self) -> None:
        """Close all sockets; to be called before the bus is closed."""
        self._close_askers()
        for door in self._doors:
            self._close(door)
        self._doors = []

    # -- interfaces and sockets --------------------------------------------------------------

    def _look(self, now: float) -> None:
        """See which interfaces there are; join groups on those that are new."""
        self._look_at = now + LOOK_S
        self._near = suitable(interfaces.addresses(), self._hosts)
        for door in self._doors:
            self._join(door)
        count = self._core.strangers - self._strangers
        if count:
            self._strangers = self._core.strangers
            log.info("%d datagrams of processes with another secret were ignored", count)

    def _open_doors(self) -> None:
        local = all(one.is_loopback for one in self._near)
        wanted = [(socket.AF_INET, _local_door() if local else "")]
        if any(one.is_ipv6 and not one.is_loopback for one in self._near):
            wanted.append((socket.AF_INET6, "::"))
        for family, host in wanted:
            try:
                door = _open(family, host, self._port)
            except OSError as error:
                log.warning("nobody can find us at UDP port %d: %s", self._port, error.strerror)
                continue
            self._doors.append(door)
            self._watch(door)
            self._join(door)

    def _join(self, door: socket.socket) -> None:
        for one in self._near:
            if one.is_loopback or not one.can_multicast:
                continue
            if one.is_ipv6 is not (door.family == socket.AF_INET6):
                continue
            where = (door.family, one.name if one.is_ipv6 else one.address)
            if where not in self._joined and _join_group(door, one):
                self._joined.add(where)

    def _has_asker(self, one: InterfaceAddress) -> bool:
        """Whether there is a socket to ask from this address; it is opened when there can be."""
        if one not in self._askers:
            try:
                asker = self._askers[one] = open_asker(one)
            except OSError as error:  # for example, the address is only tentative so far
                log.debug("can't ask from %s: %s", one.address, error)
                return False
            self._watch(asker)
        return True

    def _watch(self, one: socket.socket) -> None:
        self._bus.watch(one.fileno(), partial(self._read, one))

    def _close(self, one: socket.socket) -> None:
        self._bus.unwatch(one.fileno())
        one.close()

    def _close_askers(self) -> None:
        for asker in self._askers.values():
            self._close(asker)
        self._askers = {}

    # -- datagrams -----------------------------------------------------------------------------

    def _read(self, one: socket.socket) -> None:
        is_door = one in self._doors
        for _ in range(DRAIN_MAX):
            try:
                datagram, source = one.recvfrom(beacon.BYTES_MAX + 1)
            except OSError:  # nothing more; or what an earlier one of ours has met on its way
                return
            if not beacon.is_ours(datagram) or beacon.is_question(datagram) is not is_door:
                continue  # questions come to doors, answers to whoever has asked
            if is_door and not is_near(source, self._near):
                continue
            host = _host_of(source)
            effects = self._core.heard(datagram, host, time.monotonic())
            for effect in effects:
                if isinstance(effect, Reply):
                    _send(one, effect.datagram, source)
            self._carry_out(effects)

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self._ask(effect.datagram)
            elif isinstance(effect, Follow):
                self.answers += 1
                log.debug("found %s at %s", effect.instance, effect.address)
                self._follow(effect.address, effect.instance)
            elif isinstance(effect, Drop):
                self._drop(effect.address, effect.instance)
            elif isinstance(effect, Failed):
                self._tell(effect, f"a peer was found, but can't be reached: {effect.why}")
            elif isinstance(effect, Busy):
                self._tell(effect, f"a peer at {effect.source} works for another at present")

    def _tell(self, what: Failed | Busy, text: str) -> None:
        if self._seldom.allows((type(what), what.instance), time.monotonic()):
            log.info("%s", text)

    def _ask(self, datagram: bytes) -> None:
        self._look(time.monotonic())
        for ones in askable(self._near):
            one = next((each for each in ones if self._has_asker(each)), None)
            for port in self.asks if one is not None else ():
                assert one is not None
                _send(self._askers[one], datagram, target(one, port, self.multicast))


def suitable(found: Sequence[InterfaceAddress], hosts: Sequence[str]) -> list[InterfaceAddress]:
    """Return the addresses of the interfaces that a process listens at, the best ones first."""
    if any(host in EVERYWHERE for host in hosts):
        return list(found[:INTERFACES_MAX])
    named = [one for one in found if _is_one_of(one, hosts)]
    at = {(one.name, one.is_ipv6) for one in named}
    return [one for one in found if (one.name, one.is_ipv6) in at][:INTERFACES_MAX]


def _is_one_of(one: InterfaceAddress, hosts: Sequence[str]) -> bool:
    bare = [host.partition("%")[0] for host in hosts]
    local = one.is_loopback and not one.is_ipv6
    return one.address in bare or (local and any(host.startswith("127.") for host in bare))


def askable(near: Sequence[InterfaceAddress]) -> list[list[InterfaceAddress]]:
    """Return the addresses to ask from, each with others to use if it can't be.

    One is enough for IPv6 of an interface, best the link-local one: whoever hears it can answer.
    """
    asked: dict[tuple[str, int], list[InterfaceAddress]] = {}
    for one in near:
        if one.is_point_to_point:
            continue
        if one.is_ipv6:
            if one.can_multicast:
                same = asked.setdefault((one.name, 6), [])
                same.insert(0 if one.is_link_local else len(same), one)
        elif one.is_loopback:
            asked.setdefault((one.name, 4), [one])
        elif one.broadcast or one.can_multicast:
            asked[one.address, 4] = [one]
    return list(asked.values())


def target(one: InterfaceAddress, port: int, multicast: bool) -> tuple[object, ...]:
    """Return where a question goes that is asked from this address."""
    if one.is_ipv6:
        return (IPV6_GROUP, port, 0, one.index)
    if one.is_loopback:
        return (LOOPBACK_BROADCAST, port)
    return (IPV4_GROUP if multicast or not one.broadcast else one.broadcast, port)


def open_asker(one: InterfaceAddress) -> socket.socket:
    """Open a socket to ask from; `OSError` if the address can't be used."""
    asker = socket.socket(socket.AF_INET6 if one.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        asker.setblocking(False)
        if one.is_ipv6:
            asker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, one.index)
            asker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
            asker.bind((one.address, 0, 0, one.index if one.is_link_local else 0))
            return asker
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if not one.is_loopback:
            own = socket.inet_aton(one.address)
            asker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            asker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        asker.bind((one.address, 0))
    except OSError:
        asker.close()
        raise
    return asker


def is_near(source: tuple[object, ...], near: Sequence[InterfaceAddress]) -> bool:
    """Whether a datagram comes from one of our own networks: nobody else is answered."""
    try:
        ip = ipaddress.ip_address(str(source[0]).partition("%")[0])
    except ValueError:
        return False
    if ip.version == 6 and ip.is_link_local:
        return any(one.is_ipv6 and one.index == source[3] for one in near)
    return any(
        one.is_ipv6 is (ip.version == 6)
        and ip in ipaddress.ip_network((one.address, one.prefix), strict=False)
        for one in near
    )


def _open(family: int, host: str, port: int) -> socket.socket:
    """Open a door; several programs of a machine may have the same."""
    door = socket.socket(family, socket.SOCK_DGRAM)
    try:
        door.setblocking(False)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "darwin" or "bsd" in sys.platform:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        door.bind((host, port))
    except OSError:
        door.close()
        raise
    return door


def _local_door() -> str:
    """Return where to hear what is said to all on this machine, and nothing else."""
    return LOOPBACK_BROADCAST if sys.platform == "linux" else "127.0.0.1"


def _join_group(door: socket.socket, one: InterfaceAddress) -> bool:
    try:
        if one.is_ipv6:
            request = socket.inet_pton(socket.AF_INET6, IPV6_GROUP) + struct.pack("@I", one.index)
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        else:
            request = socket.inet_aton(IPV4_GROUP) + socket.inet_aton(one.address)
            door.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    except OSError as error:  # broadcasts are heard all the same; or it has been joined before
        log.debug("no multicast at %s: %s", one.name, error)
        return False
    return True


def _host_of(source: tuple[object, ...]) -> str:
    """Return the IP address that a datagram came from, with its zone if it needs one."""
    host = str(source[0]).partition("%")[0]
    if len(source) == 4 and source[3]:
        try:
            return f"{host}%{socket.if_indextoname(int(str(source[3])))}"
        except OSError:
            return host
    return host


def _send(one: socket.socket, datagram: bytes, to: tuple[object, ...]) -> None:
    try:
        one.sendto(datagram, to)
    except OSError as error:  # a full buffer, a cable that is out: it is asked again
        log.debug("nothing can be sent to %s: %s", to[0], error)


def _new_nonce() -> bytes:
    return secrets.token_bytes(beacon.NONCE_BYTES)
