"""Recovery at a shared broker: the shell around `attached`, which decides about jobs.

It takes clusters over from a client that is gone, by a recover file or by name, waits for their
jobs, and closes them. What isn't returned stays at the broker, and so does the cluster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from dispy.protocol import identity
from dispy.protocol.events import Away, DialFailed, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.messages import Attach
from dispy.protocol.protection import NOTHING, Protection
from dispy.protocol.transport import Bus

from . import remote
from ._version import __version__
from .attached import Takeover
from .job import DispyJob
from .log import logger
from .recorded import EndedRecord, Recorded, RecordedCluster, RecoverError
from .recoverfile import RecoverFile
from .remade import WITHOUT_CLASSES, remake

REACH_S = 5.0  # how long a broker may take to answer, unless the timeout is longer
GATHER_S = 1.0  # ... to say what it has, even if the timeout is shorter
KILL_S = 15.0  # how long jobs may take to end after they were told to
CLOSE_S = 5.0  # ... and nodes to clean up, before they are left to do so by themselves
DELIVER_S = 2.0  # ... and the last messages to arrive
STEP_S = 1.0


def recover_named(
    label: str,
    address: str,
    timeout: float | None,
    terminate_pending: bool,
    protection: Protection = NOTHING,
) -> list[DispyJob]:
    """Get the jobs of a cluster by its label, or the broker's number; see `recover_jobs`."""
    rescue = Rescue(address, [Attach(1, label)], {1: RecordedCluster(1)}, None, protection)
    return rescue.run(timeout, terminate_pending)


def recover_recorded(
    file: RecoverFile,
    recorded: Recorded,
    address: str,
    timeout: float | None,
    terminate_pending: bool,
    protection: Protection = NOTHING,
) -> list[DispyJob]:
    """Get the jobs that a recover file tells of; see `recover_jobs`."""
    assert recorded.shared is not None
    clusters = {number: each for number, each in recorded.clusters.items() if not each.closed}
    owner = recorded.shared.owner
    wanted = [Attach(number, owner=owner, number=number) for number in clusters]
    count = sum(len(cluster.jobs) for cluster in clusters.values())
    logger.info("%s: %d jobs to recover from the broker at %s", file.path.name, count, address)
    rescue = Rescue(address, wanted, clusters, file, protection)
    return rescue.run(timeout, terminate_pending)


