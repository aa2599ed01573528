"""Looks at this machine for ``dispy doctor``: secret, interfaces, limits, who listens.

It asks the system only, nobody in the network, and changes nothing. What can't be found out is
left out.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from dispy.protocol import discovery, interfaces, listening
from dispy.protocol import secret as secrets
from dispy.protocol.interfaces import InterfaceAddress
from dispy.protocol.protection import Protection
from dispy.protocol.sockets import libraries

from ._version import __version__
from .doctor import Interface, Machine, Means

SHM = Path("/dev/shm")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
DOOR = 9701  # the port in the addresses that are shown
CAN_LIMIT = sys.platform != "win32"
if CAN_LIMIT:
    import resource


def look(
    protected: Protection, secret_error: str, hosts: Sequence[str], ports: Iterable[int]
) -> Machine:
    """Find out about this machine.

    ``secret_error`` says why a secret can't be used; ``hosts`` are those to listen at, "*" for all.
    """
    secret = protected.secret
    soft, hard = _files()
    return Machine(
        name=socket.gethostname(),
        versions=_versions(),
        means=means_of(protected),
        secret_error=secret_error,
        secret_warning=secret.warning if secret is not None else "",
        folder_error=_folder_error(),
        interfaces=_interfaces(hosts),
        announced=listening.addresses_of(hosts, DOOR),
        listening=listeners(ports),
        cpus=os.cpu_count() or 1,
        usable_cpus=_usable_cpus(),
        files_soft=soft,
        files_hard=hard,
        shm_bytes=_free(SHM) if SHM.is_dir() else None,
        tmp=tempfile.gettempdir(),
        tmp_bytes=_free(Path(tempfile.gettempdir())),
    )


def means_of(protected: Protection) -> Means:
    """Return what others can be reached with."""
    source = protected.secret.source if protected.secret is not None else ""
    return Means(protected.secret is not None, source, protected.insecure, __version__)


def _versions() -> dict[str, str]:
    return {"dispy": __version__, "Python": platform.python_version(), **libraries()}


def _folder_error() -> str:
    """Say who else could replace the default secret."""
    folder = secrets.default_file().parent
    try:
        mode = folder.stat().st_mode
    except OSError:
        return ""
    if os.name != "posix" or not mode & OTHERS_WRITE:
        return ""
    return f"others may write into {folder}, so they may replace the secret: chmod 700 {folder}"


def _interfaces(hosts: Sequence[str]) -> list[Interface]:
    """Return all addresses, and through which of them peers can be found."""
    found = interfaces.addresses()
    used = discovery.suitable(found, hosts)
    asked = [ones[0] for ones in discovery.askable(used)]
    return [Interface(one.name, one.address, _why_not(one, used, asked)) for one in found]


def _why_not(
    one: InterfaceAddress, used: list[InterfaceAddress], asked: list[InterfaceAddress]
) -> str:
    if one not in used:
        return "nobody is looked for through it"
    if one in asked:
        return "peers on this machine only" if one.is_loopback else ""
    if one.is_loopback:
        return "this machine only"
    if one.is_point_to_point:
        return "nobody can be found through it, since it has no broadcast: name hosts"
    return "others of this interface are asked from"


def _files() -> tuple[int, int]:
    if not CAN_LIMIT:
        return 0, 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = (1 << 31) - 1
    return tuple(most if each == resource.RLIM_INFINITY else each for each in (soft, hard))  # type: ignore[return-value]


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free(folder: Path) -> int | None:
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def listeners(ports: Iterable[int]) -> dict[int, list[str]]:
    """Return at which hosts somebody listens, for each of the ports that are open here."""
    wanted = set(ports)
    found: dict[int, set[str]] = {}
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # not everybody may see that everywhere
        return {}
    for each in connections:
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port in wanted:
            found.setdefault(each.laddr.port, set()).add(each.laddr.ip)
    return {port: sorted(hosts) for port, hosts in found.items()}
