"""The job process: takes jobs from its mailbox, runs them, and sends back how they ended.

The only code of the project that runs beside a user's: it trusts the node, the node trusts
none of its bytes (their format: `jobwire`). Its own part in a job is kept to a few microseconds.

All that a job process needs is imported here, before it is forked; what few jobs need, they
import themselves.
"""

from __future__ import annotations

# What lies beneath `socket`, and in other modules `signal`: a fork pays for every page that it
# touches, and the enums that those two make of plain numbers would make a job process a third
# dearer.
import _signal  # type: ignore[import-not-found]
import _socket
import mmap
import os
import pickle
import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, Protocol

from dispy.protocol.payload import pack_result, unpack_object

from . import environment
from .interrupts import Interrupts
from .jobwire import EXIT_UNREACHABLE, OUTBOX_BYTES, RESULT, SIZE, TOKEN_BYTES, head_of
from .mailboxes import Inbox, NodeGone, Outbox
from .output import flush_streams, read_output, set_buffering
from .values import Packed, failure, pack_value

_NO_OUTPUT = (b"", b"")
_pack_head = RESULT.pack  # looked up once: see above


class Succession(Protocol):
    """What a process for one job owes the process of the next one."""

    def job_ended(self, seconds: float, goes_on: bool) -> None:
        """The job has run so long, and its result will be sent when this returns.

        ``goes_on`` says whether the next one finds the connection in order.
        """

    def wait_to_send(self) -> None:
        """Something else is to be sent before that."""


class Runner:
    """Runs jobs one after the other."""

    def __init__(
        self,
        function: Callable[..., Any],
        sock: _socket.socket,
        tokens: int,
        memory: memoryview,
        outputs: tuple[int, int],
    ) -> None:
        self._function = function
        self._tokens = tokens  # the pipe to take them from
        self._token_poll = select.poll()
        self._token_poll.register(tokens, select.POLLIN)
        self.succession: Succession | None = None  # in a lane: there is a process for the next job
        self.inbox = Inbox(sock)
        self._outbox = Outbox(sock, memory)
        self.interrupts = Interrupts(head_of(memory))
        self.talk: Any = None  # a `jobnames.Talk`, once a job has told something
        self._borrowed: list[Any] = []  # what only the present job has, to be undone
        self._in_step = True  # whether the next byte to be read is that of a block or part
        self._outputs = outputs  # the files behind 1 and 2, which a job may close or redirect
        self.pid = os.getpid()

    def serve(self, max_tasks: int) -> bool:
        """Run so many jobs (0: no limit); return early, and False, when the node is gone.

        The same when the parts of a job could not be read: jobs that have not begun are given
        to another process.
        """
        done = 0
        goes_on = True
        while goes_on and (not max_tasks or done < max_tasks):
            self._outbox.flush_if_due()
            goes_on = self.run_next()
            done += 1
        self._outbox.flush()
        return goes_on

    def run_next(self) -> bool:
        """Wait until a job may begin, and run it; return whether there can be another one.

        In few steps: to a process that is new each costs ten times what it does later.
        """
        try:
            token = os.read(self._tokens, TOKEN_BYTES)
        except BlockingIOError:
            token = self.wait_for_token()
        if not token:
            return False
        number, body, sizes = self.inbox.take(int.from_bytes(token, "little"))
        start = time.time()
        self.interrupts.begin(number)
        value, buffers, text = self._perform(number, body, sizes)
        if os.getpid() != self.pid:
            _leave_copy()
        flush_streams()
        if _followed and self is _present:  # not in a rehearsal
            _print_in_blocks()
        if self._borrowed:
            self._give_back()
        end = time.time()
        stdout, stderr = self._outputs
        lengths = os.lseek(stdout, 0, os.SEEK_END), os.lseek(stderr, 0, os.SEEK_END)
        output, errors = self._take_output(lengths) if lengths != (0, 0) else _NO_OUTPUT
        self.interrupts.begin(0)
        if self.succession is not None:
            self.succession.job_ended(end - start, self._in_step)
        content = pack_result(value, output, errors, text)
        head = _pack_head(number, not text, start, end, len(content), len(buffers))
        if buffers:
            head += b"".join([SIZE.pack(len(buffer)) for buffer in buffers])
        if self.talk is None and self.succession is not None:
            self._outbox.put_at_once(head, content, buffers)
        else:
            self._send(head, content, buffers)
        return self._in_step

    def wait_for_token(self) -> bytes:
        """Send what is there, wait until a job may begin, and return its token."""
        self._outbox.flush()
        while True:
            self._token_poll.poll()
            try:
                token = os.read(self._tokens, TOKEN_BYTES)
            except BlockingIOError:  # the node has taken it back
                continue
            self._outbox.restart_clock()
            return token

    def send_record(self, kind: int, content: bytes, buffers: list[memoryview]) -> None:
        """Send a record of the present job."""
        if self.succession is not None:
            self.succession.wait_to_send()
        head = RESULT.pack(self.interrupts.number, kind, 0.0, 0.0, len(content), len(buffers))
        head += b"".join([SIZE.pack(len(buffer)) for buffer in buffers])
        self._outbox.put_at_once(head, content, buffers)

    def _take_output(self, lengths: tuple[int, int]) -> list[bytes]:
        """Return what the job has written, so much, and empty the files for the next one."""
        output = []
        for fd, size in zip(self._outputs, lengths, strict=True):
            output.append(read_output(fd, size))
            if size:
                os.ftruncate(fd, 0)
        return output

    def _send(self, head: bytes, content: bytes, buffers: list[memoryview]) -> None:
        """Send a result, with others if that can wait."""
        if self.talk is not None:
            self.talk.end()
        if self.talk is not None or self.succession is not None:
            self._outbox.put_at_once(head, content, buffers)
        else:
            self._outbox.put(head, content, buffers)
        if self.succession is None:
            print_to(*self._outputs)  # the next job does, whatever this one did

    def _perform(self, number: int, body: memoryview, sizes: list[int]) -> Packed:
        """Do the job; return its value and no text, or a text that says how it failed."""
        interrupts = self.interrupts
        self._in_step = False
        try:
            if sizes or body[0] or self.inbox.given:
                arguments = self._load_special(number, body, sizes)
            else:
                self._in_step = True
                arguments = pickle.loads(body[1:])
            args, kwargs = arguments if len(arguments) == 2 else self._define(*arguments)
        except BaseException as error:
            return _cannot_load(error)
        if self.talk is not None:
            self.talk.begin()
        try:
            try:
                interrupts.running = True
                if interrupts.is_meant():
                    raise KeyboardInterrupt
                value = self._function(*args, **kwargs)
            finally:
                interrupts.running = False
        except BaseException as error:
            return self._failure(error)
        return pack_value(value)

    def _failure(self, error: BaseException) -> Packed:
        """Say what the job has raised."""
        if isinstance(error, SystemExit):
            code = "" if error.code is None else repr(error.code)
            return b"", [], f"the job called sys.exit({code})"
        if isinstance(error, KeyboardInterrupt) and self.interrupts.is_meant():
            return b"", [], failure("the job was cancelled", error)[2]
        return failure("", error)

    def _load_special(self, number: int, body: memoryview, sizes: list[int]) -> Any:
        """Return the arguments of a job that has parts, or files that it needs before."""
        readonly, stream = unpack_object(body)
        parts = self.inbox.read_parts(number, readonly, sizes)
        self._in_step = True
        if self.inbox.given:
            self._enter_folder(number)
        return pickle.loads(stream, buffers=parts)

    def _enter_folder(self, number: int) -> None:
        """Give a job that has files a folder of its own."""
        given = self.inbox.given.pop(number, None)
        if given is None:
            return
        from .jobfolder import JobFolder
        from .plan import FileEntry

        folder, base, blobs, files = given
        own = JobFolder(folder, base, blobs, [FileEntry(*file) for file in files])
        self._borrowed.append(own.leave)
        try:
            own.enter()
        except (OSError, ValueError) as error:  # also for a name that leads out
            raise environment.LoadError(f"the job can't have its files: {error}") from None

    def _define(self, args: Any, kwargs: Any, names: environment.Names) -> Any:
        """Define what only this job needs; return its other arguments."""
        own = environment.JobNames(names)
        self._borrowed.append(own.take_away)
        own.define()
        return args, kwargs

    def _give_back(self) -> None:
        while self._borrowed:
            self._borrowed.pop()()


