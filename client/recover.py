"""recover_jobs: get the results of a program that was killed.

The shell around `recovery`: it reads the recover file, takes the place of the dead program's
broker towards its nodes, and makes jobs of what they say. It decides nothing about jobs. When
the broker hasn't died with the program, all of that is `attaching`'s.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from dispy.protocol import identity
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Away, Back, DialFailed, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import Guard
from dispy.protocol.messages import ABANDONED, Identity, JobResult
from dispy.protocol.protection import NOTHING, Protection
from dispy.protocol.transport import Bus

from . import attaching, config, parameters, recoverfile, recovery, remote
from ._version import __version__
from .job import DispyJob
from .log import logger
from .recorded import EndedRecord, Recorded, RecordedCluster, RecoverError, ResultRecord
from .recoverfile import RecoverFile
from .recovery import Cluster, Goodbye, Job, Recovery, Send
from .remade import WITHOUT_CLASSES, large, remake

__all__ = ["RecoverError", "recover_jobs"]

KILL_S = 15.0  # how long jobs may take to end after they were told to
RELEASE_S = 5.0  # ... and nodes to clean up, before they are left to do so by themselves
HEAR_S = 1.0  # ... and to say what they have, even if the timeout is shorter
STEP_S = 1.0


def recover_jobs(
    recover_file: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    terminate_pending: bool = False,
    *,
    cluster: str | int | None = None,
    scheduler_node: str | None = None,
    secret: str = "",
    keyfile: str | os.PathLike[str] | None = None,
    certfile: str | os.PathLike[str] | None = None,
    insecure: bool = False,
) -> list[DispyJob]:
    """Get the jobs of a program that was killed, with their results.

    Waits until all jobs that nodes have of the program have ended, releases the nodes, removes
    the file, and returns the jobs in the order in which they were submitted, each as its
    cluster would have left it. Jobs whose end the program knew aren't among them.

    - ``recover_file``: the cluster's; by default the newest ``_dispy_*`` of the current folder
      whose program doesn't run any more.
    - ``timeout``: seconds, default None: no limit. Later, the jobs that have ended by then are
      returned; the others go on, nodes and file stay as they are, and `recover_jobs` can be
      called again for the rest.
    - ``terminate_pending``: end the jobs that still run, after ``timeout`` or else at once, and
      return these, too. Then the nodes are free.

    - ``cluster``: instead of a file, the label of a `SharedJobCluster`, or the broker's number of
      it. That works from any machine; but ``id`` is then the number of the submission, and
      ``args`` is None.
    - ``scheduler_node``: where its broker runs, "host" or "host:port", by default this machine,
      or what the file says.
    - ``secret``, ``keyfile``, ``certfile``, ``insecure``: those of the cluster: see `JobCluster`.

    Of a `SharedJobCluster`, jobs and results are at its broker, which the program may also have
    outlived. What is returned is forgotten there, and the cluster closed when all jobs have ended.

    ``status`` is Finished or Terminated as usual; Cancelled for a job that no node had got:
    ``exception`` says so, and with its ``args`` and ``kwargs`` it can be submitted again;
    Abandoned for one whose node can't be reached within 5 seconds (or ``timeout``, if that is
    longer): then the file is kept, so that it can be tried again. ``args`` is None if they were
    larger than 1 MiB. Results that are instances of the program's own classes can only be
    unpickled by a program that has these, too: otherwise the job is Terminated, ``exception``
    says so, and the file is kept with the results.

    Raises `RecoverError` if the file is none or is empty, or if its program still runs,
    `FileNotFoundError` if there is none, `TypeError` or `ValueError` for a wrong parameter,
    `SecretNeededError` if other machines are to be asked, and there is no secret.
    """
    if timeout is not None and not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must not be negative: {timeout}")
    protection = parameters.read_protection(secret, keyfile, certfile, insecure)
    port = config.SharedSchedulerPort
    address = remote.read_address("scheduler_node", scheduler_node, port, protection)
    if cluster is not None:
        if recover_file is not None:
            raise TypeError("recover_jobs takes a recover_file or a cluster, not both")
        if not isinstance(cluster, str | int) or isinstance(cluster, bool) or cluster == "":
            raise TypeError(f"cluster must be a label or the broker's number, not {cluster!r}")
        return attaching.recover_named(
            str(cluster), address, timeout, terminate_pending, protection
        )
    path = newest(Path()) if recover_file is None else Path(recover_file)
    file, recorded = recoverfile.open_again(path)
    if recorded.shared is not None:
        where = address if scheduler_node is not None else recorded.shared.address
        return attaching.recover_recorded(
            file, recorded, where, timeout, terminate_pending, protection
        )
    if scheduler_node is not None:
        file.close()
        raise ValueError(f"scheduler_node: the jobs of {path.name} are not at any broker")
    return Rescue(file, recorded, timeout, protection).run(timeout, terminate_pending)


def newest(folder: Path) -> Path:
    """Return the newest recover file of a folder whose program is dead.

    Raises `FileNotFoundError` if there is none, `RecoverError` if all programs still run.
    """
    found = [path for path in folder.glob(recoverfile.PREFIX + "*") if _is_recover_file(path)]
    if not found:
        raise FileNotFoundError(
            f"there is no recover file ({recoverfile.PREFIX}*) in {folder.absolute()}"
        )
    found.sort(key=lambda path: (path.stat().st_mtime, path.name))
    dead = [path for path in found if not recoverfile.is_in_use(path)]
    if not dead:
        raise RecoverError(f"the program of {found[-1].name} still runs")
    return dead[-1]


def _is_recover_file(path: Path) -> bool:
    try:
        return path.is_file() and recoverfile.is_recover_file(path)
    except OSError:  # it is somebody else's, or was removed in this moment
        return False


class Rescue:
    """One call of `recover_jobs`."""

    def __init__(
        self,
        file: RecoverFile,
        recorded: Recorded,
        timeout: float | None,
        protection: Protection = NOTHING,
    ) -> None:
        self._file, self._recorded, self._protection = file, recorded, protection
        try:
            self._siblings = _open_siblings(self._recorded)
        except BaseException:
            self._file.close()
            raise
        others = {number for _, sibling in self._siblings for number in sibling.computations}
        patience_s = max(recovery.PATIENCE_S, timeout or 0.0)
        self._recovery = Recovery(clusters_of(self._recorded), others, time.monotonic(), patience_s)
        self._ways = _ways_to(self._recorded, self._recovery.nodes)
        self._over: dict[int, list[int]] = {}  # jobs by computation: nothing more is to be had
        self._is_over = True  # nothing more is to be had of all jobs that have ended
        for kept in self._recorded.results:
            self._recovery.take_kept(kept.computation, kept.host, _result(kept))

    def run(self, timeout: float | None, terminate_pending: bool) -> list[DispyJob]:
        """Wait for the jobs and release the nodes; return the jobs that have ended."""
        try:
            with closing(Bus(self._protection.keys)) as self._bus:
                self._connect()
                self._collect(timeout, terminate_pending)
                if self._recovery.settled:
                    self._release()
            jobs = self._jobs()
            self._finish()
        finally:  # in any case, all that has come is in the files
            for file in (self._file, *(sibling for sibling, _ in self._siblings)):
                file.close()
        return jobs

    # -- phases --------------------------------------------------------------------------

    def _connect(self) -> None:
        """Become the broker that the nodes wait for."""
        program = self._recorded.program
        clusters = self._recovery.clusters.values()
        count = sum(len(cluster.jobs) + len(cluster.unsent) for cluster in clusters)
        nodes = ", ".join(self._recovery.nodes)
        logger.info("%s: %d jobs to recover from %s", self._file.path.name, count, nodes)
        name = f"{socket.gethostname()} (recovery)"
        token = bytes.fromhex(program.token)
        me = identity.describe("broker", __version__, name=name, token=token)
        guard = Guard(token, self._bus.keys)
        self._exchange = Exchange(me, self._bus, identity.random_name, _admit, guard)
        for address in self._ways:
            self._exchange.dial(remote.read_address("recover_file", address, 0, self._protection))
        for door in program.door.split():
            with suppress(OSError):  # another program's nodes dial in there now
                self._bus.listen(door)

    def _collect(self, timeout: float | None, terminate_pending: bool) -> None:
        """Wait until all jobs have ended, or for the time that is given."""
        if timeout is None and terminate_pending:
            timeout = 0.0
        begin = time.monotonic()
        if timeout is not None:  # however short it is, listen to what nodes have
            self._wait("heard", max(timeout, HEAR_S))
            timeout = max(0.0, begin + timeout - time.monotonic())
        self._wait("settled", timeout)
        if terminate_pending and not self._recovery.settled:
            self._recovery.give_up_unreachable()
            self._recovery.kill()
            self._wait("settled", KILL_S)
            self._recovery.cut_short()

    def _release(self) -> None:
        self._recovery.release()
        self._wait("released", RELEASE_S)
        self._recovery.farewell()
        self._carry_out()
        for peer in list(self._exchange.links):  # relays: they are free for others
            self._exchange.goodbye(peer, "the recovery has ended")

    def _jobs(self) -> list[DispyJob]:
        """Make jobs of the ends that are known."""
        found: list[DispyJob] = []
        for computation in self._recovery.clusters:
            known = self._recorded.computations.get(computation, RecordedCluster(0))
            for job in self._recovery.ends(computation):
                assert job.result is not None
                made, is_useful = remake(known, job.result, job.host)
                found.append(made)
                if not is_useful:
                    self._is_over = False
                elif job.result.status != ABANDONED or not self._recovery.unreachable:
                    self._over.setdefault(computation, []).append(job.seq)
        return found

    def _finish(self) -> None:
        """Remove the file, unless there is more to come for which it is needed."""
        settled, unreachable = self._recovery.settled, self._recovery.unreachable
        if settled and not unreachable and self._is_over:
            self._file.remove()
            return
        for computation, seqs in self._over.items():
            if computation in self._recorded.computations:
                number = self._recorded.computations[computation].number
                self._file.append(EndedRecord(number, seqs))
        self._file.write()
        if settled:
            name = self._file.path.name
            troubles = [f"{address}: {reason}" for address, reason in unreachable.items()]
            why = f"nodes can't be reached ({'; '.join(troubles)})" if troubles else WITHOUT_CLASSES
            logger.warning("%s is kept for another time, or remove it: %s", name, why)

    # -- the loop ------------------------------------------------------------------------

    def _wait(self, condition: str, seconds: float | None) -> None:
        """Work until a property of the recovery holds, at most for so long."""
        until = float("inf") if seconds is None else time.monotonic() + seconds
        while not getattr(self._recovery, condition):
            now = time.monotonic()
            if now >= until:
                return
            deadline = min(until, self._exchange.deadline(), self._recovery.deadline())
            for arrival in self._bus.poll(min(STEP_S, max(0.0, deadline - now))):
                self._handle(self._exchange.receive(arrival, time.monotonic()))
            now = time.monotonic()
            self._handle(self._exchange.tick(now))
            self._recovery.tick(now)
            self._carry_out()

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            try:
                self._on_event(event)
            except ProtocolError as error:
                assert isinstance(event, Received)
                logger.warning("a node broke the protocol: %s", error)
                self._exchange.goodbye(event.peer, f"protocol error: {error}")
                self._recovery.left(event.peer, f"it broke the protocol: {error}")

    def _on_event(self, event: Event) -> None:
        machine = self._recovery
        if isinstance(event, Received):
            machine.receive(event.peer, event.message)
        elif isinstance(event, Joined):
            if event.identity.role == "node":
                machine.joined(event.peer, event.identity, event.address)
        elif isinstance(event, Back):
            machine.back(event.peer)
        elif isinstance(event, Away):
            machine.away(event.peer, event.reason, event.gone, time.monotonic())
            if event.gone:
                self._exchange.forget(event.peer)
        elif isinstance(event, Left):
            machine.left(event.peer, event.reason)
        elif isinstance(event, DialFailed):
            for address in self._ways.get(event.address, ()):
                machine.unreachable_at(address, event.reason)

    def _carry_out(self) -> None:
        """Keep results before the nodes hear that they have arrived."""
        effects = self._recovery.flush()
        for effect in effects:
            if isinstance(effect, recovery.Received):
                self._file_of(effect.computation).append(_result_record(effect))
        for file in (self._file, *(sibling for sibling, _ in self._siblings)):
            file.write()
        for effect in effects:
            if isinstance(effect, Send):
                self._exchange.send(effect.peer, effect.message)
            elif isinstance(effect, Goodbye):
                self._exchange.goodbye(effect.peer, effect.reason)
        self._exchange.flush(time.monotonic())

    def _file_of(self, computation: int) -> RecoverFile:
        """Return the file that a computation's results belong to."""
        for file, recorded in self._siblings:
            if computation in recorded.computations:
                return file
        return self._file


