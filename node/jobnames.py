"""The functions that jobs find without an import: what they tell while they run, and the log.

A record goes to the node at once, over the socket of the job process. The node answers with how
many of them the client has dealt with; a job that is too far ahead waits. A job may call these
from several threads: one sends at a time, and one reads, for all that wait.

KeyboardInterrupt is held back while bytes are on their way, so that none is left half sent.
"""

from __future__ import annotations

import builtins
import os
import stat
import sys
import time
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from dispy.protocol.payload import pack_file_piece

from . import runner
from .jobwire import FILE, FILE_BYTES, OWN_AHEAD, PROVISIONAL
from .mailboxes import NodeGone
from .runner import Runner
from .values import pack_value

TIMEOUT_S = 10.0  # by default
SLICE_S = 0.05  # in which interrupts, timeouts and what other threads have read are noticed

_max_file_size = [0]  # bytes; 0: no limit
_beginning = allocate_lock()


class NotTold(Exception):
    """Something could not be told; the text says why."""


def offered(max_file_size: int, log: int) -> dict[str, Any]:
    """Return all names; ``log`` is the descriptor that lines for the node go to."""
    _max_file_size[0] = max_file_size
    return {
        "dispy_provisional_result": dispy_provisional_result,
        "dispy_send_file": dispy_send_file,
        "dispynode_logger": Logger(log),
    }


def dispy_provisional_result(
    result: object, relay: bool = False, timeout: float | None = TIMEOUT_S
) -> int:
    """Send a result while the job goes on; return 0 once it is on its way.

    Waits while the client has not dealt with earlier ones; when it doesn't for ``timeout``
    seconds (None: however long), the result is dropped, and -1 returned. Also -1 when it can't
    be pickled. The reason is written to stderr. ``relay`` has no meaning any more.
    """
    try:
        value, buffers, problem = pack_value(result)
        if problem:
            raise NotTold(problem)
        with Talking() as talk:
            talk.tell(PROVISIONAL, value, buffers, timeout)
    except NotTold as error:
        return _complain(f"dispy_provisional_result: {error}")
    return 0