def _cannot_load(error: BaseException) -> Packed:
    """Say why a job could not have its arguments. Raises `NodeGone` if that is why."""
    if isinstance(error, NodeGone):
        raise error
    if isinstance(error, environment.LoadError):
        return b"", [], str(error)
    reason = f"the arguments of the job could not be unpickled{environment.hint()}"
    return failure(reason, error)


# -- output that is followed ----------------------------------------------------------------


_followed = False  # somebody wants to see the output of the present job


def follow(signum: int = 0, frame: object = None) -> None:
    """Print line by line until the end of the job: somebody follows it."""
    global _followed
    _followed = True
    set_buffering(by_line=True)


def _print_in_blocks() -> None:
    global _followed
    _followed = False
    set_buffering(by_line=False)


# -- process --------------------------------------------------------------------------------


def _leave_copy() -> NoReturn:
    """End a process that the user's function forked and let return here."""
    flush_streams()
    os._exit(0)


_present: Runner | None = None  # that of this process


def present() -> Runner | None:
    """Return the runner of this process, if it is a job process."""
    return _present


def run(function: Callable[..., Any], descriptors: list[int], max_tasks: int) -> NoReturn:
    """Be a job process, over a connection, stdout, stderr, tokens and outbox."""
    connection, output, error, tokens, outbox = descriptors
    memory = memoryview(mmap.mmap(outbox, OUTBOX_BYTES))
    process = Runner(function, connect(connection), tokens, memory, print_to(output, error))
    prepare(process)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))
    try:
        process.serve(max_tasks)
    except (NodeGone, OSError):
        say_unreachable()
        os._exit(EXIT_UNREACHABLE)
    os._exit(0)


def connect(descriptor: int) -> _socket.socket:
    """Return the socket that is the connection to the node."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, descriptor)


def print_to(output: int, error: int) -> tuple[int, int]:
    """Have all output go to these files; return them."""
    os.dup2(output, 1)
    os.dup2(error, 2)
    return output, error


def prepare(process: Runner) -> None:
    """Make this process that of the runner."""
    global _present
    _present = process
    process.interrupts.install()


def say_unreachable() -> None:
    """Say why this process ends: it can't reach the node any more."""
    with suppress(OSError):  # the job has closed it, too
        os.write(2, b"dispy: the connection to the node is closed\n")
