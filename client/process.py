"""What a process has only one of: its broker, the session with it, the private node.

Made when first needed, ended when the process ends. A forked child starts with nothing.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading

from dispy.broker import embedded
from dispy.protocol import identity
from dispy.protocol.exchange import Exchange
from dispy.protocol.transport import Bus

from . import callbacks, local
from ._version import __version__
from .session import Open, Session

EXIT_S = 3.0  # how long unclosed clusters may take to close when the program ends

numbers = itertools.count(1)  # of clusters

_lock = threading.RLock()
_sessions: dict[str, Session] = {}
_owner = 0  # the process that registered `end` to be called when it exits


def start_broker(port: int) -> embedded.Broker:
    """Return the broker of this process, started if it isn't there yet.

    Nodes may dial in at ``port``, or at another one if that is taken.
    """
    global _owner
    with _lock:
        broker = embedded.start(__version__, port)
        if _owner != os.getpid():
            _owner = os.getpid()
            atexit.register(_exit, _owner)  # after the broker's own: so it is called before
        return broker


def open_cluster(address: str, order: Open) -> Session:
    """Give a new cluster to the session with the broker at ``address``; return the session."""
    with _lock:
        session = _sessions.get(address)
        if session is None or not session.alive():
            bus = Bus()
            me = identity.describe("client", __version__)
            session = Session(address, bus, Exchange(me, bus, identity.random_name))
            session.start()
            _sessions[address] = session
        session.hand_over(order)
        return session


def end(timeout_s: float = EXIT_S) -> None:
    """Close what is open, and end the session, the broker and the private node."""
    with _lock:
        for session in _sessions.values():
            session.stop(timeout_s)
        _sessions.clear()
        embedded.stop()
        local.stop()


def end_unless_used() -> None:
    """Do what `end` does, unless there is a cluster that isn't closed."""
    with _lock:
        if not any(session.is_used() for session in _sessions.values()):
            end()


def _exit(owner: int) -> None:
    if owner == os.getpid():  # not in a child that was forked with this handler registered
        end()


def _forget() -> None:
    global _lock
    _lock = threading.RLock()
    for session in _sessions.values():
        session.orphan()
    _sessions.clear()
    callbacks.forget()
    local.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