def dispy_send_file(
    path: str | os.PathLike[str], relay: bool = False, timeout: float | None = TIMEOUT_S
) -> int:
    """Send a file to the client; return 0 once the client has all of it.

    Below the job's folder it keeps its path, else only its last part. Returns -1 when it isn't
    a regular file, is larger than the node or the client wants, changes meanwhile, is refused
    by the client, or when nothing is heard of the client for ``timeout`` seconds (None:
    however long). The reason is written to stderr. ``relay`` has no meaning any more.
    """
    path = os.fspath(path)
    try:
        # Doesn't wait for whoever writes into a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with Talking() as talk:
                _send_file(talk, fd, path, timeout)
        finally:
            os.close(fd)
    except (NotTold, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return _complain(f"dispy_send_file: {path!r} was not sent: {reason}")
    return 0


def _send_file(talk: Talk, fd: int, path: str, timeout: float | None) -> None:
    found = os.fstat(fd)
    size, limit = found.st_size, _max_file_size[0]
    if not stat.S_ISREG(found.st_mode):
        raise NotTold("it is not a regular file")
    if limit and size > limit:
        raise NotTold(f"it has {size} bytes, and this node sends at most {limit} (max_file_size)")
    name, mode = _name_for_client(path), stat.S_IMODE(found.st_mode) & 0o777
    sent: list[int] = []
    for offset in range(0, max(size, 1), FILE_BYTES):
        data = os.pread(fd, min(FILE_BYTES, size - offset), offset)
        last = offset + FILE_BYTES >= size
        if len(data) < min(FILE_BYTES, size - offset) or (last and _has_changed(fd, found)):
            raise NotTold("it was changed while it was sent")
        piece = pack_file_piece(name, offset, size, mode, found.st_mtime, last, data)
        sent.append(talk.tell(FILE, piece, [], timeout))
        talk.raise_refusal(sent)
    talk.wait_for(sent, timeout)


def _has_changed(fd: int, before: os.stat_result) -> bool:
    now = os.fstat(fd)
    return (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def _name_for_client(path: str) -> str:
    """Return the path below the folder of the job, or the last part of one elsewhere."""
    folder: str = builtins.dispy_job_path  # type: ignore[attr-defined]
    for full, base in (
        (os.path.abspath(path), folder),
        (os.path.realpath(path), os.path.realpath(folder)),
    ):
        if full.startswith(base + os.sep):
            return os.path.relpath(full, base).replace(os.sep, "/")
    return os.path.basename(os.path.abspath(path))


def _complain(text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    return -1


class Talk:
    """What a job process tells the node while jobs run; there is one once a job has used it."""

    def __init__(self, process: Runner) -> None:
        self._process = process
        self._inbox = process.inbox
        self._interrupts = process.interrupts
        self._sending = allocate_lock()
        self._reading = allocate_lock()
        self._sent = process.inbox.heard  # records, ever, those of processes before included
        self.open = True  # a job runs

    @property
    def sent(self) -> int:
        """How many records were sent, ever."""
        return self._sent

    def begin(self) -> None:
        """A job begins: what was told by earlier ones isn't waited for."""
        self._sent = self._inbox.heard
        self.open = True

    def end(self) -> None:
        """A job ends; threads that it has left can't tell anything any more."""
        self.open = False
        with self._sending:  # until a record that is being sent is out
            pass
        with self._reading:
            self._inbox.refusals.clear()
            self._inbox.heard = self._sent = max(self._sent, self._inbox.heard)

    def tell(self, kind: int, content: bytes, buffers: list[memoryview], timeout: Any) -> int:
        """Send a record when its turn has come, and return its number."""
        while True:
            self._wait(self._has_room, timeout)
            with self._sending:
                if self._has_room() and self.open:
                    self._sent += 1
                    self._process.send_record(kind, content, buffers)
                    return self._sent

    def wait_for(self, numbers: list[int], timeout: float | None) -> None:
        """Wait until the client has dealt with these records, the last of which ends a file."""
        self._wait(lambda: self._inbox.heard >= numbers[-1], timeout)
        self.raise_refusal(numbers)

    def raise_refusal(self, numbers: list[int]) -> None:
        """Raise `NotTold` when the client wants none of what these are of."""
        for number in self._inbox.refusals.keys() & set(numbers):
            raise NotTold(self._inbox.refusals.pop(number))

    def _has_room(self) -> bool:
        return self._sent - self._inbox.heard < OWN_AHEAD

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        heard, since = self._inbox.heard, time.monotonic()
        while not done():
            if not self.open:
                raise NotTold("its job has ended")
            if self._interrupts.held and self._interrupts.is_meant():
                raise NotTold("the job was cancelled")  # replaced when interrupts are let go
            if self._inbox.heard != heard:
                heard, since = self._inbox.heard, time.monotonic()
            elif timeout is not None and time.monotonic() - since > timeout:
                raise NotTold(f"the client has not taken anything for {timeout} seconds")
            if self._reading.acquire(timeout=SLICE_S):
                try:
                    if not done():
                        self._inbox.hear(SLICE_S)
                except (NodeGone, OSError):
                    raise NotTold("the connection to the node is closed") from None
                finally:
                    self._reading.release()


class Talking:
    """The time in which a job tells something: interrupts of its main thread wait meanwhile."""

    def __init__(self) -> None:
        self._holds = False

    def __enter__(self) -> Talk:
        """Return the talk of this process. Raises `NotTold` where no job runs."""
        import threading

        process = runner.present()
        if process is None or process.pid != os.getpid():
            raise NotTold("only the process of a job can do this, while the job runs")
        if threading.current_thread() is threading.main_thread():
            self._holds = process.interrupts.hold()
        self._process = process
        with _beginning:
            if process.talk is None:
                process.talk = Talk(process)
        talk: Talk = process.talk
        return talk

    def __exit__(self, *error: object) -> None:
        """Raise KeyboardInterrupt when one has come meanwhile."""
        if self._holds:
            self._process.interrupts.let_go()


class Logger:
    """``dispynode_logger``: writes lines to the log of the node, none of them to the client's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def debug(self, message: object, *args: object) -> None:
        """Write a line; ``args`` are filled in with ``%``."""
        self._write("DEBUG", message, args)

    def info(self, message: object, *args: object) -> None:
        """Write a line; ``args`` are filled in with ``%``."""
        self._write("INFO", message, args)

    def warning(self, message: object, *args: object) -> None:
        """Write a line; ``args`` are filled in with ``%``."""
        self._write("WARNING", message, args)

    warn = warning

    def error(self, message: object, *args: object) -> None:
        """Write a line; ``args`` are filled in with ``%``."""
        self._write("ERROR", message, args)

    def critical(self, message: object, *args: object) -> None:
        """Write a line; ``args`` are filled in with ``%``."""
        self._write("CRITICAL", message, args)

    fatal = critical

    def exception(self, message: object, *args: object) -> None:
        """Write a line, and the traceback of the exception that is being handled."""
        import traceback

        self._write("ERROR", message, args, "\n" + traceback.format_exc().rstrip())

    def _write(
        self, level: str, message: object, args: tuple[object, ...], trace: str = ""
    ) -> None:
        text = str(message)
        try:
            text = text % args if args else text
        except (TypeError, ValueError, KeyError):
            text = f"{text} {args!r}"
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        line = f"{stamp} dispy.job {level}: {text}{trace}\n"
        os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))
