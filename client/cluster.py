"""JobCluster: what users create, submit jobs to, wait for and close.

It checks and pickles in the caller's thread and hands the rest over to the session. What it
knows of its jobs it reads from its ledger.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

from dispy.protocol.messages import (
    Code,
    ComputationSpec,
    FileSpec,
    JobOptions,
    JobSpec,
    NodeSpec,
    OpenCluster,
)

from . import computation as computations
from . import config, depends, parameters, process, recoverfile
from .aliases import OldClusterNames, new_names
from .allocate import Entry, LocalNode, NodeAllocate, asks, is_any, is_pattern, read_nodes
from .callbacks import check_callback
from .errors import ClusterClosedError
from .job import OWNERS, DispyJob, explain_end
from .ledger import ClusterStatusCallback, JobOutput, JobStatus, Ledger
from .log import logger
from .nodecontrol import NodeControl, find_nodes
from .nodes import DispyNode
from .offers import Offers, pack_setup_args
from .orders import AskWhy, Cancel, Close, Define, Open
from .output import Output
from .pickling import Pickled
from .session import Session
from .status import ClusterStatus, table

GIVE_WAY_EVERY = 64  # jobs submitted; as many take less than a millisecond
HINT_S = 5.0  # from then on it may be that close() waits for more than was expected
CLOSED_S = 90.0  # nodes end jobs and clean up, for which they have 60; then close() returns


class JobCluster(NodeControl, OldClusterNames):
    """A computation and the nodes that run it.

    Parameters:

    - ``computation``: a function, method, lambda, closure, partial, or any other callable. It
      travels by value, together with what it refers to in the program's own modules. Or a
      string: the path of a program, or its name on PATH; its arguments are made strings, its
      exit status is the result.
    - ``nodes``: a host name, an IP address, "host:port", a pattern such as "10.0.*", a tuple
      (host, port, cpus, depends, setup_args), a dict with these names, `NodeAllocate`,
      `LocalNode`, or a list of such. Without it, all nodes with the same secret that are
      found in the network are used, or without a secret the node of this machine; if there is
      none, a private one that ends with this program; "*" alone means the same. Other machines
      need a secret, and with one no other pattern starts a private node.
    - ``depends``: a list of what the computation needs at nodes: functions, classes, instances
      (their class goes), modules, and paths of files or folders. A function named
      ``init_depends`` is called there first.
    - ``job_status``: called with a job each time one has ended, and with a copy of it for each
      of its provisional results.
    - ``cluster_status``: called with (status, node or None, job or None) for each change of a
      node or a job; ``status`` is one of the constants of `DispyJob` and `DispyNode`. Both are
      called in one thread of their own; what they raise is logged.
    - ``host``: where nodes may dial this program: an address or a list of them, "*" for all. By
      default `DISPY_HOST` of the environment, else all if there is a secret.
    - ``ext_host``: the same, as nodes see it, if that is something else.
    - ``dispy_port``: the first of the range of ports, by default `config.DispyPort`; a node's
      own is by one higher.
    - ``dest_path``: folder to use at nodes, below their own; it may be used again by later
      clusters. By default each gets a new one.
    - ``loglevel``: level of `dispy.logger` from now on; None leaves it as it is.
    - ``setup``: called once at each node before any job, with the ``setup_args`` of its
      `NodeAllocate`; what it makes global is there for all jobs. It must return 0, 1 or 2.
    - ``cleanup``: True: what was transferred is removed at the end. False: it is left. A
      function: called at each node at the end, before that.
    - ``pulse_interval``: seconds, 0.1 to 1000, default 5; a node that is silent for five of
      them is given up.
    - ``reentrant``: whether a job may be run again when its node is lost; otherwise it becomes
      `DispyJob.Abandoned`.
    - ``secret``: what all machines share: whoever has it may use them. By default that of the
      environment (`DISPY_SECRET`, `DISPY_SECRET_FILE`) or of "dispy secret new". Clusters of one
      program may have different ones.
    - ``keyfile``, ``certfile``: instead, paths of PEM files or ZeroMQ certificates; the private
      key in them is the secret, so it must be the same everywhere.
    - ``insecure``: use no secret, and allow other machines nevertheless: whoever is in the
      network can then run programs as this user.
    - ``recover_file``: path of a file that says how to get at the jobs should this program
      die; see `recover_jobs`. By default one named after the time, in the current folder.
    - ``max_tasks_per_child``: how many jobs one after the other share a process. 1: every job
      gets a fresh one. None: no limit, best for very short jobs.
    - ``cancel_grace``: seconds that a cancelled job has after its KeyboardInterrupt.
    - ``setup_timeout``: seconds that ``setup`` may take; None: no limit.
    - ``timeout``, ``retries``, ``priority``: for all jobs that say nothing else: see `submit`.
    - ``job_output``: called with (job, "stdout" or "stderr", text) as jobs print, in the
      thread of the other callbacks.
    - ``ping_interval``: seconds after which nodes are looked for again in the network, 0 or None:
      only at the beginning. ``ipv4_udp_multicast``: by multicast rather than broadcast.

    ``poll_interval`` isn't needed, since results come by themselves. Parameters may
    also be given by the names they had before (see `aliases`).

    Raises `TypeError` or `ValueError` for a wrong parameter, naming it; `PicklingError` for a
    computation that can't be sent; `OSError` for a file that can't be read or a host that isn't
    known; `SecretNeededError` for one of another machine when there is no secret.

    A cluster is a context manager; at its end it is closed, after all jobs have ended. A program
    that ends without closing it waits for its jobs, too, unless it fails or is interrupted.
    """

    def __init__(
        self,
        computation: Callable[..., Any] | str,
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
        setup_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        job_output: JobOutput | None = None,
        insecure: bool = False,
        **old: Any,
    ) -> None:
        arguments = locals()  # by their names, which are those of the fields of `Given`
        parameters.check_flag("ipv4_udp_multicast", ipv4_udp_multicast)
        self._ping_s = parameters.read_interval("ping_interval", ping_interval)
        self._multicast = ipv4_udp_multicast
        given = parameters.Given.of(arguments)
        self._begin(replace(given, **new_names(old)))

    def _begin(self, given: parameters.Given) -> None:
        """Check everything, pack the computation, and hand it to a session."""
        check_callback("job_status", given.job_status, 1)
        check_callback("cluster_status", given.cluster_status, 3)
        check_callback("job_output", given.job_output, 3)
        self._protection = parameters.read_protection(
            given.secret, given.keyfile, given.certfile, given.insecure
        )
        self._site = parameters.read_site(given, self._protection)
        parameters.check_port("dispy_port", given.dispy_port)
        parameters.check_needless("poll_interval", given.poll_interval)
        recoverfile.check_path(given.recover_file)
        options = parameters.read_options(
            given.reentrant,
            given.max_tasks_per_child,
            given.pulse_interval,
            given.cancel_grace,
            given.setup_timeout,
        )
        self._defaults = parameters.read_job_defaults(
            given.timeout, given.retries, given.priority, given.job_output is not None
        )
        self._plain = self._defaults.options() is None  # jobs have no options, as a rule
        entries = read_nodes(given.nodes)
        packed = computations.pack(
            given.computation,
            given.depends,
            given.setup,
            given.cleanup,
            max_file_size=config.MaxFileSize,
        )
        packed.spec.dest_path = parameters.read_dest_path(given.dest_path)
        if given.loglevel is not None:
            logger.setLevel(given.loglevel)
        self._created = time.time()
        self._number = next(process.numbers)
        self._name = packed.name
        self._blobs = packed.blobs
        self._vocabulary = packed.vocabulary
        self._dump = packed.vocabulary.dump
        self._ledger = Ledger(
            given.job_status,
            given.cluster_status,
            given.job_output,
            number=self._number,
            binary=packed.is_program,
            blobs=packed.blobs,
        )
        self._open(packed, entries, given.dispy_port, options, given.recover_file)

    def _open(
        self,
        packed: computations.Packed,
        entries: list[NodeAllocate | LocalNode],
        dispy_port: int | None,
        options: parameters.Options,
        recover_file: str | os.PathLike[str] | None,
    ) -> None:
        """Find the nodes, and give them and the computation to the session."""
        spec = packed.spec
        spec.max_tasks_per_child = options.max_tasks
        spec.cancel_grace = options.grace_s
        spec.pulse_interval = options.pulse_s
        spec.setup_timeout = options.setup_s
        # Until the session has begun: nothing has been sent so far.
        self._define: Callable[[list[Code]], None] = spec.layers.extend
        if dispy_port is None:
            parameters.check_port("config.NodePort", config.NodePort)
            parameters.check_port("config.ClientPort", config.ClientPort)
        self._node_port = config.NodePort if dispy_port is None else dispy_port + 1
        specs = self._find_nodes(entries, dispy_port)
        opening = self._opening(spec, specs, options.reentrant, asks(entries))
        path = None if recover_file is None else os.path.abspath(recover_file)
        self._offers = self._ledger.offers = Offers(
            self, self._number, entries, self._pack_entry, self._ledger.order
        )
        OWNERS[self._number] = self
        self._define = self._tell_code
        with self._connected() as session:
            self._session = session
            self._enqueue = session.orders.append
            self._ledger.hand_over = session.hand_over
            session.open(Open(opening, self._ledger, path))

    def _find_nodes(
        self, entries: list[NodeAllocate | LocalNode], dispy_port: int | None
    ) -> list[NodeSpec]:
        """Find out where nodes are, and start the broker, and a node if there is none."""
        door = config.ClientPort if dispy_port is None else dispy_port  # where nodes dial in
        specs = find_nodes(
            entries,
            self._node_port,
            lambda: process.start_broker(door, self._site).private,
            self._pack_entry,
            self._protection,
            partial(self._find_any, door),
        )
        self._broker = process.start_broker(door, self._site)
        is_sought = len(entries) == 1 and is_any(entries[0])
        if not is_sought and any(is_pattern(entry) for entry in entries):
            self._seek(entries)
        return specs

    def _find_any(self, door: int, entry: NodeAllocate) -> bool:
        """Look for nodes in the network, and wait a moment; return whether there are any."""
        self._broker = process.start_broker(door, self._site)
        with process.session_with(self._broker):  # it drives the broker
            self._seek([entry])
            return self._broker.await_nodes()

    def _opening(
        self, spec: ComputationSpec, specs: list[NodeSpec], reentrant: bool, asks: bool
    ) -> OpenCluster:
        """Say to the broker what the cluster is."""
        return OpenCluster(self._number, spec, specs, reentrant=reentrant, asks=asks)

    def _connected(self) -> AbstractContextManager[Session]:
        """Return the session with the broker."""
        return process.session_with(self._broker)

    @property
    def name(self) -> str:
        """The name of the computation."""
        return self._name

    def submit(
        self,
        /,
        *args: Any,
        dispy_job_depends: Sequence[object] = (),
        dispy_job_timeout: float | None = None,
        dispy_job_retries: int | None = None,
        dispy_job_priority: int | None = None,
        **kwargs: Any,
    ) -> DispyJob:
        """Have the computation called with these arguments; return the job at once.

        The arguments are pickled now: changing them later makes no difference.

        - ``dispy_job_depends``: what this job needs beside the cluster's ``depends``, removed
          when it has ended.
        - ``dispy_job_timeout``: seconds that it may run, 0 for no limit; then it is interrupted
          and becomes Terminated.
        - ``dispy_job_retries``: how often it is run again when it fails or its node is lost.
        - ``dispy_job_priority``: jobs of a higher one go first; 0 as a rule.

        Raises `PicklingError` naming what can't be pickled, `TypeError` or `ValueError` for a
        wrong parameter, `OSError` for a file that can't be read, `ClusterClosedError` after
        `close`.
        """
        wishes = (dispy_job_depends, dispy_job_timeout, dispy_job_retries, dispy_job_priority)
        return self._submit(None, None, args, kwargs, wishes)

    def submit_job_id(
        self,
        job_id: object,
        /,
        *args: Any,
        dispy_job_depends: Sequence[object] = (),
        dispy_job_timeout: float | None = None,
        dispy_job_retries: int | None = None,
        dispy_job_priority: int | None = None,
        **kwargs: Any,
    ) -> DispyJob:
        """Do what `submit` does; the job has this ``id`` from the beginning."""
        wishes = (dispy_job_depends, dispy_job_timeout, dispy_job_retries, dispy_job_priority)
        return self._submit(job_id, None, args, kwargs, wishes)

    def submit_node(
        self,
        node: DispyNode | str,
        /,
        *args: Any,
        dispy_job_depends: Sequence[object] = (),
        dispy_job_timeout: float | None = None,
        dispy_job_retries: int | None = None,
        dispy_job_priority: int | None = None,
        **kwargs: Any,
    ) -> DispyJob:
        """Do what `submit` does, for a job that only this node may run.

        ``node`` is a `DispyNode`, an address or a host name. Raises also `ValueError` if the
        cluster doesn't use that node.
        """
        wishes = (dispy_job_depends, dispy_job_timeout, dispy_job_retries, dispy_job_priority)
        return self._submit(None, node, args, kwargs, wishes)

    def submit_job_id_node(
        self,
        job_id: object,
        node: DispyNode | str,
        /,
        *args: Any,
        dispy_job_depends: Sequence[object] = (),
        dispy_job_timeout: float | None = None,
        dispy_job_retries: int | None = None,
        dispy_job_priority: int | None = None,
        **kwargs: Any,
    ) -> DispyJob:
        """Do what `submit_node` does; the job has this ``id`` from the beginning."""
        wishes = (dispy_job_depends, dispy_job_timeout, dispy_job_retries, dispy_job_priority)
        return self._submit(job_id, node, args, kwargs, wishes)

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

    def explain(self, job: DispyJob) -> str:
        """Say why a job hasn't ended so far, or how it has ended.

        Raises `ValueError` if it isn't one of this cluster.
        """
        if not isinstance(job, DispyJob) or job._cluster != self._number:
            raise ValueError(f"{job!r} is no job of cluster {self._name!r}")
        if job.status < DispyJob.Cancelled:
            why = self._ledger.requests.ask(
                lambda number: self._session.hand_over(AskWhy(self._number, number, job._seq)),
                config.MsgTimeout,
            )
            if job.status < DispyJob.Cancelled:
                return f"job {job.id}: {why.text}"
        return explain_end(job)

    def follow(self, job: DispyJob) -> Iterator[Output]:
        """Go through what a job prints while it runs; see `DispyJob.follow`."""
        return self._ledger.follow(job)

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
        returned; with ``terminate`` the jobs that are left are cancelled instead, after the
        ``timeout``: without one it waits for them. When the cluster is closed, True is returned,
        and no callback is called any more.
        """
        ledger = self._ledger
        if terminate and timeout is None and not ledger.wait_idle(HINT_S):
            logger.warning(
                "cluster %r: close(terminate=True) waits for its %d jobs, however long they take; "
                "with timeout=0 it cancels them",
                self._name,
                ledger.pending,
            )
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
        OWNERS.pop(self._number, None)
        self._blobs.close()
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
        return f"<{type(self).__name__} {self._name!r}, {self._ledger.pending} jobs pending>"

    def _submit(
        self,
        job_id: object,
        node: DispyNode | str | None,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        wishes: Wishes,
    ) -> DispyJob:
        if self._plain and wishes == NO_WISHES and node is None:
            options = None
            payload, parts = self._dump(args, kwargs, self._define)
        else:
            options, (payload, parts) = self._special(node, args, kwargs, wishes)
        for name in kwargs:
            if name.startswith("dispy_job_"):
                raise TypeError(f"submit has no parameter {name!r}, and computations can't either")
        ledger = self._ledger
        if not ledger.last_seq % GIVE_WAY_EVERY:  # before this job: its id may be set afterwards
            self._session.give_way()
        with ledger.lock:  # jobs reach the session in the order of their numbers
            if not ledger.accepting:
                raise self._refusal()
            seq = ledger.last_seq = ledger.last_seq + 1
            spec = JobSpec(seq, 0, payload, parts, options)
            job = DispyJob(self._number, spec, job_id, args, kwargs)
            ledger.created(job)
            # Ctrl-C can't come between these two, since nothing of Python is called there.
            ledger.pending += 1
            self._enqueue(job)
            self._session.wake()
        return job

    def _special(
        self,
        node: DispyNode | str | None,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        wishes: Wishes,
    ) -> tuple[JobOptions | None, Pickled]:
        """Read what a job asks for that few jobs do, and pickle its arguments."""
        wanted, timeout, retries, priority = wishes
        node_id = 0 if node is None else self._ready(node)._id
        if not isinstance(wanted, list | tuple) or wanted:
            found = depends.read_job_depends(wanted, self._blobs)
            options = self._defaults.options(timeout, retries, priority, node_id, found.files)
            return options, self._vocabulary.dump_with(args, kwargs, found.code, self._define)
        options = self._defaults.options(timeout, retries, priority, node_id)
        return options, self._dump(args, kwargs, self._define)

    def _refusal(self) -> ClusterClosedError:
        return ClusterClosedError(f"cluster {self._name!r} is closed: it takes no jobs")

    def _ready(self, node: DispyNode | str) -> DispyNode:
        """Find a node that takes jobs."""
        if not self._ledger.accepting:
            raise self._refusal()
        known = self._known(node)
        if known is None:
            raise ValueError(self._unknown(node))
        if known.status == DispyNode.Closed:
            raise ValueError(
                f"node {known.name} ({known.ip_addr}) takes no jobs of cluster {self._name!r}: "
                "it was closed or lost; allocate_node uses it again"
            )
        return known

    def _tell_code(self, layers: list[Code]) -> None:
        self._ledger.order(Define(self._number, layers))

    def _dump_setup_args(self, args: tuple[object, ...]) -> Pickled:
        return self._vocabulary.dump_values(args, {}, self._define)

    def _pack_entry(self, entry: NodeAllocate) -> tuple[list[FileSpec], JobSpec | None]:
        """Make what a node needs ready to travel."""
        files = depends.read_files(entry.depends, self._blobs, "depends of NodeAllocate")
        return files, pack_setup_args(entry, self._dump_setup_args)


Wishes: TypeAlias = "tuple[Sequence[object], float | None, int | None, int | None]"
NO_WISHES: Wishes = ((), None, None, None)
