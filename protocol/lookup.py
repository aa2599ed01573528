"""Looks up names of hosts without holding up a loop: each in a thread of its own.

The name server may take many seconds. So whoever asks is woken when there is something to take.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from . import listening

LOOKUPS_MAX = 50  # at a time; of one name there is one
SEPARATOR = ","  # between the hosts of an address that has several


class Found(NamedTuple):
    """What has come of a name: addresses, or the reason why there are none."""

    name: str
    hosts: list[str]
    error: str = ""


class Lookups:
    """Names that are being looked up. ``wake`` is called in other threads."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._busy: set[str] = set()
        self._found: deque[Found] = deque()

    def begin(self, name: str) -> None:
        """Look a name up, unless that is being done."""
        if name in self._busy:
            return
        if len(self._busy) >= LOOKUPS_MAX:
            self._found.append(Found(name, [], "too many names are being looked up"))
            return
        self._busy.add(name)
        threading.Thread(target=self._look_up, args=(name,), daemon=True).start()

    def take(self) -> list[Found]:
        """Return what has been found since the last call."""
        taken = []
        while self._found:
            taken.append(self._found.popleft())
            self._busy.discard(taken[-1].name)
        return taken

    def _look_up(self, name: str) -> None:
        try:
            self._found.append(Found(name, listening.numerics("", name)))
        except OSError:
            self._found.append(Found(name, [], f"the host {name!r} can't be found"))
        self._wake()


def hosts_of(address: str) -> list[str]:
    """Return the numeric hosts of "host:port" or "host,host:port"; none: it has a name."""
    hosts = address.rpartition(":")[0].strip("[]").split(SEPARATOR)
    try:
        for host in hosts:
            ipaddress.ip_address(host)
    except ValueError:
        return []
    return hosts
