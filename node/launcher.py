"""Starts and ends the processes of the node: the zygote, a template per computation, job processes.

The node's loop calls these methods and `take_events`; `receive` runs when the descriptor given
to `attach` is readable. Nothing here waits, but `close`. Pure bookkeeping of jobs is the
agent's business, everything about one job process is `JobProcess`'s.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from dispy.protocol.folders import FileNameError, parts_of
from dispy.protocol.messages import (
    Buffer,
    Code,
    FileSpec,
    JobRecord,
    JobResult,
    JobSpec,
    Prepare,
)

from . import channel, jobfolder
from .channel import Channel, ChannelClosed
from .jobprocess import JobProcess, Places, Said, describe_signal, entry_of, open_memory
from .leftovers import MARK
from .plan import LayerEntry, Plan

_READ = selectors.EVENT_READ
_READ_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE


class TemplateReady(NamedTuple):
    """The computation's function is loaded; job processes can be spawned."""

    computation: int


class TemplateFailed(NamedTuple):
    """The function can't be loaded, or the template has died; nothing is left of it."""

    computation: int
    reason: str


class TemplateGone(NamedTuple):
    """After `release`: no process and no file is left of the computation."""

    computation: int


class Outcomes(NamedTuple):
    """Jobs that have ended, in the order in which they were given to the worker."""

    worker: int
    results: list[JobResult]


class Recorded(NamedTuple):
    """What a running job has said, in order, also among the `Outcomes` of its worker."""

    worker: int
    records: list[JobRecord]


class LayerFailed(NamedTuple):
    """A later layer of code can't be loaded; jobs that need it will fail."""

    computation: int
    reason: str


class FilePlaced(NamedTuple):
    """After `put`: the file is there, unless ``error`` says why not."""

    computation: int
    request: int
    error: str


class ShutdownAsked(NamedTuple):
    """The cleanup function of a computation wants the node to stop."""


class WorkerExited(NamedTuple):
    """A job process has ended; comes after all its results.

    Of the jobs given to it ever, without those revoked, it had begun ``started``. When these
    are more than the results that came, then the first without a result ended with the
    process: ``reason`` says how, and it had written ``stdout`` and ``stderr``.
    """

    worker: int
    started: int
    reason: str
    stdout: bytes = b""
    stderr: bytes = b""


class ZygoteLost(NamedTuple):
    """The zygote has died, and with it all templates; the next `prepare` starts another."""


Event: TypeAlias = (
    TemplateReady
    | TemplateFailed
    | TemplateGone
    | Outcomes
    | Recorded
    | LayerFailed
    | FilePlaced
    | ShutdownAsked
    | WorkerExited
    | ZygoteLost
)


class Watcher(Protocol):
    """A poll loop."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever the descriptor is readable."""

    def unwatch(self, fd: int) -> None:
        """Stop that."""


class _Template:
    """What the node knows of a template."""

    def __init__(self, computation: int, connection: Channel, plan: Plan) -> None:
        self.computation = computation
        self.channel = connection
        self.plan = plan
        self.paths = {file.path for file in plan.files}  # of all files that were placed
        self.inherits = False  # some of them, from an earlier set-up
        self.puts: dict[int, None] = {}  # requests that were not answered
        self.reason = ""  # why it has failed
        self.ready = False
        self.keeps = False  # its files, after it was released
        self.released = False
        self.closed = False  # it has closed its end: it is ending
        self.orphaned = False  # its zygote is dead, and won't tell of its end
        self.workers: dict[int, JobProcess] = {}