class Rescue:
    """One call of `recover_jobs` with a broker at ``address``."""

    def __init__(
        self,
        address: str,
        wanted: list[Attach],
        known: dict[int, RecordedCluster],
        file: RecoverFile | None = None,
        protection: Protection = NOTHING,
    ) -> None:
        self._protection = protection
        self._address = address
        self._known = known
        self._file = file
        self._takeover = Takeover(wanted)
        self._obstacle = "it doesn't answer"
        self._peer = ""
        self._useless = False  # some results can't be unpickled here

    def run(self, timeout: float | None, terminate_pending: bool) -> list[DispyJob]:
        """Wait for the jobs, close the clusters, return the jobs that have ended."""
        try:
            remote.read_address("scheduler_node", self._address, 0, self._protection)
            with closing(Bus(self._protection.keys)) as self._bus:
                guard = identity.new_guard(self._bus.keys)
                me = identity.describe("client", __version__, token=guard.token)
                self._exchange = Exchange(me, self._bus, identity.random_name, guard=guard)
                self._exchange.dial(self._address)
                if not self._reach(timeout):
                    return []
                self._collect(timeout, terminate_pending)
                jobs = self._hand_over()
                self._finish()
            return jobs
        finally:
            if self._file is not None:
                self._file.close()

    # -- phases --------------------------------------------------------------------------

    def _reach(self, timeout: float | None) -> bool:
        """Get the clusters; False if there is nothing to do.

        Raises `RecoverError` if none can be had.
        """
        takeover = self._takeover
        self._wait(lambda: takeover.joined, max(REACH_S, timeout or 0.0))
        if not takeover.joined:
            raise RecoverError(f"no broker answers at {self._address}: {self._obstacle}")
        clusters = takeover.clusters.values()
        self._wait(lambda: all(each.said or each.lost for each in clusters), REACH_S)
        lost = [each for each in clusters if each.lost]
        if len(lost) == len(takeover.clusters):
            reasons = "; ".join(dict.fromkeys(each.lost for each in lost))
            if self._file is not None and not any(each.jobs for each in self._known.values()):
                logger.info("all jobs had ended: %s", reasons)  # killed while it was closing them
                self._file.remove()
                return False
            raise RecoverError(f"nothing can be recovered at {self._address}: {reasons}")
        for each in lost:
            logger.warning("cluster %d can't be recovered: %s", each.wanted.number, each.lost)
        return True

    def _collect(self, timeout: float | None, terminate_pending: bool) -> None:
        """Wait until all jobs have ended, or for the time that is given."""
        takeover = self._takeover
        if timeout is None and terminate_pending:
            timeout = 0.0
        begin = time.monotonic()
        if timeout is not None:  # however short it is, listen to what there is
            self._wait(lambda: takeover.gathered, max(timeout, GATHER_S))
            timeout = max(0.0, begin + timeout - time.monotonic())
        self._wait(lambda: takeover.settled, timeout)
        if terminate_pending and not takeover.settled:
            takeover.kill()
            self._wait(lambda: takeover.settled, KILL_S)
            takeover.cut_short()

    def _hand_over(self) -> list[DispyJob]:
        """Make jobs of the ends that are known; only then the broker may forget them."""
        found: list[DispyJob] = []
        for number, cluster in self._takeover.clusters.items():
            known = self._known[number]
            known.program |= cluster.said is not None and cluster.said.is_program
            self._takeover.miss(number, known.jobs)
            useless = set()
            for result, host in self._takeover.news(number, known.has_ended):
                job, is_useful = remake(known, result, host)
                found.append(job)
                if not is_useful:
                    useless.add(result.seq)
            self._useless |= bool(useless)
            if self._file is not None:  # should the next line be the last: no job comes twice
                self._file.append(EndedRecord(number, sorted(cluster.ends.keys() - useless)))
                self._file.write()
            self._takeover.hear(number, useless)
        return found

    def _finish(self) -> None:
        """Close the clusters, unless there is more to come; then they stay at the broker."""
        takeover = self._takeover
        if takeover.settled and not self._useless:
            takeover.close()
            self._wait(lambda: takeover.closed, CLOSE_S)
            self._exchange.goodbye(self._peer, "its jobs have been recovered")
            if self._file is not None:
                self._file.remove()
            return
        self._wait(self._is_delivered, DELIVER_S)
        if takeover.settled:
            logger.warning("the broker keeps the results for another time: %s", WITHOUT_CLASSES)

    def _is_delivered(self) -> bool:
        link = self._exchange.links.get(self._peer)
        return link is None or not link.undelivered()

    # -- the loop ------------------------------------------------------------------------

    def _wait(self, done: Callable[[], bool], seconds: float | None) -> None:
        """Work until a condition holds, at most for so long."""
        until = float("inf") if seconds is None else time.monotonic() + seconds
        self._send()
        while not done():
            now = time.monotonic()
            if now >= until:
                return
            deadline = min(until, self._exchange.deadline(), self._takeover.deadline())
            for arrival in self._bus.poll(min(STEP_S, max(0.0, deadline - now))):
                self._handle(self._exchange.receive(arrival, time.monotonic()))
            now = time.monotonic()
            self._handle(self._exchange.tick(now))
            self._takeover.tick(now)
            self._send()

    def _handle(self, events: list[Event]) -> None:
        now = time.monotonic()
        for event in events:
            if isinstance(event, Received):
                self._takeover.receive(event.message, now)
            elif isinstance(event, Joined):
                self._peer = event.peer
                self._takeover.join(now)
            elif isinstance(event, DialFailed | Away | Left):
                self._missed(event.reason)

    def _missed(self, reason: str) -> None:
        """The broker can't be reached for now."""
        if reason != self._obstacle:
            self._obstacle = reason
            log = logger.warning if self._takeover.joined else logger.info
            log("the broker at %s: %s; still trying", self._address, reason)

    def _send(self) -> None:
        for message in self._takeover.take():
            self._exchange.send(self._peer, message)
        self._exchange.flush(time.monotonic())
