"""The job process: takes jobs from its socket, runs them, and sends back how they ended.

The only code of the project that runs beside a user's: it trusts the node, the node trusts
none of its bytes. Its own part in a job is kept to a few microseconds.

Jobs arrive in *blocks*: `BLOCK` (length of the rest, number of the first job, how many jobs),
then for each job `JOB` (length of its body, how many parts), the sizes of the parts of the last
one, the bodies; behind the block the parts. Only the last job of a block can have parts. Each
job that a process is given has a number, counted from 1, and results carry it: `RESULT`, the
sizes of its parts, its body, its parts. Its second field says how the job ended, or that this
is no result but a *record* of the job that runs: PROVISIONAL or FILE. Records are sent at once,
and so are from then on the results of that process, so that none overtakes a record.

A block without jobs tells something else. With the number of a job: that job, which comes in
the next block, has files (`GivenFiles`, as marshal). With 0: the client has dealt with so many
of the records of this process, and maybe why it refuses the last of them (as marshal).

A process for many jobs takes a *token* from a pipe before each job: the job's number. The node
puts a token in for each job that it gives, and takes back jobs by taking their tokens out
again, from the last to be run: tokens are only ever read as a whole, so a job belongs to who
has read its token, and to nobody else. Numbers are never used twice. The process that reads
token i drops all jobs before i that it holds: their tokens were taken by the node.

Results wait in the *outbox*, memory shared with the node, until a millisecond has passed, or
nothing is left to do. Its head holds how many bytes are in it and how many times it has been
emptied. Bytes are written before they are counted, and never change until it is emptied; the
node takes what it finds there when the process has died (or has been quiet for a while), and
drops by number what it has already. The third word of the head is the node's: the number of
the job that the next SIGINT is meant for.
"""

from __future__ import annotations

# What lies beneath `signal` and `socket`: a fork pays for every page that it touches, and the
# enums that those two make of plain numbers would make a job process a third dearer.
import _signal  # type: ignore[import-not-found]
import _socket
import mmap
import os
import pickle
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

from dispy.protocol.payload import (
    INLINE_BYTES,
    MAX_BUFFERS,
    pack_object,
    pack_result,
    unpack_object,
)

from . import environment

BLOCK = struct.Struct("<QQI")
JOB = struct.Struct("<QH")
RESULT = struct.Struct("<QBddQH")  # number, kind, start, end, length of the body, parts
FAILED, RETURNED, PROVISIONAL, FILE = range(4)  # kinds
SIZE = struct.Struct("<Q")
TOKEN = struct.Struct("<Q")

OUTBOX_BYTES = 1 << 17
OUTBOX_HEAD = 24  # bytes: three words, written whole, so that nobody ever sees half of one
USED, EMPTIED, INTERRUPTED = range(3)  # the words
OUTPUT_BYTES = 1 << 20  # of stdout and of stderr of one job; the rest is cut
FLUSH_S = 0.001  # a result waits at most so long for company, while jobs follow each other
REHEARSALS = 60  # all code that gets adapted has been after so many
REHEARSED_BYTES = 1024  # more than the result of one
SKIP_BYTES = 1 << 20  # parts of dropped jobs are read away in such pieces
FILE_BYTES = 1 << 18  # of a file that a job sends, in one record
OWN_AHEAD = 6  # records that the client has not dealt with; the node adds two of output

EXIT_UNREACHABLE = 72  # the connection to the node is closed

# A folder to be made for the job, that of the computation, that of the store, and the files: see
# `jobfolder`.
GivenFiles: TypeAlias = "tuple[str, str, str, list[tuple[str, str, int, int, float]]]"
Job: TypeAlias = "tuple[int, memoryview, list[int]]"  # number, body, sizes of its parts


class NodeGone(Exception):
    """The node has closed the connection, or the job has."""


