"""The node's end of one job process: what it is given, what it sends back, what it leaves.

Each fact about a job process that is alive is kept here, and only here. Nothing in this file
waits: what the process doesn't take yet is kept, and a token that isn't there is not waited for.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    FINISHED,
    RECORD_BYTES,
    TERMINATED,
    Buffer,
    JobRecord,
    JobResult,
    JobSpec,
)

from .conversation import Conversation
from .jobwire import (
    EMPTIED,
    EXIT_UNREACHABLE,
    GIVEN,
    INTERRUPTED,
    OUTBOX_BYTES,
    OUTBOX_HEAD,
    PEAK,
    PROVISIONAL,
    RETURNED,
    RUNNING,
    TOKEN,
    USED,
    head_of,
)
from .memoryfile import open_memory
from .output import OUTPUT_BYTES, read_output
from .planning import entry_of
from .traffic import Block, Ended, Intake, pack_blocks, pack_files, pack_heard

# A signal that comes just before a system call doesn't end it: Python answers it afterwards. So
# an interrupt is repeated, at each tick; the job process takes no notice of any but the first.
INTERRUPT_REPEATS = 5
NUDGES = 3
GIVEN_MAX = 4096  # jobs that a process may hold: their tokens must fit into a pipe
READ_BYTES = 1 << 18
SOCKET_BYTES = 1 << 20  # that may be on their way to a job process and back, if the system lets us
READS = 16  # at a time, so that one process with a large result holds nobody up
BUFFERS = 64  # in one system call
STRANGE = "a job process sent the result of a job that it doesn't have"
STRANGE_TOKENS = "a job process wrote into the pipe that tells which jobs it may begin"
REFUSAL_CHARS = 10000  # of why a record was refused


Said: TypeAlias = JobResult | JobRecord


class Places(NamedTuple):
    """Where a job with files finds things."""

    jobs: str  # folder for the folders of jobs
    base: str  # folder of the computation
    blobs: str  # folder of the store


class JobProcess:
    """One job process, from its descriptors to its end."""

    def __init__(
        self, worker: int, computation: int, max_tasks: int, places: Places | None = None
    ) -> None:
        """Open everything that the process needs. Raises `OSError`, with nothing left open."""
        self.worker = worker
        self._is_lane = max_tasks == 1  # its jobs come to processes of their own, one by one
        self.computation = computation
        self.signals: set[int] = set()  # sent by us
        self._interrupted = 0  # the number of the job that is to be interrupted
        self._repeats = 0  # of the interrupt, still to come
        self.fault = ""  # why we gave it up
        self.silent = False  # nothing more is read from it: it has closed its end, or said all
        self.retired = False  # ended by us, since it is out of date
        self.asks_for_room = False  # for what is unsent
        self._places = places
        self._conversation: Conversation | None = None  # of the first job without a result
        self._own_records = 0  # that it has sent, ever
        self._followed: set[tuple[int, int]] = set()  # attempts whose output is to be told
        self._nudged = (0, 0)  # the number of the job that was told so, and how often
        self._given = 0  # jobs, and the number of the last one
        self._revoked = 0  # of these
        self._jobs: deque[tuple[int, int, int]] = deque()  # number, seq, attempt; no result yet
        self._unsent: deque[Block] = deque()
        self._intake = Intake()
        self._tokens = (-1, -1)
        self._outbox: memoryview | None = None
        self._words: memoryview | None = None  # the head of the outbox
        self._outputs: list[int] = []
        self._passed: list[int] = []
        try:
            self._open()
        except OSError:
            self.close()
            raise

    def _open(self) -> None:
        for name in ("stdout", "stderr"):
            self._outputs.append(open_memory(name, os.O_APPEND))
        for fd in self._outputs:  # one by one: `close` must know all that is open
            self._passed.append(os.dup(fd))
        self._open_tokens_and_outbox()
        self.socket, child = socket.socketpair()
        for end in (self.socket, child):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._passed.insert(0, child.detach())
        self.socket.setblocking(False)

    def _open_tokens_and_outbox(self) -> None:
        read, write = os.pipe()
        self._passed.append(read)
        self._tokens = (-1, write)
        self._tokens = (os.dup(read), write)
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        outbox = open_memory("outbox", 0, OUTBOX_BYTES)
        self._passed.append(outbox)
        self._outbox = memoryview(mmap.mmap(outbox, OUTBOX_BYTES))
        self._words = head_of(self._outbox)

    def take_passed(self) -> list[int]:
        """Return the descriptors for the process, once; they are the caller's to close."""
        passed, self._passed = self._passed, []
        return passed

    def close(self) -> None:
        """Close all that is open."""
        for fd in (*self._outputs, *self._passed, *self._tokens):
            if fd >= 0:
                os.close(fd)
        self._outputs, self._passed, self._tokens = [], [], (-1, -1)
        self._unsent.clear()
        self._outbox = self._words = None
        if hasattr(self, "socket"):
            self.socket.close()

    # -- jobs there ------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether something waits until the process takes it."""
        return bool(self._unsent)

    def give(self, jobs: Sequence[JobSpec]) -> None:
        """Hand jobs over, to be run in this order after those that it has."""
        assert len(self._jobs) + len(jobs) <= GIVEN_MAX
        first = self._given + 1
        self._given += len(jobs)
        numbered_jobs = list(enumerate(jobs, first))
        self._jobs.extend([(number, job.seq, job.attempt) for number, job in numbered_jobs])
        blocks = pack_blocks(first, jobs, alone=self._is_lane)
        self._unsent.extend(blocks)
        for number, job in numbered_jobs:
            if job.options is not None:
                self._give_special(number, job, blocks)
        self.flush()  # first the jobs, then the tokens: whoever has a token finds its job
        if self._words is not None:
            tokens = [TOKEN.pack(number) for number in range(first, self._given + 1)]
            try:  # noqa: SIM105 - `suppress` costs more than what it is for
                os.write(self._tokens[1], b"".join(tokens))
            except OSError:  # it has died
                pass
            self._words[GIVEN] = self._given

    def _give_special(self, number: int, job: JobSpec, blocks: list[Block]) -> None:
        """See to what a job asks for; its block is among these."""
        assert job.options is not None
        if job.options.follow:
            self._followed.add((job.seq, job.attempt))
        if job.options.files and self._places is not None:
            jobs, base, blobs = self._places
            folder = f"{jobs}/{self.worker}-{number}"
            files = [entry_of(file).plain() for file in job.options.files]
            block = max((each for each in blocks if each.first <= number), key=_first_of)
            block.buffers.insert(0, pack_files(number, (folder, base, blobs, files)))

    def flush(self) -> None:
        """Write as much as the process takes."""
        try:
            while self._unsent:
                first, buffers = self._unsent[0]
                count = self.socket.sendmsg(buffers[:BUFFERS])
                rest = _without(buffers, count)
                self._unsent.popleft()
                if rest:
                    # Number 0: begun to be written, so it can't be dropped any more.
                    self._unsent.appendleft(Block(0 if count else first, rest))
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # it has died

    def revoke(self) -> int:
        """Take back the jobs that have not begun; return how many: the last ones given.

        ``fault`` says that the process has put tokens back that it had no business with.
        """
        numbers = self._take_tokens()
        if not numbers:
            return 0
        self._revoked += len(numbers)
        for _ in numbers:
            _, *attempt = self._jobs.pop()
            self._followed.discard((attempt[0], attempt[1]))
        if self._words is not None:
            self._words[GIVEN] = numbers[0] - 1
        while self._unsent and self._unsent[-1].first >= numbers[0]:
            self._unsent.pop()
        return len(numbers)

    def mark_interrupt(self) -> None:
        """Tell the process which job the SIGINT that follows is for: the one that it runs."""
        if self._jobs:
            self._interrupted = self._jobs[0][0]
            self._repeats = INTERRUPT_REPEATS
            if self._words is not None:
                self._words[INTERRUPTED] = self._interrupted

    def repeats_interrupt(self) -> bool:
        """Whether the interrupt is to be sent once more: the job has no result yet."""
        if not self._repeats or not self._jobs or self._jobs[0][0] != self._interrupted:
            return False
        self._repeats -= 1
        return True

    def _take_tokens(self) -> list[int]:
        if self._words is None:
            return []
        data = b""
        os.set_blocking(self._tokens[0], False)  # the process could have changed that for both
        with suppress(BlockingIOError):
            data = os.read(self._tokens[0], GIVEN_MAX * TOKEN.size)
        count = len(data) // TOKEN.size
        last = [number for number, _, _ in self._jobs][-count:] if count else []
        if data != b"".join([TOKEN.pack(number) for number in last]):
            self.fault = self.fault or STRANGE_TOKENS
            return []
        return last

    # -- results back ----------------------------------------------------------------------

    def receive(self) -> list[Said]:
        """Return what has arrived. ``silent`` says that was all, ``fault`` that it's nonsense."""
        return self._receive(READS)

    def _receive(self, reads: int) -> list[Said]:
        try:
            while reads and self._receive_once() > 0:
                reads -= 1
        except ProtocolError as error:
            self.fault = str(error)
        said, fit = self._accept(self._intake.take())
        if not fit:
            self.fault = self.fault or STRANGE
        return said

    def _receive_once(self) -> int:
        """Read once; return how many bytes, 0: the end, -1: nothing there."""
        target = self._intake.target
        try:
            if target is not None:
                count = self.socket.recv_into(target)
                if count:
                    self._intake.filled(count)
                self.silent = not count
                return count
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return -1
        except OSError:
            data = b""
        self._intake.receive(memoryview(data))
        self.silent = not data
        # Less than asked for was all there is: no need to be told so.
        return len(data) if len(data) == READ_BYTES or self._intake.target is not None else -1

    def peek(self) -> list[Said]:
        """Return results that wait for company in the outbox of a living process."""
        if self._outbox is None or self._words is None or not self._jobs:
            return []
        head = self._words
        emptied, used = head[EMPTIED], head[USED]
        if not 0 < used <= OUTBOX_BYTES - OUTBOX_HEAD:
            return []
        data = self._outbox[OUTBOX_HEAD : OUTBOX_HEAD + used].tobytes()
        if head[EMPTIED] != emptied:
            return []  # it has been sent meanwhile, and maybe overwritten
        intake = Intake()
        with suppress(ProtocolError):
            intake.receive(memoryview(data))
        # When these don't fit, earlier ones are still on their way through the socket.
        return self._accept(intake.take())[0]

    def _accept(self, ended: list[Ended]) -> tuple[list[Said], bool]:
        """Match results and records with the jobs that were given; leave out what came before.

        Also whether all fit: each was of a job that the process has, and none was left out.
        """
        said: list[Said] = []
        for number, kind, start, end, payload, parts in ended:
            if self._jobs and number == self._jobs[0][0]:
                if kind >= PROVISIONAL:
                    try:
                        said.append(self._converse().tell(kind - 1, payload, parts))
                    except ProtocolError as error:
                        self.fault = str(error)
                        return said, False
                    continue
                _, seq, attempt = self._jobs.popleft()
                self.signals.clear()  # they were meant for that one
                status = FINISHED if kind == RETURNED else TERMINATED
                said.append(JobResult(seq, attempt, status, start, end, payload, parts))
                if self._conversation or self._followed:
                    self._end_conversation(seq, attempt)
            elif number > (self._jobs[0][0] - 1 if self._jobs else self._given):
                return said, False
        return said, True

    # -- records ---------------------------------------------------------------------------

    def _converse(self) -> Conversation:
        """Return the conversation of the first job without a result."""
        if self._conversation is None:
            _, seq, attempt = self._jobs[0]
            self._conversation = Conversation(seq, attempt, self._own_records)
        return self._conversation

    def _end_conversation(self, seq: int, attempt: int) -> None:
        if self._conversation is not None:
            self._own_records = self._conversation.own
        self._conversation = None
        self._followed.discard((seq, attempt))

    def acknowledge(self, seq: int, attempt: int, number: int, error: str) -> None:
        """Tell the process that the client has dealt with records of its present job."""
        talk = self._conversation
        if talk is None or (talk.seq, talk.attempt) != (seq, attempt):
            return
        heard, refusal = talk.hear(number, error)
        if heard:
            # Before the jobs that wait, but not into what is half written.
            begun = int(bool(self._unsent) and not self._unsent[0].first)
            self._unsent.insert(begun, Block(0, [pack_heard(heard, refusal[:REFUSAL_CHARS])]))
            self.flush()

    def follow(self, seq: int, attempt: int) -> None:
        """Have the output of a job told, if the process has it."""
        if any(job[1:] == (seq, attempt) for job in self._jobs):
            self._followed.add((seq, attempt))

    @property
    def is_followed(self) -> bool:
        """Whether the output of the first job without a result is to be told."""
        return bool(self._followed and self._jobs) and self._jobs[0][1:] in self._followed

    def needs_nudge(self) -> bool:
        """Whether the process is still to be told that its job is followed.

        More than once: in a lane, what comes between two jobs may reach the wrong one.
        """
        if not self.is_followed:
            return False
        number, (told, times) = self._jobs[0][0], self._nudged
        self._nudged = number, times + 1 if told == number else 1
        return self._nudged[1] <= NUDGES

    def read_more_output(self) -> list[Said]:
        """Return what the followed job has written since the last time, and what it has said.

        What has been read is of that job only when it still runs then: before a process runs
        another one, or has another take its place, it says that it doesn't, and empties the files.
        """
        number = self._jobs[0][0]
        talk = self._converse()
        read = [
            os.pread(fd, min(RECORD_BYTES, OUTPUT_BYTES - told), told)
            for fd, told in zip(self._outputs, talk.told, strict=True)
        ]
        runs = self._words is not None and self._words[RUNNING] == number
        said = [] if self.silent else self._receive(READS)
        said += self.peek()
        if runs and not self.fault and self._jobs and self._jobs[0][0] == number:
            for stream, data in enumerate(read, 1):
                if data and talk.has_room:
                    said.append(talk.tell_output(stream, data))
        return said

    # -- what is left ----------------------------------------------------------------------

    def last_results(self) -> list[Said]:
        """Return the results that a dead process has sent or left behind."""
        results = [] if self.fault or self.silent else self._receive(-1)
        return results + self.peek()

    def count_started(self) -> int:
        """How many of the jobs given to a dead process had begun, ever."""
        self.revoke()
        return self._given - self._revoked

    @property
    def unfinished(self) -> bool:
        """After `count_started`: whether a job that had begun has no result."""
        return bool(self._jobs)

    def output(self) -> tuple[bytes, bytes]:
        """Return what is in stdout and stderr: of a dead process, what its last job wrote."""
        stdout, stderr = [read_output(fd, os.fstat(fd).st_size) for fd in self._outputs]
        return stdout, stderr

    def cut_output(self) -> None:
        """Throw away what a job has written beyond the limit, before it fills the memory."""
        for fd in self._outputs:
            if os.fstat(fd).st_size > OUTPUT_BYTES + 1:
                os.ftruncate(fd, OUTPUT_BYTES + 1)  # one more, so that it shows as cut

    def explain(self, code: int, peak_kib: int) -> str:
        """Say why a process that ended this way has left a job without a result."""
        if self.fault or self.retired:
            return self.fault
        if self._is_lane and self._words is not None:
            peak_kib = self._words[PEAK] or peak_kib
        if code == EXIT_UNREACHABLE:
            return "the job closed the connection between its process and the node"
        if code >= 0:
            return f"the job's process ended before the job did, with exit code {code} (os._exit?)"
        return f"the job's process was killed by {self._describe_signal(-code, peak_kib)}"

    def _describe_signal(self, signum: int, peak_kib: int) -> str:
        text = describe_signal(signum)
        if signum in self.signals:
            return f"{text}, sent by the node"
        if signum == signal.SIGKILL:
            return f"{text}: likely out of memory (it used {peak_kib // 1024} MiB), or by hand"
        return text


def _first_of(block: Block) -> int:
    return block.first


def describe_signal(signum: int) -> str:
    """Return the signal's name and what it means."""
    try:
        name = signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
    meaning = signal.strsignal(signum) or ""
    return f"{name} ({meaning.lower()})"


def _without(buffers: list[Buffer], count: int) -> list[Buffer]:
    """Leave out the first ``count`` bytes."""
    done = 0
    while done < len(buffers) and count >= len(buffers[done]):
        count -= len(buffers[done])
        done += 1
    rest = buffers[done:]
    if count:
        rest[0] = memoryview(rest[0])[count:]
    return rest
