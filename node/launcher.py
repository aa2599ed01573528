"""Starts and ends the processes of the node: the zygote, a template per computation, job processes.

The node's loop calls these methods and `take_events`; `receive` runs when the descriptor given
to `attach` is readable. Nothing here waits, but `close`. Pure bookkeeping of jobs is the
agent's business, everything about job processes that of `Workers`.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dispy.protocol.folders import FileNameError
from dispy.protocol.messages import Code, FileSpec, Prepare

from . import channel
from .channel import Channel, ChannelClosed
from .jobprocess import describe_signal
from .planning import Planner, entry_of, write_layer, write_plan
from .processevents import (
    Event,
    FilePlaced,
    LayerFailed,
    ShutdownAsked,
    TemplateFailed,
    TemplateGone,
    TemplateReady,
    ZygoteLost,
)
from .readiness import READ, send, watch_write
from .templateprocess import TemplateProcess
from .workers import Workers
from .zygoteprocess import ZygoteProcess


class Watcher(Protocol):
    """A poll loop."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever the descriptor is readable."""

    def unwatch(self, fd: int) -> None:
        """Stop that."""


class Launcher:
    """All processes of a node; its ``workers`` are the job processes.

    ``folder`` is where computations get folders of their own, ``files`` where those are that
    they name themselves (``dest_path``), ``blobs`` the folder of the store. ``names`` are names
    that jobs find without an import, in programs as environment variables. With
    ``client_shutdown`` cleanup functions may ask for `ShutdownAsked`; ``max_file_size`` is the
    limit for files that jobs send, in bytes (0: none). ``force_cleanup``: remove also the files
    that a cluster wants to be left. Computations are numbered by the caller, from 1.
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
        self._planner = Planner(
            folder, names, blobs, files, client_shutdown, max_file_size, force_cleanup
        )
        self._kept: dict[int, TemplateProcess] = {}  # released, but not their files
        self._events: list[Event] = []
        self._zygote: ZygoteProcess | None = None
        self._templates: dict[int, TemplateProcess] = {}
        # One descriptor stands for all in the node's loop, which costs it nothing per process.
        self._selector = selectors.DefaultSelector()
        self._watcher: Watcher | None = None
        self.workers = Workers(self._templates, self._selector, self._events)

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the zygote. The first time before the process has opened any socket."""
        self._zygote = ZygoteProcess(self._folder)
        self._selector.register(self._zygote.channel, READ, self._on_zygote)

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
        if self._zygote is not None:
            self._zygote.end(timeout)
        self.workers.close()
        for template in self._templates.values():
            template.remove()
        for computation in list(self._kept):
            self.clear(computation)
        self._selector.close()
        self._templates.clear()
        self._events.clear()
        self._zygote = None

    # -- computations ----------------------------------------------------------------------

    def prepare(self, prepare: Prepare) -> None:
        """Load a computation; answered by `TemplateReady` or `TemplateFailed`.

        All of its files are in the store.
        """
        computation = prepare.computation
        assert computation not in self._templates
        try:
            plan = self._planner.plan(prepare)
            if self._zygote is None:
                self.start()
            ours, theirs = channel.pair()
        except (FileNameError, OSError) as error:
            what = "dest_path" if isinstance(error, FileNameError) else "the node can't start it"
            self._events.append(TemplateFailed(computation, f"{what}: {error}"))
            self.clear(computation)
            return
        template = TemplateProcess(computation, Channel(ours, blocking=False), plan)
        self._templates[computation] = template
        before = self._kept.pop(computation, None)
        if before is not None:
            template.inherit(before)
        self._selector.register(template.channel, READ, partial(self._on_template, template))
        try:
            file = write_plan(plan, prepare)
        except (OSError, ValueError) as error:
            template.reason = f"the computation can't be stored: {error}"
            theirs.close()
            template.orphaned = True  # never had a zygote
            return
        assert self._zygote is not None
        message = ("prepare", computation, file.plan_bytes)
        send(self._selector, self._zygote.channel, message, [theirs.detach(), file.descriptor])

    def define(self, computation: int, layers: Sequence[Code]) -> None:
        """Load later layers of code; processes that are spawned from now on know them.

        `LayerFailed` tells of one that can't be loaded.
        """
        template = self._templates.get(computation)
        if template is None or template.closed:
            return
        for layer in layers:
            try:
                file = write_layer(layer)
            except (OSError, ValueError) as error:
                self._events.append(LayerFailed(computation, str(error)))
            else:
                message = ("define", file.plan_bytes, 0)
                send(self._selector, template.channel, message, [file.descriptor])

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
        send(self._selector, template.channel, ("put", request, entry_of(file).plain()))

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
            self.workers.forget(process)
        if not template.orphaned:
            assert self._zygote is not None
            # In this order: the template looks for the first when it gets a signal for the other.
            send(self._selector, template.channel, ("release", int(keep), 0))
            send(self._selector, self._zygote.channel, ("end", computation, template.ready))

    def clear(self, computation: int) -> None:
        """Remove the files that it was released with, to be kept."""
        template = self._kept.pop(computation, None)
        if template is not None:
            template.remove_files()

    # -- what happens ----------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """Return what has happened since the last call, in order."""
        if not self._events:
            return []
        events = self._events.copy()
        self._events.clear()
        return events

    def receive(self) -> None:
        """Take what the processes have sent; send what they take."""
        for key, mask in self._selector.select(0):
            key.data(mask)

    def _on_template(self, template: TemplateProcess, mask: int) -> None:
        if self._templates.get(template.computation) is not template or template.closed:
            return
        if mask & selectors.EVENT_WRITE:
            template.channel.flush()
            watch_write(self._selector, template.channel, template.channel.unsent)
        if mask & selectors.EVENT_READ:
            self._drain(template)
        if template.closed and template.orphaned:
            self._finish(template, "")

    def _drain(self, template: TemplateProcess) -> None:
        """Take all that the template has said."""
        try:
            while (received := template.channel.receive()) is not None:
                self._on_template_message(template, received[0])
        except ChannelClosed:
            template.closed = True
            self._selector.unregister(template.channel)

    def _on_template_message(self, template: TemplateProcess, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "exited":
            for worker, code, peak_kib in rest[0]:
                self.workers.exited(template.workers.get(worker), code, peak_kib)
        elif kind == "unborn":
            worker, reason = rest
            if process := template.workers.get(worker):
                self.workers.unborn(process, reason)
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

    def _on_zygote(self, mask: int) -> None:
        if self._zygote is None:
            return
        connection = self._zygote.channel
        if mask & selectors.EVENT_WRITE:
            connection.flush()
            watch_write(self._selector, connection, connection.unsent)
        try:
            while (received := connection.receive()) is not None:
                (kind, computation, detail), _ = received
                reason = detail if kind == "unborn" else _describe_end(detail)
                self._on_gone(self._templates[computation], reason)
        except ChannelClosed:
            self._on_zygote_lost(self._zygote)

    def _on_gone(self, template: TemplateProcess, reason: str) -> None:
        if not template.closed:
            self._drain(template)
        self._finish(template, reason)

    def _finish(self, template: TemplateProcess, reason: str) -> None:
        """Nothing lives of a template any more: report what it leaves, and remove that."""
        clean = template.released and reason == _describe_end(0)
        when = "" if template.ready else ", while it loaded the code or ran setup"
        killed = f"the process that starts the jobs of the computation {reason}{when}"
        reason = template.reason or killed
        for process in list(template.workers.values()):
            process.fault = process.fault or reason
            self.workers.exited(process, 0, 0)
        if not template.closed:
            self._selector.unregister(template.channel)
        template.channel.close()
        if not clean or template.inherits:
            template.remove()
        if template.keeps:
            self._kept[template.computation] = template
        for request in template.puts:
            self._events.append(FilePlaced(template.computation, request, "it has been closed"))
        del self._templates[template.computation]
        if template.released:
            self._events.append(TemplateGone(template.computation))
        else:
            self._events.append(TemplateFailed(template.computation, reason))

    def _on_zygote_lost(self, zygote: ZygoteProcess) -> None:
        """The templates get a signal when their parent dies, and end by themselves."""
        self._selector.unregister(zygote.channel)
        zygote.bury()
        self._zygote = None
        self._events.append(ZygoteLost())
        for template in list(self._templates.values()):
            template.orphaned = True
            template.reason = template.reason or "the process that forks all others has died"
            if template.closed:
                self._finish(template, "")


def _describe_end(code: int) -> str:
    if code < 0:
        return f"was killed by {describe_signal(-code)}"
    return f"ended with exit code {code}"
