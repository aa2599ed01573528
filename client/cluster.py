"""JobCluster: what users create, submit jobs to, wait for and close.

It checks and pickles in the caller's thread and hands the rest over to the session. What it
knows of its jobs it reads from its ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from dispy.broker.embedded import Broker
from dispy.protocol.messages import JobSpec, NodeSpec, OpenCluster

from . import computation as computations
from . import config, local, parameters, process
from .aliases import OldClusterNames, new_names
from .allocate import (
    LOOPBACK,
    Entry,
    LocalNode,
    beyond_loopback,
    is_pattern,
    matches_here,
    read_nodes,
    resolve,
)
from .callbacks import check_callback
from .errors import ClusterClosedError
from .job import DispyJob
from .ledger import ClusterStatusCallback, JobStatus, Ledger
from .log import logger
from .pickling import dump_arguments
from .session import Cancel, Close, Open
from .status import ClusterStatus, table

CLOSED_S = 60.0  # how long nodes may take to end jobs and clean up before close() returns


class JobCluster(OldClusterNames):
    """A computation and the nodes that run it.

    Parameters:

    - ``computation``: a function, method, lambda, closure, partial, or any other callable. It
      travels by value, together with what it refers to in the program's own modules.
    - ``nodes``: a host name, an IP address, "host:port", a pattern such as "10.0.*", a tuple
      (host, port, cpus), a dict with these names, `NodeAllocate`, `LocalNode`, or a list of
      such. Without it the node of this machine is used, or, if none runs, a private one that
      ends with this program. For now all nodes must be on this machine's loopback.
    - ``job_status``: called with a job each time one has ended.
    - ``cluster_status``: called with (status, node or None, job or None) for each change of a
      node or a job; ``status`` is one of the constants of `DispyJob` and `DispyNode`. Both are
      called in one thread of their own; what they raise is logged.
    - ``host``: None, or an address of this machine's loopback.
    - ``dispy_port``: the first of the range of ports, by default `config.DispyPort`; a node's
      own is by one higher.
    - ``loglevel``: level of `dispy.logger` from now on; None leaves it as it is.
    - ``pulse_interval``: seconds, 0.1 to 1000, default 5; a node that is silent for five of
      them is given up.
    - ``reentrant``: whether a job may be run again when its node is lost; otherwise it becomes
      `DispyJob.Abandoned`.
    - ``max_tasks_per_child``: how many jobs one after the other share a process. 1: every job
      gets a fresh one. None: no limit, best for very short jobs.
    - ``cancel_grace``: seconds that a cancelled job has after its KeyboardInterrupt.

    ``depends``, ``ext_host``, ``ipv4_udp_multicast``, ``dest_path``, ``setup``, ``cleanup``,
    ``ping_interval``, ``secret``, ``keyfile``, ``certfile`` and ``recover_file`` are for later
    releases. Parameters may also be given by the names they had before (see `aliases`).

    Raises `TypeError` or `ValueError` for a wrong parameter, naming it; `PicklingError` for a
    computation that can't be sent; `OSError` for a host that isn't known; `SecretNeededError`
    for one that isn't on loopback; `NotSupportedError` for what is for later releases.

    A cluster is a context manager; at its end it is closed, after all jobs have ended.
    """

    def __init__(
        self,
        computation: Callable[..., Any],
        nodes: Entry | Iterable[Entry] | None = None,
        depends: Sequence[object] = (),
        job_status: JobStatus | None = None,
        cluster_status: ClusterStatusCallback | None = None,
        host: str | Iterable[str] | None = None,
        ext_host: str | Iterable[str] | None = None,
        dispy_port: int | None = None,
        ipv4_udp_multicast: bool = False,
        dest_path: str | None = None,
        loglevel: int | None = None,
        setup: object = None,
        cleanup: object = True,
        ping_interval: float | None = None,
        pulse_interval: float | None = None,
        reentrant: bool = False,
        secret: str = "",
        keyfile: str | None = None,
        certfile: str | None = None,
        recover_file: str | None = None,
        *,
        poll_interval: float | None = None,
        max_tasks_per_child: int | None = 1,
        cancel_grace: float = parameters.GRACE_S,
        **old: Any,
    ) -> None:
        renamed = new_names(old)
        job_status = renamed.pop("job_status", job_status)
        host = renamed.pop("host", host)
        dispy_port = renamed.pop("dispy_port", dispy_port)
        parameters.refuse_unsupported(
            depends=depends,
            ext_host=ext_host,
            ipv4_udp_multicast=ipv4_udp_multicast,
            dest_path=dest_path,
            setup=setup,
            cleanup=cleanup is not True,
            ping_interval=ping_interval,
            secret=secret,
            keyfile=keyfile,
            certfile=certfile,
            recover_file=recover_file,
            poll_interval=poll_interval,
        )
        parameters.refuse_unsupported(**renamed)
        check_callback("job_status", job_status, 1)
        check_callback("cluster_status", cluster_status, 3)
        parameters.check_host(host)
        parameters.check_port("dispy_port", dispy_port)
        options = parameters.read_options(
            reentrant, max_tasks_per_child, pulse_interval, cancel_grace
        )
        if loglevel is not None:
            logger.setLevel(loglevel)
        self._created = time.time()
        self._ledger = Ledger(job_status, cluster_status)
        self._open(computation, nodes, dispy_port, options)

    def _open(
        self,
        computation: object,
        nodes: object,
        dispy_port: int | None,
        options: parameters.Options,
    ) -> None:
        """Find the nodes, pack the function, and give both to the session."""
        function = computations.check(computation)
        broker, specs = find_nodes(nodes, dispy_port)
        packed = computations.pack(function)  # meanwhile a private node starts
        self._number = next(process.numbers)
        self._name = packed.name
        self._program = packed.program
        opening = OpenCluster(
            self._number,
            packed.name,
            packed.code,
            specs,
            reentrant=options.reentrant,
            max_tasks_per_child=options.max_tasks,
            pulse_interval=options.pulse_s,
            cancel_grace=options.grace_s,
        )
        self._session = process.open_cluster(broker, Open(opening, self._ledger))
        self._put = self._session.orders.append

    @property
    def name(self) -> str:
        """The name of the computation."""
        return self._name

    def submit(
        self, *args: Any, dispy_job_depends: Sequence[object] = (), **kwargs: Any
    ) -> DispyJob:
        """Have the computation called with these arguments; return the job at once.

        The arguments are pickled now: changing them later makes no difference.
        Raises `PicklingError` naming what can't be pickled, `ClusterClosedError` after `close`.
        """
        if dispy_job_depends:
            parameters.refuse_unsupported(dispy_job_depends=dispy_job_depends)
        return self._submit(None, args, kwargs)

    def submit_job_id(
        self, job_id: object, *args: Any, dispy_job_depends: Sequence[object] = (), **kwargs: Any
    ) -> DispyJob:
        """Do what `submit` does; the job has this ``id`` from the beginning."""
        if dispy_job_depends:
            parameters.refuse_unsupported(dispy_job_depends=dispy_job_depends)
        return self._submit(job_id, args, kwargs)

    def cancel(self, job: DispyJob) -> int:
        """End a job: drop it if it waits, else interrupt it (KeyboardInterrupt) and then kill it.

        Returns 0, or -1 if the job isn't one of this cluster or has ended already. The job ends
        a little later, as Cancelled, Terminated or, if it finished nevertheless, Finished.
        """
        if not isinstance(job, DispyJob) or job._cluster != self._number:
            logger.warning("cluster %r can't cancel %r: it isn't its job", self._name, job)
            return -1
        if job.status >= DispyJob.Cancelled:
            return -1
        self._session.hand_over(Cancel(self._number, job._seq))
        return 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all jobs submitted so far, and meanwhile, have ended.

        Returns False if that took longer than ``timeout`` seconds.
        """
        return self._ledger.wait_idle(timeout)

    def __call__(self) -> bool:
        """Wait until all jobs have ended."""
        return self.wait()

    def close(self, timeout: float | None = None, terminate: bool = False) -> bool:
        """Wait until all jobs have ended, then clean the nodes up; no more can be submitted.

        If it takes longer than ``timeout`` seconds, the cluster stays as it is and False is
        returned; with ``terminate`` the jobs that are left are cancelled instead. When the
        cluster is closed, True is returned, and no callback is called any more.
        """
        ledger = self._ledger
        until = None if timeout is None else time.monotonic() + timeout
        accepting = True
        while accepting:
            left = None if until is None else max(0.0, until - time.monotonic())
            idle = ledger.wait_idle(left)
            if not idle and not terminate:
                return False
            accepting = not ledger.stop_accepting(even_if_pending=not idle)
        self._session.hand_over(Close(self._number))
        closed = ledger.wait_closed(CLOSED_S)
        if not closed:
            logger.warning("cluster %r: its nodes haven't cleaned up so far", self._name)
        ledger.listener.drain()
        ledger.listener.silent = True
        return closed

    def shutdown(self) -> None:
        """Close the cluster, and end broker and private node unless other clusters use them."""
        self.close()
        process.end_unless_used()

    def status(self) -> ClusterStatus:
        """Return the nodes that the cluster has used, and how many jobs are pending."""
        return ClusterStatus(self._ledger.nodes(), self._ledger.pending)

    def print_status(self, wall_time: float | None = None) -> None:
        """Print what each node has done, and the speedup over one CPU.

        ``wall_time`` in seconds is, unless given, the time since the cluster was created.
        """
        if wall_time is None:
            wall_time = time.time() - self._created
        print(table(self.status(), wall_time))

    def __enter__(self) -> JobCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all jobs and close; on Ctrl-C or at the program's end don't wait."""
        if kind is None or issubclass(kind, Exception):
            self.close()
        else:
            self.close(timeout=0, terminate=True)

    def __repr__(self) -> str:
        return f"<JobCluster {self._name!r}, {self._ledger.pending} jobs pending>"

    def _submit(
        self, job_id: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> DispyJob:
        payload, parts = dump_arguments(args, kwargs, self._program)
        ledger = self._ledger
        with ledger.lock:  # jobs reach the session in the order of their numbers
            if not ledger.accepting:
                raise ClusterClosedError(f"cluster {self._name!r} is closed: it takes no jobs")
            seq = ledger.last_seq = ledger.last_seq + 1
            spec = JobSpec(seq, 0, payload, parts)
            job = DispyJob(self._number, spec, job_id, args, kwargs)
            ledger.created(job)
            # Ctrl-C can't come between these two, since nothing of Python is called there.
            ledger.pending += 1
            self._put(job)
            self._session.wake()
        return job


def find_nodes(nodes: object, dispy_port: int | None) -> tuple[Broker, list[NodeSpec]]:
    """Find out where a cluster's nodes are, starting what is missing in this process.

    Returns the broker and what to tell it about the nodes.
    """
    entries = read_nodes(nodes)
    port = config.NodePort if dispy_port is None else dispy_port + 1
    specs: list[NodeSpec] = []
    private: list[int] = []
    for entry in entries:
        if isinstance(entry, LocalNode):
            private.append(entry.cpus)
        elif not is_pattern(entry):
            specs.append(resolve(entry, port))
        elif not matches_here(entry):
            raise beyond_loopback("nodes", entry.host)
        elif local.listens(LOOPBACK, entry.port or port):
            specs.append(NodeSpec(LOOPBACK, entry.port or port, entry.cpus))
        else:
            private.append(entry.cpus)

    broker = process.start_broker(config.ClientPort if dispy_port is None else dispy_port)
    specs += [NodeSpec(local.start(broker.port), 0, cpus) for cpus in private]
    return broker, specs
