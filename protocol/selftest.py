"""Whether our own doors keep strangers out: tried when a daemon with a secret starts.

A mistake in how sockets are opened would let everybody in and show nowhere else.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import closing

from .arrivals import Arrival, Down, Up
from .errors import DispyError
from .keys import KEY_BYTES, Keys
from .transport import Bus

PATIENCE_S = 5.0  # a refusal takes milliseconds, but the machine may be busy
ANYWHERE = ("*", "0.0.0.0", "[::]")
log = logging.getLogger("dispy.transport")


class OpenDoor(DispyError):
    """Strangers can come in where a secret is asked for."""


def self_test(listening: Bus, addresses: Sequence[str]) -> None:
    """Try to get in at these addresses of ours, with another secret and with none.

    They are as ``listening`` has returned them; it isn't polled meanwhile, and doesn't log the
    attempts. Raises `OpenDoor` when one isn't refused.
    """
    for address in addresses:
        for keys in (Keys(secrets.token_bytes(KEY_BYTES)), None):
            _try(address, keys)
    listening.overlook()


def _try(address: str, keys: Keys | None) -> None:
    stranger = "a stranger with another secret" if keys is not None else "a stranger without one"
    outcome = _knock(address, keys)
    if isinstance(outcome, Up):
        raise OpenDoor(f"{address} asks for a secret, and lets in {stranger}: don't use this")
    if not isinstance(outcome, Down):
        raise OpenDoor(f"{address} asks for a secret, and doesn't refuse {stranger}")
    if not outcome.denied:
        log.warning("can't test whether %s refuses %s: %s", address, stranger, outcome.reason)


def _knock(address: str, keys: Keys | None) -> Arrival | None:
    """Try to connect, and return what comes of it; None: nothing does."""
    host, _, port = address.rpartition(":")
    with closing(Bus(keys)) as bus:
        bus.dial(f"127.0.0.1:{port}" if host in ANYWHERE else address)
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            for arrival in bus.poll(give_up_at - time.monotonic()):
                return arrival
    return None