class Launcher:
    """All processes of a node.

    ``folder`` is where computations get folders of their own, ``files`` where those are that
    they name themselves (``dest_path``), ``blobs`` the folder of the store. ``names`` are names
    that jobs find without an import, in programs as environment variables. With
    ``client_shutdown`` cleanup functions may ask for `ShutdownAsked`; ``max_file_size`` is the
    limit for files that jobs send, in bytes (0: none). ``force_cleanup``: remove also the files
    that a cluster wants to be left. Workers and computations are numbered by the caller, from 1.
    """

    def __init__(
        self,
        folder: Path,
        names: dict[str, str],
        blobs: Path,
        files: Path,
        client_shutdown: bool = False,
        max_file_size: int = 0,
        force_cleanup: bool = False,
    ) -> None:
        self._folder = folder
        self._names = names
        self._blobs = blobs
        self._files = files
        self._client_shutdown = client_shutdown
        self._max_file_size = max_file_size
        self._force_cleanup = force_cleanup
        self._kept: dict[int, _Template] = {}  # released, but not their files
        self._events: list[Event] = []
        self._zygote: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._templates: dict[int, _Template] = {}
        self._workers: dict[int, JobProcess] = {}
        # One descriptor stands for all in the node's loop, which costs it nothing per process.
        self._selector = selectors.DefaultSelector()
        self._watcher: Watcher | None = None

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the zygote. The first time before the process has opened any socket."""
        ours, theirs = channel.pair()
        command = [sys.executable, "-m", "dispy.node.zygote", str(self._folder)]
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            self._zygote = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env=_environment(self._folder),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the node, which ends the others
            )
            undo.pop_all()
        self._channel = Channel(ours, blocking=False)
        self._selector.register(self._channel, _READ, self._on_zygote)

    def attach(self, watcher: Watcher) -> None:
        """Have `receive` called by a poll loop."""
        self._watcher = watcher
        watcher.watch(self.fileno(), self.receive)

    def fileno(self) -> int:
        """Return the descriptor that is readable while `receive` has something to do."""
        selector: Any = self._selector  # those of Linux, macOS and the BSDs have one
        return int(selector.fileno())

    def close(self, timeout: float) -> None:
        """End all processes and remove all files; takes at most ``timeout`` seconds, and a bit.

        No events come after this.
        """
        if self._watcher is not None:
            self._watcher.unwatch(self.fileno())
        for template in self._templates.values():
            template.channel.close()
        if self._channel is not None:
            self._channel.send(("close", 0))  # else it would take us for killed
            self._channel.close()
        if self._zygote is not None:
            self._end_zygote(self._zygote, timeout)
        for process in self._workers.values():
            process.close()
        for template in self._templates.values():
            self._remove(template)
        for computation in list(self._kept):
            self.clear(computation)
        self._selector.close()
        self._templates.clear()
        self._workers.clear()
        self._events.clear()
        self._zygote = self._channel = None

    @staticmethod
    def _end_zygote(zygote: subprocess.Popen[bytes], timeout: float) -> None:
        """Wait for the zygote, which ends when its connection is closed."""
        try:
            zygote.wait(timeout)
        except subprocess.TimeoutExpired:
            zygote.kill()
            zygote.wait()

    # -- computations ----------------------------------------------------------------------

    def prepare(self, prepare: Prepare) -> None:
        """Load a computation; answered by `TemplateReady` or `TemplateFailed`.

        All of its files are in the store.
        """
        computation = prepare.computation
        assert computation not in self._templates
        try:
            plan = self._plan(prepare)
            if self._channel is None:
                self.start()
            ours, theirs = channel.pair()
        except (FileNameError, OSError) as error:
            what = "dest_path" if isinstance(error, FileNameError) else "the node can't start it"
            self._events.append(TemplateFailed(computation, f"{what}: {error}"))
            self.clear(computation)
            return
        template = _Template(computation, Channel(ours, blocking=False), plan)
        self._templates[computation] = template
        before = self._kept.pop(computation, None)
        if before is not None:
            template.paths |= before.paths
            template.inherits = True
        self._selector.register(template.channel, _READ, partial(self._on_template, template))
        try:
            file = _write_plan(channel.pack(plan.plain()), _pickled_of(prepare))
        except (OSError, ValueError) as error:
            template.reason = f"the computation can't be stored: {error}"
            theirs.close()
            template.orphaned = True  # never had a zygote
            return
        assert self._channel is not None
        message = ("prepare", computation, file.plan_bytes)
        self._send(self._channel, message, [theirs.detach(), file.descriptor])

    def _plan(self, prepare: Prepare) -> Plan:
        """Write down what the template is to do. Raises `FileNameError`."""
        spec = prepare.spec
        own = not spec.dest_path
        folder = self._folder / f"computation-{prepare.computation}"
        files = {file.path: entry_of(file) for file in (*spec.files, *prepare.files)}
        return Plan(
            name=spec.name,
            folder=str(folder if own else self._files.joinpath(*parts_of(spec.dest_path))),
            own=own,
            above=str(folder if own else self._files),
            jobs=str(self._folder / f"computation-{prepare.computation}-jobs"),
            blobs=str(self._blobs),
            names=self._names,
            layers=[_entry_of_layer(code) for code in spec.layers],
            setup_args=_sizes_of(prepare.setup_args) if prepare.setup_args is not None else [],
            files=list(files.values()),
            program=spec.program,
            removes=spec.cleanup or self._force_cleanup,
            client_shutdown=self._client_shutdown,
            max_file_size=self._max_file_size,
        )

    def define(self, computation: int, layers: Sequence[Code]) -> None:
        """Load later layers of code; processes that are spawned from now on know them.

        `LayerFailed` tells of one that can't be loaded.
        """
        template = self._templates.get(computation)
        if template is None or template.closed:
            return
        for layer in layers:
            try:
                plain = channel.pack(tuple(_entry_of_layer(layer)))
                file = _write_plan(plain, [layer.pickled])
            except (OSError, ValueError) as error:
                self._events.append(LayerFailed(computation, str(error)))
            else:
                self._send(template.channel, ("define", file.plan_bytes, 0), [file.descriptor])

    def put(self, computation: int, request: int, file: FileSpec) -> None:
        """Place a file in the folder of a computation; answered by `FilePlaced`."""
        template = self._templates.get(computation)
        error = ""
        if template is None or template.closed:
            error = "the computation is not running"
        elif len(file.path) > channel.TEXT_CHARS:
            error = f"the file name {file.path[:80]!r}... is too long"
        if error or template is None:
            self._events.append(FilePlaced(computation, request, error))
            return
        template.paths.add(file.path)
        template.puts[request] = None
        self._send(template.channel, ("put", request, entry_of(file).plain()))

    def release(self, computation: int, keep: bool = False) -> None:
        """End all that runs of a computation, and what it has set up; answered by `TemplateGone`.

        Its files are removed as it wants it; with ``keep`` they are left for the next time that
        it is prepared. Only `ShutdownAsked` may come before the answer, and no other events of
        the computation and its workers.
        """
        template = self._templates.get(computation)
        if template is None:
            self._events.append(TemplateGone(computation))
            return
        template.released = True
        template.keeps = keep
        for process in list(template.workers.values()):
            self._forget(process)
        if not template.orphaned:
            assert self._channel is not None
            # In this order: the template looks for the first when it gets a signal for the other.
            self._send(template.channel, ("release", int(keep), 0))
            self._send(self._channel, ("end", computation, template.ready))

    def clear(self, computation: int) -> None:
        """Remove the files that it was released with, to be kept."""
        template = self._kept.pop(computation, None)
        if template is not None:
            _remove_files(template.plan, template.paths)

    # -- workers ---------------------------------------------------------------------------

    def spawn(self, computation: int, worker: int, max_tasks: int) -> None:
        """Fork a job process for ``max_tasks`` jobs (0: any number).

        It can be given jobs at once. When it can't be had, `WorkerExited` tells why.
        """
        template = self._templates.get(computation)
        if template is None or template.closed:
            self._events.append(WorkerExited(worker, 0, "its computation is not running"))
            return
        try:
            plan = template.plan
            places = Places(plan.jobs, plan.folder, plan.blobs)
            process = JobProcess(worker, computation, max_tasks, places)
        except OSError as error:
            self._events.append(WorkerExited(worker, 0, _unborn(str(error))))
            return
        self._workers[worker] = template.workers[worker] = process
        self._selector.register(process.socket, _READ, partial(self._on_worker, process))
        self._send(template.channel, ("spawn", worker, max_tasks), process.take_passed())

    def give(self, worker: int, jobs: Sequence[JobSpec]) -> None:
        """Hand jobs over, to be run one after the other, behind those given before.

        A worker for one job gets no second one. Jobs for a worker that is dead vanish: its
        `WorkerExited` doesn't count them.
        """
        process = self._workers.get(worker)
        if process is not None:
            if any(job.options is not None and job.options.files for job in jobs):
                template = self._templates[process.computation]
                self._send(template.channel, ("folders", worker, 0))
            process.give(jobs)
            self._ask_for_room(process)

    def acknowledge(self, worker: int, seq: int, attempt: int, number: int, error: str) -> None:
        """The client has dealt with the records of an attempt up to this one.

        ``error``: why it refuses the last. Nothing happens when the worker runs something else.
        """
        process = self._workers.get(worker)
        if process is not None:
            process.acknowledge(seq, attempt, number, error)
            self._ask_for_room(process)

    def follow(self, worker: int, seq: int, attempt: int) -> None:
        """Tell the output of an attempt from now on, as `Recorded`, while it runs."""
        process = self._workers.get(worker)
        if process is not None:
            process.follow(seq, attempt)

    def retire(self, worker: int) -> None:
        """End a process that has no jobs; answered by `WorkerExited` without a reason."""
        process = self._workers.get(worker)
        if process is not None:
            process.retired = True
            self._signal(process, signal.SIGKILL)

    def revoke(self, worker: int) -> int:
        """Take back the jobs that have not begun; return how many, the last ones given.

        What a worker for one job has been given is never taken back.
        """
        process = self._workers.get(worker)
        if process is None:
            return 0
        count = process.revoke()
        self._watch(process)
        return count

    def interrupt(self, worker: int) -> None:
        """Raise KeyboardInterrupt in the first job of the worker that has no result yet.

        Also SIGINT to all other processes of its group. Call `revoke` before, so that no later
        job has begun that these could belong to.
        """
        process = self._workers.get(worker)
        if process is not None:
            process.mark_interrupt()
            self._signal(process, signal.SIGINT)

    def terminate(self, worker: int) -> None:
        """SIGTERM to the worker's process group."""
        process = self._workers.get(worker)
        if process is not None:
            self._signal(process, signal.SIGTERM)

    def kill(self, worker: int) -> None:
        """SIGKILL to the worker's process group; what has left the group is killed after it."""
        process = self._workers.get(worker)
        if process is not None:
            self._signal(process, signal.SIGKILL)

    def _signal(self, process: JobProcess, signum: int) -> None:
        """Have the template send it: only a parent knows that a process id is still the child's."""
        process.signals.add(signum)
        self._send_signal(process, signum, "signal")

    def _send_signal(self, process: JobProcess, signum: int, kind: str) -> None:
        template = self._templates[process.computation]
        self._send(template.channel, (kind, process.worker, int(signum)))

    # -- what happens ----------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """Return what has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def receive(self) -> None:
        """Take what the processes have sent; send what they take."""
        for key, mask in self._selector.select(0):
            key.data(mask)

    def tick(self) -> None:
        """Look after running jobs; to be called every 0.1 s or so while there are workers.

        Cuts output before it fills the memory, fetches results that wait for company, and
        repeats interrupts.
        """
        for process in self._workers.values():
            process.cut_output()
            if said := process.peek():
                self._report(process.worker, said)
            if process.is_followed:
                self._follow(process)
            if process.repeats_interrupt():
                self._send_signal(process, signal.SIGINT, "repeat")

    def _follow(self, process: JobProcess) -> None:
        if process.needs_nudge():
            self._send_signal(process, signal.SIGURG, "repeat")
        said = process.read_more_output()
        self._report(process.worker, said)
        self._watch(process)

    def _report(self, worker: int, said: list[Said]) -> None:
        """Tell what a job process has sent: results and records, in order."""
        results: list[JobResult] = []
        records: list[JobRecord] = []
        for each in said:
            if isinstance(each, JobResult):
                if not results:
                    self._events.append(Outcomes(worker, results))
                results.append(each)
                records = []
            else:
                if not records:
                    self._events.append(Recorded(worker, records))
                records.append(each)
                results = []

    def _watch(self, process: JobProcess) -> None:
        """Look what has become of a process while it was read."""
        if process.fault:
            self._give_up(process)
        elif process.silent:
            self._unwatch(process)

    def _unwatch(self, process: JobProcess) -> None:
        """Don't look at its socket any more, whether that is so already or not."""
        with suppress(KeyError):  # by number: an error that names the socket asks what that is
            self._selector.unregister(process.socket.fileno())

    def _on_worker(self, process: JobProcess, mask: int) -> None:
        if self._workers.get(process.worker) is not process or process.silent:
            return
        if mask & selectors.EVENT_WRITE:
            process.flush()
            self._ask_for_room(process)
        if mask & selectors.EVENT_READ:
            if said := process.receive():
                self._report(process.worker, said)
            self._watch(process)

    def _ask_for_room(self, process: JobProcess) -> None:
        if not process.silent:
            self._watch_write(process.socket, process.unsent)

    def _give_up(self, process: JobProcess) -> None:
        """End a process whose bytes make no sense."""
        process.silent = True
        self._unwatch(process)
        self._signal(process, signal.SIGKILL)

    def _on_template(self, template: _Template, mask: int) -> None:
        if self._templates.get(template.computation) is not template or template.closed:
            return
        if mask & selectors.EVENT_WRITE:
            template.channel.flush()
            self._watch_write(template.channel, template.channel.unsent)
        if mask & selectors.EVENT_READ:
            self._drain(template)
        if template.closed and template.orphaned:
            self._finish(template, "")

    def _drain(self, template: _Template) -> None:
        """Take all that the template has said."""
        try:
            while (received := template.channel.receive()) is not None:
                self._on_template_message(template, received[0])
        except ChannelClosed:
            template.closed = True
            self._selector.unregister(template.channel)

    def _on_template_message(self, template: _Template, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "exited":
            for worker, code, peak_kib in rest[0]:
                self._on_exit(template.workers.get(worker), code, peak_kib)
        elif kind == "unborn":
            worker, reason = rest
            if worker in template.workers:
                self._forget(template.workers[worker])
                self._events.append(WorkerExited(worker, 0, _unborn(reason)))
        elif kind == "failed":
            template.reason = rest[0]
        elif kind == "placed":
            request, error = rest
            template.puts.pop(request, None)
            self._events.append(FilePlaced(template.computation, request, error))
        elif kind == "layer":
            self._events.append(LayerFailed(template.computation, rest[0]))
        elif kind == "shutdown":
            self._events.append(ShutdownAsked())
        elif not template.released:
            template.ready = True
            self._events.append(TemplateReady(template.computation))

    def _on_exit(self, process: JobProcess | None, code: int, peak_kib: int) -> None:
        if process is None:
            return
        self._report_results(process)
        started = process.count_started()
        reason, output = "", (b"", b"")
        if process.unfinished:
            reason, output = process.explain(code, peak_kib), process.output()
        elif code or process.fault:
            reason = process.explain(code, peak_kib)
        self._forget(process)
        self._events.append(WorkerExited(process.worker, started, reason, *output))

    def _report_results(self, process: JobProcess) -> None:
        if said := process.last_results():
            self._report(process.worker, said)

    def _forget(self, process: JobProcess) -> None:
        """Close our end of a process that is dead or doomed."""
        del self._workers[process.worker]
        del self._templates[process.computation].workers[process.worker]
        self._unwatch(process)
        process.close()

    def _on_zygote(self, mask: int) -> None:
        if self._channel is None:
            return
        if mask & selectors.EVENT_WRITE:
            self._channel.flush()
            self._watch_write(self._channel, self._channel.unsent)
        try:
            while (received := self._channel.receive()) is not None:
                (kind, computation, detail), _ = received
                reason = detail if kind == "unborn" else _describe_end(detail)
                self._on_gone(self._templates[computation], reason)
        except ChannelClosed:
            self._on_zygote_lost()

    def _on_gone(self, template: _Template, reason: str) -> None:
        if not template.closed:
            self._drain(template)
        self._finish(template, reason)

    def _finish(self, template: _Template, reason: str) -> None:
        """Nothing lives of a template any more: report what it leaves, and remove that."""
        clean = template.released and reason == _describe_end(0)
        when = "" if template.ready else ", while it loaded the code or ran setup"
        killed = f"the process that starts the jobs of the computation {reason}{when}"
        reason = template.reason or killed
        for process in list(template.workers.values()):
            process.fault = process.fault or reason
            self._on_exit(process, 0, 0)
        if not template.closed:
            self._selector.unregister(template.channel)
        template.channel.close()
        if not clean or template.inherits:
            self._remove(template)
        if template.keeps:
            self._kept[template.computation] = template
        for request in template.puts:
            self._events.append(FilePlaced(template.computation, request, "it has been closed"))
        del self._templates[template.computation]
        if template.released:
            self._events.append(TemplateGone(template.computation))
        else:
            self._events.append(TemplateFailed(template.computation, reason))

    def _on_zygote_lost(self) -> None:
        """The templates get a signal when their parent dies, and end by themselves."""
        assert self._channel is not None and self._zygote is not None
        self._selector.unregister(self._channel)
        self._channel.close()
        self._zygote.kill()
        self._zygote.wait()
        self._channel = self._zygote = None
        self._events.append(ZygoteLost())
        for template in list(self._templates.values()):
            template.orphaned = True
            template.reason = template.reason or "the process that forks all others has died"
            if template.closed:
                self._finish(template, "")

    def _remove(self, template: _Template) -> None:
        """Remove what a template has left, in its place."""
        shutil.rmtree(template.plan.jobs, ignore_errors=True)
        if not template.keeps:
            _remove_files(template.plan, template.paths)

    # -- sending ---------------------------------------------------------------------------

    def _send(
        self, connection: Channel, message: tuple[Any, ...], descriptors: Sequence[int] = ()
    ) -> None:
        """Send a message to the zygote or a template, or keep it until that is possible."""
        if connection.fileno() < 0:
            return
        connection.send(message, descriptors)
        self._watch_write(connection, connection.unsent)

    def _watch_write(self, connection: Channel | socket.socket, wanted: bool) -> None:
        with suppress(KeyError):  # it has closed its end
            key = self._selector.get_key(connection)
            events = _READ_WRITE if wanted else _READ
            if key.events != events:
                self._selector.modify(connection, events, key.data)


def _environment(folder: Path) -> dict[str, str]:
    """Return the zygote's: without secrets, which are none of the jobs' business.

    All processes below inherit the mark by which `leftovers` finds them.
    """
    kept = {name: text for name, text in os.environ.items() if not name.endswith("_SECRET")}
    # Each job process would look up anew the C functions that only a new process calls.
    return {**kept, MARK: str(folder), "LD_BIND_NOW": "1"}


def _unborn(reason: str) -> str:
    return f"a job process could not be started: {reason}"


def _describe_end(code: int) -> str:
    if code < 0:
        return f"was killed by {describe_signal(-code)}"
    return f"ended with exit code {code}"


def _remove_files(plan: Plan, paths: Iterable[str]) -> None:
    """Remove the files of a computation; its own folder in any case, at the latest now."""
    if plan.own:
        shutil.rmtree(plan.folder, ignore_errors=True)
    elif plan.removes:
        jobfolder.remove_files(plan.above, plan.folder, paths)


def _entry_of_layer(code: Code) -> LayerEntry:
    return LayerEntry(code.python, code.source, code.by_name, _sizes_of(code.pickled))


def _pickled_of(prepare: Prepare) -> list[JobSpec]:
    """Return the pickled objects of a computation, in the order in which its plan counts them."""
    layers = [code.pickled for code in prepare.spec.layers]
    return layers if prepare.setup_args is None else [*layers, prepare.setup_args]


def _buffers_of(pickled: JobSpec) -> list[list[Buffer]]:
    whole: list[list[Buffer]] = [part.chunks for part in pickled.parts]
    if pickled.payload or not whole:
        whole.insert(0, [pickled.payload])
    return whole


def _sizes_of(pickled: JobSpec) -> list[int]:
    """Return the sizes of a pickled object and of its buffers."""
    return [sum(map(len, chunks)) for chunks in _buffers_of(pickled)]


class _Written(NamedTuple):
    """A plan and pickled objects, in memory."""

    descriptor: int
    plan_bytes: int


def _write_plan(plan: bytes, pickled: Sequence[JobSpec]) -> _Written:
    """Write a plan and the pickled objects that belong to it into memory."""
    fd = open_memory("plan", 0)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(plan)
            for each in pickled:
                for chunks in _buffers_of(each):
                    file.writelines(chunks)
    except OSError:
        os.close(fd)
        raise
    os.lseek(fd, 0, os.SEEK_SET)
    return _Written(fd, len(plan))