class Inbox:
    """Reads the blocks; hands jobs out by number."""

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock
        self._jobs: deque[Job] = deque()
        self._early: dict[int, list[bytearray]] = {}  # parts that were read before their job began
        self.given: dict[int, GivenFiles] = {}  # by job
        self.heard = 0  # records that the client has dealt with
        self.refusals: dict[int, str] = {}  # records that the client did not want, and why

    def take(self, number: int) -> Job:
        """Return the job of this number (0: the next), whose parts are still to be read."""
        while True:
            while not self._jobs:
                self._read_block()
            job = self._jobs.popleft()
            if number in (0, job[0]):
                return job
            self.given.pop(job[0], None)
            if self._early.pop(job[0], None) is None:
                for size in job[2]:
                    self._skip(size)

    def read_parts(
        self, number: int, readonly: list[bool], sizes: list[int]
    ) -> list[bytes | bytearray]:
        """Read the out-of-band buffers of a job, each straight into its final place."""
        if self._early and (parts := self._early.pop(number, None)) is not None:
            return [
                bytes(part) if constant else part
                for constant, part in zip(readonly, parts, strict=True)
            ]
        return [
            self._read(size) if constant else self._read_writable(size)
            for constant, size in zip(readonly, sizes, strict=True)
        ]

    def hear(self, seconds: float) -> None:
        """Wait so long for another block, and read it, while a job runs."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        if not poll.poll(seconds * 1000):
            return
        if self._jobs and self._jobs[-1][2] and self._jobs[-1][0] not in self._early:
            number, _, sizes = self._jobs[-1]  # its parts come first
            self._early[number] = [self._read_writable(size) for size in sizes]
        self._read_block()

    def _read_block(self) -> None:
        length, first, count = BLOCK.unpack(self._read(BLOCK.size))
        view = memoryview(self._read(length))
        if not count:
            self._read_note(first, view)
            return
        heads = list(JOB.iter_unpack(view[: count * JOB.size]))
        position = count * JOB.size + heads[-1][1] * SIZE.size
        sizes = [size for (size,) in SIZE.iter_unpack(view[count * JOB.size : position])]
        for number, (body, parts) in enumerate(heads, first):
            self._jobs.append((number, view[position : position + body], sizes if parts else []))
            position += body

    def _read_note(self, number: int, content: memoryview) -> None:
        """Read a block without jobs."""
        import marshal

        if number:
            self.given[number] = marshal.loads(content)
            return
        heard, refusal = marshal.loads(content)
        self.heard = max(self.heard, heard)
        if refusal:
            self.refusals[heard] = refusal

    def _read(self, size: int) -> bytes:
        data = self._socket.recv(size, _socket.MSG_WAITALL) if size else b""
        if len(data) == size:
            return data
        pieces = [data]  # a signal came in between
        missing = size - len(data)
        while missing:
            pieces.append(self._socket.recv(missing, _socket.MSG_WAITALL))
            if not pieces[-1]:
                raise NodeGone
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def _read_writable(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view, len(view), _socket.MSG_WAITALL)
            if not count:
                raise NodeGone
            view = view[count:]
        return data

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._read(min(size, SKIP_BYTES)))


class Outbox:
    """Collects results and sends them together; without memory to share, sends each at once."""

    def __init__(self, sock: _socket.socket, memory: memoryview | None) -> None:
        self._socket = sock
        self._memory = memory
        self._words = head_of(memory) if memory else None
        self._end = OUTBOX_HEAD
        self._flushed_at = 0.0

    def put(self, head: bytes, body: bytes, buffers: list[memoryview]) -> None:
        """Take the result of a job; it's out of this process's hands when `put` returns."""
        middle = self._end + len(head)
        end = middle + len(body)
        if self._memory is None or self._words is None or buffers or end > OUTBOX_BYTES:
            self.put_at_once(head, body, buffers)
            return
        self._memory[self._end : middle] = head
        self._memory[middle:end] = body
        self._words[USED] = end - OUTBOX_HEAD
        self._end = end

    def put_at_once(self, head: bytes, body: bytes, buffers: list[memoryview]) -> None:
        """Send something behind all that is there."""
        self.flush()
        self._send([memoryview(head), memoryview(body), *buffers])

    def flush_if_due(self) -> None:
        """Send what is there when the last sending was a while ago."""
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()
            self.restart_clock()

    def restart_clock(self) -> None:
        """Begin the time in which results wait for company."""
        self._flushed_at = time.monotonic()

    def flush(self) -> None:
        """Send what is there."""
        if self._memory is None or self._words is None or self._end == OUTBOX_HEAD:
            return
        self._send([self._memory[OUTBOX_HEAD : self._end]])
        self._end = OUTBOX_HEAD
        self._words[USED] = 0
        self._words[EMPTIED] += 1

    def _send(self, buffers: list[memoryview]) -> None:
        try:
            for buffer in buffers:
                self._socket.sendall(buffer)
        except OSError:
            raise NodeGone from None


def head_of(memory: memoryview) -> memoryview:
    """Return the three words at the beginning of an outbox."""
    return memory[:OUTBOX_HEAD].cast("Q")


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt, in the job that it's meant for and nowhere else.

    A process for many jobs is told the number of that job in the outbox. So an interrupt that
    arrives before the job begins is not lost, and one that arrives after its end hits no other.
    """

    def __init__(self, words: memoryview | None) -> None:
        self._words = words
        self._arrived = False
        self.number = 0  # of the present job
        self.running = False  # its function runs
        self.held = False  # it runs, but nothing may be raised just now

    def install(self) -> None:
        """Answer SIGINT from now on, and one that was held back."""
        _signal.signal(_signal.SIGINT, self._on_signal)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))

    @property
    def meant(self) -> bool:
        """Whether the present job is to be interrupted, or was."""
        if self._words is None:
            return self._arrived
        return self._words[INTERRUPTED] == self.number

    def hold(self) -> bool:
        """Raise nothing until `let_go`; return whether something could have been raised."""
        self.held, self.running = self.running, False
        return self.held

    def let_go(self) -> None:
        """Undo `hold`. Raises KeyboardInterrupt when one has come meanwhile."""
        self.held, self.running = False, True
        if self.running and self.meant:
            self.running = False
            raise KeyboardInterrupt

    def _on_signal(self, signum: int, frame: object) -> None:
        self._arrived = True
        if self.running and self.meant:
            self.running = False  # once per job: nothing may be raised outside of it
            raise KeyboardInterrupt


