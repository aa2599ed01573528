"""The template: one process per computation, with its function loaded, that forks job processes.

It is forked from the zygote, runs the user's code once, to load it and to set it up, and from
then on nothing but its own loop: fork on demand, reap, and end whatever a dead job process has
left. At the end it runs the user's cleanup. It has no threads of its own. Whatever ends it ends
all its job processes.

SIGTERM ends it at once while it loads. Once it serves, the first one only says that it is time
to end, and how, is told by the node's message; the second ends a cleanup that takes too long.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # for what each fork does: see `runner`
import gc
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from dispy.protocol.payload import unpack_object

from . import channel, environment, jobnames, runner
from .channel import TEXT_CHARS, Channel, ChannelClosed
from .environment import LoadError
from .forkhooks import deferred_hooks, register_deferred_hooks
from .lane import Lane
from .plan import FileEntry, LayerEntry, Plan
from .processes import (
    Children,
    adopt_orphans,
    begin_below,
    die_with_parent,
    end_descendants,
    next_ended,
    signal_all,
    signal_group,
)
from .values import failure

LOADING, SERVING, CLEANING, ENDING = range(4)  # stages
END_RETRY_S = 0.001
END_S = 5.0  # how long the end of all job processes may take
_HELD_BACK = (_signal.SIGCHLD, _signal.SIGINT, _signal.SIGTERM)  # while forking


def listen_for_signals() -> int:
    """Make a descriptor that becomes readable when a child ends."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _ignore)
    return read


def drain(wakeup: int) -> None:
    """Forget the signals so far; call it before looking at the children."""
    with suppress(BlockingIOError):
        os.read(wakeup, 4096)  # what this leaves wakes the loop again


def _ignore(signum: int, frame: object) -> None:
    """Let a signal do nothing but wake the loop."""


