"""Where a process listens, and which of its addresses it tells to others.

Hosts are what users write: addresses, names, or "*" for all addresses of this machine. Whether
they may be used at all is asked of a `Protection`.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Sequence

from . import interfaces
from .protection import Protection

ALL = "*"
HERE = "127.0.0.1"
VARIABLE = "DISPY_HOST"  # hosts to listen at, separated by spaces, when nothing else is said
ANY = ("", ALL, "0.0.0.0", "::")
PORT_MAX = 65535
ADDRESSES_MAX = 16  # that a process tells of itself


def hosts_to_listen(what: str, hosts: Sequence[str], protection: Protection) -> list[str]:
    """Return the numeric hosts to listen at, or "*".

    Without any: those of DISPY_HOST; all, if there is a secret; else this machine's loopback.
    ``what`` is the name of the option, for errors: `SecretNeededError`, and `OSError` for a name
    that isn't known.
    """
    if not hosts:
        hosts = os.environ.get(VARIABLE, "").split()
    if not hosts:
        return [ALL if protection.secret is not None else HERE]
    for host in hosts:
        protection.allow(what, host, is_loopback(what, host))
    if any(host == ALL for host in hosts):
        return [ALL]
    return list(dict.fromkeys(numeric(what, host) for host in hosts))


def is_loopback(what: str, host: str) -> bool:
    """Whether only this machine can be reached, or can reach us, at a host.

    Raises `OSError` for a name that isn't known.
    """
    return host not in ANY and ipaddress.ip_address(numeric(what, host)).is_loopback


def numeric(what: str, host: str) -> str:
    """Return the address that a name stands for, IPv4 before IPv6; addresses as they are.

    Raises `OSError` for a name that isn't known.
    """
    return numerics(what, host)[0]


def numerics(what: str, host: str) -> list[str]:
    """Return all addresses that a name stands for, as `numeric` does."""
    if host == "localhost":
        return [HERE]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError):
        prefix = f"{what}: " if what else ""
        raise OSError(f"{prefix}the host {host!r} can't be found") from None
    addresses = {str(info[4][0]) for info in found}
    return sorted(addresses, key=lambda address: (":" in address, address))[:ADDRESSES_MAX]


def listen(bind: Callable[[str], str], doors: Iterable[str]) -> list[str]:
    """Listen at "host:port"s with the function that does so; return where.

    All hosts get the same port, also when that is 0, for any free one.
    """
    bound: list[str] = []
    for door in doors:
        host, colon, port = door.rpartition(":")
        if port == "0" and bound:
            port = bound[0].rpartition(":")[2]
        bound.append(bind(f"{host}{colon}{port}"))
    return bound


def addresses_of_doors(doors: Sequence[str], ext_hosts: Iterable[str] = ()) -> list[str]:
    """Return what to tell others to dial, of a process that listens at "host:port"s."""
    if not doors:
        return []
    hosts = [door.rpartition(":")[0].strip("[]") for door in doors]
    return addresses_of(hosts, int(doors[0].rpartition(":")[2]), ext_hosts)


def addresses_of(hosts: Iterable[str], port: int, ext_hosts: Iterable[str] = ()) -> list[str]:
    """Return what to tell others to dial, "host:port", the best ones first.

    First the ``ext_hosts``, by which users say how this machine is reached; they may have a port
    of their own. Then those that it listens at: addresses that only mean something on this
    machine are left out, unless there are no others.
    """
    told = [with_port(host, port) for host in ext_hosts]
    own: list[str] = []
    for host in hosts:
        own += _of_interfaces() if host in ANY else [host]
    useful = [host for host in own if not ipaddress.ip_address(host).is_loopback]
    told += [with_port(host, port) for host in useful or own[:1]]
    return list(dict.fromkeys(told))[:ADDRESSES_MAX]


def _of_interfaces() -> list[str]:
    """Return the addresses of this machine that mean something to others, the best first."""
    found = [each for each in interfaces.addresses() if not each.is_link_local]
    return [each.address for each in found if not each.is_loopback] or [HERE]


def with_port(host: str, port: int) -> str:
    """Return "host:port", unless the host has a port already."""
    name, number = split(host)
    return joined(name, number or port)


def joined(host: str, port: int) -> str:
    """Return "host:port", or "[host]:port" for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(text: str) -> tuple[str, int]:
    """Split "host", "host:port", "[v6]:port" or a bare IPv6 address; port 0: there is none.

    Raises `ValueError`.
    """
    text = text.strip()
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = text, "0"
    elif not (port.isascii() and port.isdigit() and 0 < int(port) <= PORT_MAX):
        host = ""
    if not host.strip("[]"):
        raise ValueError(f"{text!r} is not HOST or HOST:PORT")
    return host.strip("[]"), int(port)