def _open_siblings(recorded: Recorded) -> list[tuple[RecoverFile, Recorded]]:
    """Open the program's other files, as far as they are still needed."""
    opened: list[tuple[RecoverFile, Recorded]] = []
    for path in dict.fromkeys(recorded.siblings):
        try:
            if recoverfile.look_into(Path(path)).program.broker != recorded.program.broker:
                continue  # another program has overwritten it
        except OSError:  # its clusters were closed, or have been recovered
            continue
        try:
            opened.append(recoverfile.open_again(Path(path)))
        except BaseException:
            for file, _ in opened:
                file.close()
            raise
    return opened


def clusters_of(recorded: Recorded) -> Iterable[Cluster]:
    """Yield what a recovery has to know of each cluster."""
    for computation, known in recorded.computations.items():
        jobs = {seq: Job(seq) for seq in known.jobs if seq in known.sent}
        for seq, node in known.begun.items():
            if seq in jobs and node in known.nodes:
                jobs[seq].begun_at = known.nodes[node].address
        nodes = [] if known.closed else known.nodes.values()
        addresses = {node.address for node in nodes}
        unsent = known.jobs.keys() - known.sent
        yield Cluster(computation, jobs, unsent, addresses, known.has_ended)


def _ways_to(recorded: Recorded, nodes: Iterable[str]) -> dict[str, list[str]]:
    """Return what is to be dialled, and to which of these nodes it leads: a relay to several."""
    known = [node for each in recorded.computations.values() for node in each.nodes.values()]
    relays = {node.address: node.relay for node in known if node.relay}
    ways: dict[str, list[str]] = {}
    for address in nodes:
        ways.setdefault(relays.get(address, address), []).append(address)
    return ways


def _admit(peer: Identity) -> str:
    if peer.role in ("node", "relay"):
        return ""
    return "this is a recovery, which takes nodes only"


def _result_record(effect: recovery.Received) -> ResultRecord:
    result = effect.result
    return ResultRecord(
        effect.computation,
        effect.host,
        result.seq,
        result.attempt,
        result.status,
        result.start,
        result.end,
        result.payload,
        [part.tobytes() for part in result.parts],
    )


def _result(kept: ResultRecord) -> JobResult:
    parts = [large(part) for part in kept.parts]
    times = (kept.start, kept.end)
    return JobResult(kept.seq, kept.attempt, kept.status, *times, kept.payload, parts)