class Template:
    """Forks the job processes of one computation."""

    def __init__(self, connection: Channel, plan: Plan, code: BinaryIO) -> None:
        self._channel = connection
        self._plan = plan
        self._code = code
        self._pid = os.getpid()
        self._workers: dict[int, int] = {}  # worker to process id
        self._pids: dict[int, int] = {}  # and back
        self._function: Any = None
        self._cleanup: Any = None
        self._setup_args: tuple[Any, ...] = ()
        self._own: set[int] = set()  # children that loading the computation has left running
        self._foldered: set[int] = set()  # workers that live and were given jobs with files
        self._placed = {file.path for file in plan.files}
        self._keep = False  # the files, at the end
        self._stage = LOADING
        self._terminated = 0  # how often SIGTERM has come
        self._children = Children()
        self._log = os.dup(2)
        self._wakeup = listen_for_signals()
        self._write_end = signal.set_wakeup_fd(-1)
        mine = (self._wakeup, connection.fileno(), self._children.fileno())
        self._descriptors = [fd for fd in mine if fd >= 0]
        self._listen()

    def _listen(self) -> None:
        """Get signals, also after user code has set handlers of its own."""
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGURG, runner.follow)

    # -- loading -------------------------------------------------------------------------

    def load(self) -> bool:
        """Do as the plan says, tell the node how that went, and return whether it did."""
        try:
            with deferred_hooks():
                self._load()
        except LoadError as error:
            self._channel.send(("failed", str(error)[:TEXT_CHARS]))
            return False
        self._settle()
        self._stage = SERVING
        self._channel.send(("ready",))
        return True

    def _load(self) -> None:
        """Make the folder, load the code, set it up. Raises `LoadError`."""
        plan = self._plan
        environment.open_main()
        names = jobnames.offered(plan.max_file_size, self._log)
        environment.offer({**names, **plan.names, "dispy_job_path": plan.folder})
        try:
            self._place()
        except (OSError, ValueError) as error:
            raise LoadError(f"the files of the computation: {error}") from None
        sys.path.insert(0, plan.folder)
        init = setup = None
        for number, layer in enumerate(plan.layers):
            names, function, *others = self._define(layer)
            if not number:
                init = _init_of(names)
                self._function, (setup, self._cleanup) = function, others
        if plan.program:
            from .program import Program  # most computations are functions

            self._function = Program(plan.program, plan.names)
        self._set_up(init, setup)

    def _place(self) -> None:
        if self._plan.own and not self._plan.files:
            os.makedirs(self._plan.folder, mode=0o700, exist_ok=True)
            os.chdir(self._plan.folder)
            return
        from . import jobfolder  # only what has files pays for it

        jobfolder.enter_folder(self._plan.above, self._plan.folder)
        jobfolder.place_all(self._plan.blobs, self._plan.folder, self._plan.files)

    def _define(self, layer: LayerEntry) -> tuple[Any, ...]:
        """Load a layer of code; return what is in it."""
        try:
            loaded = self._unpickle_layer(layer)
            environment.define(loaded[0])
        except LoadError:
            raise
        except BaseException as error:
            reason = f"the code of the computation could not be loaded{environment.hint()}"
            raise LoadError(failure(reason, error)[2]) from None
        return tuple(loaded)

    def _unpickle_layer(self, layer: LayerEntry) -> Any:
        if layer.python == environment.PYTHON:
            return _unpickle(self._code, layer.sizes)
        environment.note_version(layer.python)
        if not layer.source:
            raise LoadError(
                f"the client runs Python {layer.python}, this node {environment.PYTHON}, and "
                f"{self._plan.name!r} can't travel as source: install the same version on both"
            )
        self._code.seek(sum(layer.sizes), os.SEEK_CUR)
        environment.execute(layer.source)
        return pickle.loads(unpack_object(layer.by_name)[1])

    def _set_up(self, init: Any, setup: Any) -> None:
        """Run the user's code that comes before all jobs."""
        plan = self._plan
        step = "the arguments of setup could not be unpickled"
        try:
            if plan.setup_args:
                self._setup_args = tuple(_unpickle(self._code, plan.setup_args)[0])
            step = "init_depends failed"
            if init is not None:
                init()
            step = "setup failed"
            result = setup(*self._setup_args) if setup is not None else 0
        except BaseException as error:
            raise LoadError(failure(step, error)[2]) from None
        if not isinstance(result, int) or result not in (0, 1, 2):
            raise LoadError(f"setup returned {_brief(result)}: it must return 0, 1 or 2")

    def _settle(self) -> None:
        """Make what every fork copies final, and the copying cheap."""
        self._listen()
        os.chdir(self._plan.folder)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._own = self._children.pids()
        _prepare_forks()

    def run(self) -> None:
        """Serve the node until it's gone."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._wakeup in ready:
                self._on_wakeup()
            if self._channel.fileno() in ready:
                try:
                    self._on_message()
                except ChannelClosed:
                    return
            if self._stage == CLEANING:
                self._clean_up()
                return
            if self._terminated and not select.select([self._channel], [], [], 0)[0]:
                return  # without a word from the node

    def _clean_up(self) -> None:
        """Run the user's cleanup function, after all job processes."""
        for pid in self._pids:
            signal_group(pid, signal.SIGKILL)
        gc.enable()
        self._end_workers()
        if not callable(self._cleanup):
            return
        environment.offer({"dispynode_shutdown": self._ask_for_shutdown})
        try:
            self._cleanup(*_fitting(self._cleanup, self._setup_args))
        except BaseException as error:
            print(failure("cleanup failed", error)[2], file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()

    def _end_workers(self) -> None:
        """Wait until no job process is left, nor what they have left, but keep other children."""
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            while self._bury_next():
                pass
            left = self._leftovers()
            if not self._pids and not left:
                return
            signal_all(left, signal.SIGKILL)
            time.sleep(END_RETRY_S)

    def _ask_for_shutdown(self) -> None:
        """Stop the node once the cleanup has ended. Raises `RuntimeError` if it may not."""
        if not self._plan.client_shutdown:
            raise RuntimeError("dispynode_shutdown: the node must run with --client-shutdown")
        self._channel.send(("shutdown",))

    def end(self) -> None:
        """Kill all job processes and what they left; remove the computation's files."""
        self._stage = ENDING
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has been heard
        import shutil

        end_descendants(self._children, list(self._pids), END_S)

        os.chdir("/")
        plan = self._plan
        shutil.rmtree(plan.jobs, ignore_errors=True)
        if self._keep or not plan.removes:
            return
        if plan.own:
            shutil.rmtree(plan.folder, ignore_errors=True)
        else:
            from . import jobfolder

            jobfolder.remove_files(plan.above, plan.folder, self._placed)

    def _on_terminate(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:
            os._exit(0)
        self._terminated += 1
        if self._stage == LOADING or (self._stage == CLEANING and self._terminated > 1):
            self.end()
            os._exit(0)

    # -- messages ------------------------------------------------------------------------

    def _on_message(self) -> None:
        received = self._channel.receive()
        if received is None:
            return
        (kind, worker, number), descriptors = received
        if kind == "spawn":
            self._spawn(worker, number, descriptors)
        elif kind == "define":
            self._define_more(worker, descriptors)
        elif kind == "put":
            self._put(worker, FileEntry(*number))
        elif kind == "release":
            self._keep = bool(worker)
            self._stage = CLEANING
        elif kind == "folders":
            if worker in self._workers:
                self._foldered.add(worker)
            else:
                self._remove_folders(worker)
        elif worker not in self._workers:
            return
        elif kind == "signal":
            signal_group(self._workers[worker], number)
        else:  # "repeat": only to the process itself
            signal_all([self._workers[worker]], number)

    def _define_more(self, plan_bytes: int, descriptors: list[int]) -> None:
        """Load a later layer of code."""
        if not descriptors:
            self._channel.send(("layer", "too many open files"))
            return
        with open(descriptors[0], "rb") as self._code:
            try:
                with deferred_hooks():
                    self._define(LayerEntry(*channel.unpack(self._code.read(plan_bytes))))
            except LoadError as error:
                self._channel.send(("layer", str(error)[:TEXT_CHARS]))
        _prepare_forks()

    def _put(self, request: int, file: FileEntry) -> None:
        """Place a file that came later."""
        from . import jobfolder

        error = ""
        try:
            jobfolder.place_all(self._plan.blobs, self._plan.folder, [file])
            self._placed.add(file.path)
        except OSError as problem:
            error = str(problem)
        self._channel.send(("placed", request, error[:TEXT_CHARS]))

    def _remove_folders(self, worker: int) -> None:
        """Remove the folders of the jobs of a process that has died."""
        import shutil

        with suppress(OSError):
            for name in os.listdir(self._plan.jobs):
                if name.startswith(f"{worker}-"):
                    shutil.rmtree(os.path.join(self._plan.jobs, name), ignore_errors=True)

    def _spawn(self, worker: int, max_tasks: int, descriptors: list[int]) -> None:
        """Fork a job process; its ends are passed as connection, output, error, tokens, outbox."""
        pid = -1
        reason = "too many open files"
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _HELD_BACK)
        try:
            if descriptors:
                pid = os.fork()
        except OSError as error:
            reason = error.strerror or str(error)
        if pid == 0:
            self._be_worker(max_tasks, descriptors)
        if pid > 0:
            self._workers[worker] = pid
            self._pids[pid] = worker
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _HELD_BACK)
        for fd in descriptors:
            os.close(fd)
        if pid < 0:
            self._channel.send(("unborn", worker, reason))

    def _be_worker(self, max_tasks: int, descriptors: list[int]) -> NoReturn:
        """Turn a forked copy of the template into a job process."""
        try:
            begin_below(self._pid)
            self._shed()
            if max_tasks == 1:
                Lane(self._function, descriptors).run()
            register_deferred_hooks()
            gc.enable()
            runner.run(self._function, descriptors, max_tasks)
        except BaseException as problem:
            print(f"dispy: a job process could not start: {problem!r}", file=sys.stderr, flush=True)
        os._exit(1)

    def _shed(self) -> None:
        """Drop, in a job process, what belongs to the template: descriptors and signals.

        What the user's own code has opened while it was loaded stays.
        """
        os.close(_signal.set_wakeup_fd(-1))
        # By number, since their owners are never used again, and would touch more pages.
        for fd in self._descriptors:
            os.close(fd)
        for signum in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGHUP):
            _signal.signal(signum, _signal.SIG_DFL)
        # SIGINT stays blocked until the runner has its own handler: it may be for its job.
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGCHLD, _signal.SIGTERM))

    # -- children ------------------------------------------------------------------------

    def _on_wakeup(self) -> None:
        drain(self._wakeup)
        ended: list[tuple[int, int, int]] = []
        while found := self._bury_next():
            ended.append(found)
        signal_all(self._leftovers(), signal.SIGKILL)
        ended = [exit for exit in ended if exit[0]]
        if ended:
            self._channel.send(("exited", ended))

    def _leftovers(self) -> set[int]:
        """Return the process ids of what dead job processes have left.

        What the setup has started has our group, or was there before all jobs.
        """
        others = self._children.pids() - self._pids.keys() - self._own
        return {pid for pid in others if _group_of(pid) != os.getpgrp()} if others else others

    def _bury_next(self) -> tuple[int, int, int] | None:
        """Reap a child that has ended; return its worker (0: none), status and peak KiB."""
        with suppress(ChildProcessError):
            pid = next_ended()
            if not pid:
                return None
            if pid in self._pids:
                signal_group(pid, signal.SIGKILL)
            pid, status, usage = os.wait4(pid, os.WNOHANG)
            worker = self._pids.pop(pid, 0)
            self._workers.pop(worker, None)
            if worker in self._foldered:
                self._foldered.remove(worker)
                self._remove_folders(worker)
            self._own.discard(pid)
            if pid:
                return worker, os.waitstatus_to_exitcode(status), usage.ru_maxrss
        return None


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _prepare_forks() -> None:
    """Have the code that was loaded go well with forks: with its threads, and with memory."""
    if len(sys._current_frames()) > 1:
        register_deferred_hooks()
    _freeze()