class Runner:
    """Runs jobs one after the other."""

    def __init__(
        self,
        function: Callable[..., Any],
        sock: _socket.socket,
        tokens: int,
        memory: memoryview | None,
        outputs: tuple[int, int],
    ) -> None:
        self._function = function
        self._tokens = tokens  # the pipe to take them from; -1: the process is for one job
        self.inbox = Inbox(sock)
        self._outbox = Outbox(sock, memory)
        self.interrupts = Interrupts(head_of(memory) if memory else None)
        self.talk: Any = None  # a `jobnames.Talk`, once a job has told something
        self._borrowed: list[Any] = []  # what only the present job has, to be undone
        self._in_step = True  # whether the next byte to be read is that of a block or part
        self._outputs = outputs  # the files behind 1 and 2, which a job may close or redirect
        self.pid = os.getpid()

    def serve(self, max_tasks: int) -> None:
        """Run so many jobs (0: no limit); returns early when the node is gone.

        Also returns when the parts of a job could not be read: jobs that have not begun are
        given to another process.
        """
        self.interrupts.install()
        done = 0
        while self._in_step and (not max_tasks or done < max_tasks):
            number = self._take_token()
            if number is None:
                return
            self._run(*self.inbox.take(number))
            done += 1
        self._outbox.flush()

    def _take_token(self) -> int | None:
        """Wait until a job may begin; return its number, 0 for "the next", None at the end."""
        if self._tokens < 0:
            return 0
        self._outbox.flush_if_due()
        while True:
            try:
                token = os.read(self._tokens, TOKEN.size)
            except BlockingIOError:
                self._wait()
            else:
                return int.from_bytes(token, "little") if token else None

    def _wait(self) -> None:
        self._outbox.flush()
        poll = select.poll()
        poll.register(self._tokens, select.POLLIN)
        poll.poll()
        self._outbox.restart_clock()

    def send_record(self, kind: int, content: bytes, buffers: list[memoryview]) -> None:
        """Send a record of the present job."""
        head = RESULT.pack(self.interrupts.number, kind, 0.0, 0.0, len(content), len(buffers))
        head += b"".join([SIZE.pack(len(buffer)) for buffer in buffers])
        self._outbox.put_at_once(head, content, buffers)

    def _run(self, number: int, body: memoryview, sizes: list[int]) -> None:
        start = time.time()
        self.interrupts.number = number
        value, buffers, text = self._perform(number, body, sizes)
        if os.getpid() != self.pid:
            _leave_copy()
        _flush_streams()
        if _followed and self._tokens >= 0:  # not in a rehearsal, and else there is no need
            _print_in_blocks()
        if self._borrowed:
            self._give_back()
        end = time.time()
        written = [os.lseek(fd, 0, os.SEEK_END) for fd in self._outputs]
        stdout, stderr = map(_read_output, self._outputs, written)
        content = pack_result(value, stdout, stderr, text)
        head = RESULT.pack(number, not text, start, end, len(content), len(buffers))
        if buffers:
            head += b"".join([SIZE.pack(len(buffer)) for buffer in buffers])
        if self.talk is None:
            self._outbox.put(head, content, buffers)
        else:
            self.talk.end()
            self._outbox.put_at_once(head, content, buffers)
        for fd, size in zip(self._outputs, written, strict=True):
            if size:
                os.ftruncate(fd, 0)
        if self._tokens >= 0:  # the next job prints where it should, whatever this one did
            os.dup2(self._outputs[0], 1)
            os.dup2(self._outputs[1], 2)

    def _perform(self, number: int, body: memoryview, sizes: list[int]) -> Packed:
        """Do the job; return its value and no text, or a text that says how it failed."""
        self._in_step = False
        try:
            args, kwargs = self._load_arguments(number, body, sizes)
        except NodeGone:
            raise
        except environment.LoadError as error:
            return b"", [], str(error)
        except BaseException as error:
            reason = f"the arguments of the job could not be unpickled{environment.hint()}"
            return failure(reason, error)
        if self.talk is not None:
            self.talk.begin()
        try:
            value = self._call(args, kwargs)
        except SystemExit as error:
            code = "" if error.code is None else repr(error.code)
            return b"", [], f"the job called sys.exit({code})"
        except KeyboardInterrupt as error:
            if self.interrupts.meant:
                return b"", [], failure("the job was cancelled", error)[2]
            return failure("", error)
        except BaseException as error:
            return failure("", error)
        return pack_value(value)

    def _load_arguments(self, number: int, body: memoryview, sizes: list[int]) -> Any:
        """Return the arguments of a job; see to what it needs before they can be unpickled."""
        readonly, stream = unpack_object(body)
        parts = self.inbox.read_parts(number, readonly, sizes)
        self._in_step = True
        if self.inbox.given:
            self._enter_folder(number)
        arguments = pickle.loads(stream, buffers=parts)
        return arguments if len(arguments) == 2 else self._define(*arguments)

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

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.interrupts.running = True
        if self.interrupts.meant:
            self.interrupts.running = False
            raise KeyboardInterrupt
        try:
            return self._function(*args, **kwargs)
        finally:
            self.interrupts.running = False


