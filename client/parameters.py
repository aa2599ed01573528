"""The parameters of a cluster, checked: a wrong one raises where it was written.

Those that a later release will honour raise too, saying so, for as long as they have a value
that asks for something.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple

from .allocate import PORT_MAX, beyond_loopback
from .errors import NotSupportedError

PULSE_MIN_S = 0.1
PULSE_MAX_S = 1000.0
PULSE_S = 5.0  # the default
GRACE_S = 5.0  # from the interrupt of a cancelled job to the end of its process
GRACE_MAX_S = 3600.0

INSTEAD = {  # of what isn't supported yet
    "certfile": "leave it out: there is no traffic beyond this machine yet",
    "cleanup": "leave it out: files and processes of a computation are always removed",
    "depends": "define or import what the function needs inside its own module",
    "dest_path": "leave it out: every computation gets a folder of its own",
    "dispy_job_depends": "pass what the job needs as arguments",
    "ext_host": "leave it out: nodes never connect to the client",
    "ipv4_udp_multicast": "name the nodes in nodes=",
    "keyfile": "leave it out: there is no traffic beyond this machine yet",
    "ping_interval": "name the nodes in nodes=",
    "poll_interval": "leave it out: results come without polling",
    "recover_file": "keep the program running until the jobs have ended",
    "secret": "leave it out: there is no traffic beyond this machine yet",
    "setup": "set things up in the function itself, when it is first called",
}


class Options(NamedTuple):
    """What a computation says about its jobs: see `messages.OpenCluster`."""

    reentrant: bool
    max_tasks: int  # 0: no limit
    pulse_s: float
    grace_s: float


def refuse_unsupported(**given: object) -> None:
    """Raise `NotSupportedError` for the first parameter that asks for something."""
    for name, value in given.items():
        if value:
            raise NotSupportedError(
                f"{name} isn't supported by this release: {INSTEAD.get(name, 'leave it out')}"
            )


def check_host(host: object) -> None:
    """Allow this machine's loopback addresses, or nothing."""
    hosts = [host] if isinstance(host, str) else host
    if hosts is None:
        return
    if not isinstance(hosts, Iterable):
        raise TypeError(f"host must be a host name or a list of them, not {host!r}")
    for name in hosts:
        if not isinstance(name, str):
            raise TypeError(f"host must be a host name or a list of them, not {host!r}")
        if not _is_loopback(name):
            raise beyond_loopback("host", name)


def check_port(name: str, port: Any) -> None:
    """Allow a port that leaves room for the next two, or nothing."""
    if port is None:
        return
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"{name} must be a port number, not {port!r}")
    if not 0 < port <= PORT_MAX - 2:
        raise ValueError(f"{name} must be a port number from 1 to {PORT_MAX - 2}, not {port}")


def read_options(
    reentrant: Any, max_tasks_per_child: Any, pulse_interval: Any, cancel_grace: Any
) -> Options:
    """Check what a computation says about its jobs, and put defaults in place."""
    if not isinstance(reentrant, bool):
        raise TypeError(f"reentrant must be True or False, not {reentrant!r}")
    pulse_s = PULSE_S
    if pulse_interval is not None:
        pulse_s = _seconds("pulse_interval", pulse_interval, PULSE_MIN_S, PULSE_MAX_S)
    grace_s = _seconds("cancel_grace", cancel_grace, 0.0, GRACE_MAX_S)
    return Options(reentrant, _max_tasks(max_tasks_per_child), pulse_s, grace_s)


def _max_tasks(value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"max_tasks_per_child must be a number of jobs or None, not {value!r}")
    if value < 1:
        raise ValueError(f"max_tasks_per_child must be 1 or more, or None, not {value}")
    return value


def _seconds(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g} seconds, not {value}")
    return float(value)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"host: {host!r} can't be found: {error}") from None
    return all(ipaddress.ip_address(str(info[4][0])).is_loopback for info in found)