def _init_of(names: environment.Names) -> Any:
    """Return the function that is to be called before setup, wherever in the program it is."""
    for things in (*names.values(), vars(environment.main)):
        if "init_depends" in things:
            return things["init_depends"]
    return None


def _freeze() -> None:
    """Keep collections from what is there: in a child they would touch, and so copy, each page."""
    gc.collect()
    gc.disable()
    gc.freeze()


def _fitting(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return these arguments, or none when the function takes none."""
    import inspect

    try:
        signature = inspect.signature(function)
        signature.bind(*args)
    except TypeError:
        with suppress(TypeError):
            signature.bind()
            return ()
    except ValueError:  # a function of C that doesn't tell
        pass
    return args


def _brief(value: object) -> str:
    try:
        return repr(value)[:200]
    except Exception:
        return f"a {type(value).__name__}"


def _unpickle(file: BinaryIO, sizes: Sequence[int]) -> Any:
    """Read a pickled object and its buffers, one after the other, from a file."""
    readonly, stream = unpack_object(file.read(sizes[0]))
    parts: list[bytes | bytearray] = []
    for constant, size in zip(readonly, sizes[1:], strict=True):
        data = file.read(size)
        parts.append(data if constant else bytearray(data))
    return pickle.loads(stream, buffers=parts)


def run(connection: socket.socket, zygote: int, code: int, plan_bytes: int) -> NoReturn:
    """Be a template, in a fresh fork of the zygote (its process id).

    ``code`` is the file with the plan, which has so many bytes, and the pickled objects.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(code, "rb") as file:
        plan = Plan.typed(channel.unpack(file.read(plan_bytes)))
        template = Template(Channel(connection, blocking=True), plan, file)
        die_with_parent(zygote, signal.SIGTERM)
        adopt_orphans()
        loaded = template.load()
    if loaded:
        template.run()
    template.end()
    os._exit(0)