# -- values ---------------------------------------------------------------------------------

Packed: TypeAlias = "tuple[bytes, list[memoryview], str]"  # pickled object, its buffers, text


class Buffers:
    """Collects the buffers that a pickler meets and that are worth a part of their own."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def offer(self, buffer: pickle.PickleBuffer) -> bool:
        """Tell the pickler whether to keep the buffer in its stream."""
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: has to be copied
            return True
        if len(view) < INLINE_BYTES or len(self.views) == MAX_BUFFERS:
            return True
        self.views.append(view)
        return False


def pack_value(value: object) -> Packed:
    """Pickle what a job returned; the text says why not."""
    if value is None:
        return _NONE, [], ""
    try:
        stream, views = dump(value)
    except BaseException as error:
        kind = type(value).__name__
        text = f"the result of the job (of type {kind}) can't be pickled"
        return b"", [], f"TypeError: {text}: {type(error).__name__}: {error}"
    return pack_object([view.readonly for view in views], stream), views, ""


def dump(value: object) -> tuple[bytes, list[memoryview]]:
    """Pickle, by value what can't be found by its name, with large buffers left out."""
    if type(value) in (bytes, bytearray) and len(value) >= INLINE_BYTES:  # type: ignore[arg-type]
        value = pickle.PickleBuffer(value)  # type: ignore[arg-type]
    buffers = Buffers()
    try:
        stream = pickle.dumps(value, 5, buffer_callback=buffers.offer)
        if environment.is_of_client(stream):
            return stream, buffers.views
    except Exception:  # cloudpickle will say what is wrong, if it can't do better
        pass
    import cloudpickle

    buffers = Buffers()
    stream = cloudpickle.dumps(value, 5, buffer_callback=buffers.offer)
    return stream, buffers.views


