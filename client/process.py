"""What a process has only one of: a broker for each secret, a session with each broker.

Made when first needed, ended when the process ends. A forked child starts with nothing.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dispy.broker import embedded
from dispy.broker.embedded import Site
from dispy.protocol import identity
from dispy.protocol.exchange import Exchange
from dispy.protocol.protection import NOTHING, Protection
from dispy.protocol.secret import Secret

from . import blobs, callbacks, job, local, pickling, remote
from ._version import __version__
from .ledger import Ledger
from .log import logger
from .recording import Recordings
from .session import Session

CLEAN_S = 60.0  # how long the nodes of unclosed clusters may take to clean up at the end
EXIT_S = 3.0  # the same, when the program has failed

numbers = itertools.count(1)  # of clusters

_lock = threading.RLock()
# By the address of the broker, and the secret that it is talked to with.
_sessions: dict[tuple[str, Secret | None], Session] = {}
_brokers: dict[Site, embedded.Broker] = {}
_owner = 0  # the process that registered `end` to be called when it exits


def start_broker(port: int, site: Site = embedded.NOWHERE_ELSE) -> embedded.Broker:
    """Return the broker of this process for a site, started if it isn't there yet.

    Nodes may dial in at ``port``, or at another one if that is taken. Raises `OSError` for hosts
    that this machine doesn't have.
    """
    with _lock:
        broker = _brokers.get(site)
        session = _sessions.get((broker.address, None)) if broker is not None else None
        if broker is None or (session is not None and not session.alive()):
            for line in site.protection.warnings():
                logger.warning("%s", line)
            broker = _brokers[site] = embedded.Broker(__version__, port, site)
        _end_at_exit()
        return broker


@contextmanager
def session_with(broker: embedded.Broker) -> Iterator[Session]:
    """Give the session with a broker, which isn't ended while it gets a new cluster."""
    with _lock:
        key = (broker.address, None)
        session = _sessions.get(key)
        if session is None or not session.alive():
            session = _begin(broker, Recordings(" ".join(broker.doors), token=broker.token), key)
        yield session


@contextmanager
def session_at(address: str, protection: Protection = NOTHING) -> Iterator[Session]:
    """Give the session with a broker of several programs, as `session_with` does."""
    with _lock:
        key = (address, protection.secret)
        session = _sessions.get(key)
        if session is None or not session.alive():
            for line in protection.warnings():
                logger.warning("%s", line)
            broker = remote.Broker(address, protection.keys)
            session = _begin(broker, Recordings(shared_at=address), key, shared=True)
            _end_at_exit()
        yield session


def _begin(
    broker: embedded.Broker | remote.Broker,
    recordings: Recordings,
    key: tuple[str, Secret | None],
    shared: bool = False,
) -> Session:
    """Begin a session with a broker."""
    guard = identity.new_guard(broker.keys)
    me = identity.describe("client", __version__, token=guard.token)
    recordings.owner = me.instance
    exchange = Exchange(me, broker, identity.random_name, guard=guard)
    session = Session(broker.address, broker, exchange, recordings, shared=shared)
    _sessions[key] = session  # first: Ctrl-C may come while it starts
    session.start()
    return session


def _end_at_exit() -> None:
    """Have `end` called when this process exits."""
    global _owner
    if _owner != os.getpid():
        _owner = os.getpid()
        atexit.register(_exit, _owner)


def end(timeout_s: float = EXIT_S) -> None:
    """Close what is open, and end the sessions, their brokers and the private nodes."""
    with _lock:
        for session in _sessions.values():
            session.stop(timeout_s)
        _sessions.clear()
        _brokers.clear()
        local.stop()


def end_unless_used() -> None:
    """Do what `end` does, unless there is a cluster that isn't closed."""
    with _lock:
        if not any(session.is_used() for session in _sessions.values()):
            end()


def _exit(owner: int) -> None:
    if owner != os.getpid():  # a child that was forked with this handler registered
        return
    try:
        if not hasattr(sys, "last_value"):  # else the program has failed, and wants to end
            _wait_for_jobs()
            end(CLEAN_S)
        elif not isinstance(sys.last_value, KeyboardInterrupt):
            _leave_behind()
    except KeyboardInterrupt:
        logger.warning("interrupted: the jobs that are left are cancelled")
    end()


def _leave_behind() -> None:
    """A program that has failed leaves its jobs with the brokers that outlive it."""
    with _lock:
        for key, session in list(_sessions.items()):
            count = session.leave_behind(EXIT_S)
            if count:
                del _sessions[key]
                logger.warning(
                    "the program has failed: the %d jobs that it has at the broker at %s go on; "
                    "recover_jobs() or 'dispy recover' gets their results, or ends them",
                    count,
                    session.address,
                )


def _wait_for_jobs() -> None:
    """A program that just ends has its jobs done and its callbacks called nevertheless."""
    ledgers = _unfinished()
    if ledgers:
        count = sum(ledger.pending for ledger in ledgers)
        logger.info("the program ends; waiting for %d jobs (Ctrl-C cancels them)", count)
    while True:
        for ledger in ledgers:
            ledger.wait_idle(None)
        callbacks.Listener().drain(CLEAN_S)
        ledgers = _unfinished()
        if not ledgers:
            return  # else callbacks have submitted more


def _unfinished() -> list[Ledger]:
    return [ledger for one in list(_sessions.values()) for ledger in one.unfinished()]


def _forget() -> None:
    global _lock
    _lock = threading.RLock()
    _brokers.clear()  # their sockets are the parent's
    for session in _sessions.values():
        session.orphan()
    _sessions.clear()
    job.forget()
    callbacks.forget()
    pickling.forget()
    blobs.forget()
    local.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