_NONE = pack_object([], pickle.dumps(None, 5))


def failure(reason: str, error: BaseException) -> Packed:
    """Describe an exception: itself if it can be pickled, and its traceback without ours."""
    import traceback

    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as second:  # its own __str__ raises
        text = f"{type(error).__name__} (which can't be shown: {type(second).__name__})\n"
    value, views, _ = pack_value(error)
    if not _comes_back(value, views):
        value, views = b"", []
    return value, views, f"{reason}:\n{text}" if reason else text


_OWN_FILES = os.path.dirname(os.path.abspath(__file__)) + os.sep


def _comes_back(value: bytes, views: list[memoryview]) -> bool:
    """Whether a pickled exception can be unpickled: many with an __init__ of their own can't."""
    try:
        pickle.loads(unpack_object(value)[1], buffers=views)
    except BaseException:
        return False
    return True


# -- output ---------------------------------------------------------------------------------


_followed = False  # somebody wants to see the output of the present job


def follow(signum: int = 0, frame: object = None) -> None:
    """Print line by line until the end of the job: somebody follows it."""
    global _followed
    _followed = True
    _set_buffering(by_line=True)


def _print_in_blocks() -> None:
    global _followed
    _followed = False
    _set_buffering(by_line=False)


def _set_buffering(by_line: bool) -> None:
    # When the job has closed or replaced it, or is just writing, it stays as it is.
    with suppress(AttributeError, OSError, RuntimeError, ValueError):
        sys.stdout.reconfigure(line_buffering=by_line)  # type: ignore[union-attr]


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        # When the job has closed or replaced it, what's in its hands is its business.
        try:  # noqa: SIM105 - `suppress` is dearer than all of this, in a fresh process
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass


def _read_output(fd: int, size: int) -> bytes:
    """Return what a job wrote, of ``size`` bytes by its end, up to the limit."""
    if not size:
        return b""
    data = os.pread(fd, min(size, OUTPUT_BYTES), 0)
    return data if size <= OUTPUT_BYTES else data + cut_mark()


def cut_mark() -> bytes:
    """Return the line that ends an output of which the rest was thrown away."""
    return b"\n[output cut: more than %d bytes]\n" % OUTPUT_BYTES


# -- process --------------------------------------------------------------------------------


def _leave_copy() -> NoReturn:
    """End a process that the user's function forked and let return here."""
    _flush_streams()
    os._exit(0)


def rehearse(times: int = REHEARSALS) -> None:
    """Run jobs that do nothing, in the process that job processes are forked from.

    The interpreter adapts code that has run a few times, by writing into it. Done before the
    fork, that spares each job process the copying of these pages.
    """
    ours, theirs = _socket.socketpair()
    output = os.open(os.devnull, os.O_RDWR)
    body = pack_object([], pickle.dumps(((), {}), 5))
    job = JOB.pack(len(body), 0) + body
    for _ in range(times):
        ours.sendall(BLOCK.pack(len(job), 1, 1) + job)
        Runner(bool, theirs, -1, None, (output, output)).serve(1)
        ours.recv(REHEARSED_BYTES)
    for fd in (ours.detach(), theirs.detach(), output):
        os.close(fd)


_present: Runner | None = None  # that of this process


def present() -> Runner | None:
    """Return the runner of this process, if it is a job process."""
    return _present


def run(function: Callable[..., Any], descriptors: list[int], max_tasks: int) -> NoReturn:
    """Be a job process, over a connection, stdout, stderr and, to be reused, tokens and outbox."""
    connection, output, error, *shared = descriptors
    tokens, outbox = shared or (-1, -1)
    os.dup2(output, 1)
    os.dup2(error, 2)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, connection)
    memory = memoryview(mmap.mmap(outbox, OUTBOX_BYTES)) if outbox >= 0 else None
    code = 0
    if max_tasks == 1:
        rehearse(1)
    global _present
    try:
        _present = Runner(function, sock, tokens, memory, (output, error))
        _present.serve(max_tasks)
    except (NodeGone, OSError):
        with suppress(OSError):  # the job has closed it, too
            os.write(2, b"dispy: the connection to the node is closed\n")
        code = EXIT_UNREACHABLE
    os.nice(19)
    os._exit(code)
