"""The launcher with real processes: every way in which a job can end, and that nothing remains."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import pytest

from dispy.node.daemon import CLOSE_S
from dispy.node.launcher import Launcher
from dispy.node.processevents import (
    Event,
    Outcomes,
    TemplateFailed,
    TemplateGone,
    TemplateReady,
    WorkerExited,
    ZygoteLost,
)
from dispy.protocol.messages import (
    FINISHED,
    TERMINATED,
    Code,
    ComputationSpec,
    JobResult,
    JobSpec,
    Prepare,
)
from dispy.protocol.payload import (
    INLINE_BYTES,
    ResultBody,
    pack_object,
    unpack_object,
    unpack_result,
)
from dispy.protocol.wire import chunked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and memfd")

DEADLINE_S = 30.0
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
COMPUTATION = 1
E = TypeVar("E", bound=Event)


class Node:
    """A launcher and the loop around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = {"dispy_node_name": "testnode"}
        places = folder / "blobs", folder / "files"
        self.launcher = Launcher(folder, names, *places)
        self.launcher.start()
        self.workers = 0
        self.jobs = 0
        self._events: list[Event] = []

    def expect(self, kind: type[E], wanted: Callable[[E], bool] = lambda _: True) -> E:
        """Wait for an event; others stay for later."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            for event in self._events:
                if isinstance(event, kind) and wanted(event):
                    self._events.remove(event)
                    return event
            select.select([self.launcher.fileno()], [], [], 0.1)
            self.launcher.receive()
            self.launcher.workers.tick()
            self._events += self.launcher.take_events()
        raise AssertionError(f"no {kind.__name__}; there is {self._events}")

    def prepare(self, function: Callable[..., Any], computation: int = COMPUTATION) -> None:
        layer = pack_object([], cloudpickle.dumps(({}, function, None, None)))
        self.load(JobSpec(0, 0, layer), computation)
        self.expect(TemplateReady)

    def load(self, layer: JobSpec, computation: int = COMPUTATION) -> None:
        spec = ComputationSpec("test", [Code(PYTHON, layer)])
        self.launcher.prepare(Prepare(computation, spec))

    def spawn(self, max_tasks: int = 1, computation: int = COMPUTATION) -> int:
        self.workers += 1
        self.launcher.workers.spawn(computation, self.workers, max_tasks)
        return self.workers

    def give(self, worker: int, *arguments: tuple[Any, ...]) -> None:
        self.launcher.workers.give(worker, [self.spec(*each) for each in arguments])

    def spec(self, *args: Any) -> JobSpec:
        self.jobs += 1
        return job(self.jobs, args)

    def results(self, worker: int, count: int) -> list[JobResult]:
        found: list[JobResult] = []
        while len(found) < count:
            found += self.expect(Outcomes, lambda event: event.worker == worker).results
        assert len(found) == count
        return found

    def exit(self, worker: int) -> WorkerExited:
        return self.expect(WorkerExited, lambda event: event.worker == worker)

    def run(self, function: Callable[..., Any], *args: Any) -> tuple[JobResult, ResultBody]:
        """Run one job in a process of its own, to its result."""
        self.prepare(function)
        worker = self.spawn()
        self.give(worker, args)
        (result,) = self.results(worker, 1)
        self.launcher.workers.retire(worker)
        exited = self.exit(worker)
        assert (exited.started, exited.reason) == (1, "")
        return result, body_of(result)

    def crash(self, function: Callable[..., Any], *args: Any) -> WorkerExited:
        """Run one job that takes its process with it."""
        self.prepare(function)
        worker = self.spawn()
        self.give(worker, args)
        exited = self.exit(worker)
        assert exited.started == 1
        return exited

    @property
    def zygote(self) -> subprocess.Popen[bytes]:
        """The process at the top of all others."""
        zygote = self.launcher._zygote
        assert zygote is not None
        return zygote.process

    def pids_below(self) -> set[int]:
        """All descendants of the zygote, and itself."""
        return {self.zygote.pid} | descendants(self.zygote.pid)


def job(seq: int, args: tuple[Any, ...]) -> JobSpec:
    views: list[memoryview] = []

    def offer(buffer: pickle.PickleBuffer) -> bool:
        views.append(buffer.raw())
        return False

    wrapped = tuple(pickle.PickleBuffer(each) if is_large(each) else each for each in args)
    stream = pickle.dumps((wrapped, {}), 5, buffer_callback=offer)
    payload = pack_object([view.readonly for view in views], stream)
    parts = [chunked(view) for view in views]
    if len(payload) >= INLINE_BYTES:
        return JobSpec(seq, 1, b"", [chunked(payload), *parts])
    return JobSpec(seq, 1, payload, parts)


def is_large(value: object) -> bool:
    return isinstance(value, (bytes, bytearray)) and len(value) >= INLINE_BYTES


def body_of(result: JobResult) -> ResultBody:
    return unpack_result(result.payload or result.parts[0].tobytes())


def value_of(result: JobResult) -> Any:
    body = body_of(result)
    readonly, stream = unpack_object(body.value)
    parts = result.parts if result.payload else result.parts[1:]
    buffers = [
        part.tobytes() if constant else bytearray(part.tobytes())
        for constant, part in zip(readonly, parts, strict=True)
    ]
    return pickle.loads(stream, buffers=buffers)


def descendants(pid: int) -> set[int]:
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while alive := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() < deadline, f"still there: {alive}"
        select.select([], [], [], 0.005)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folder = tmp_path / "node"
    folder.mkdir()
    node = Node(folder)
    yield node
    pids = node.pids_below()
    node.launcher.close(10.0)
    wait_until_gone(pids)
    assert not list(folder.glob("*"))


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A pipe by name: opening one end waits until the other is opened."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


# -- ends of a job --------------------------------------------------------------------------


def test_returns(node: Node) -> None:
    def function(a: int, b: int) -> int:
        print("out")
        print("err", file=sys.stderr)
        os.system("echo from a program")
        return a + b

    before = time.time()
    result, body = node.run(function, 2, 3)
    assert (result.seq, result.attempt, result.status) == (1, 1, FINISHED)
    assert before <= result.start <= result.end <= time.time()
    assert value_of(result) == 5
    assert sorted(body.stdout.splitlines()) == [b"from a program", b"out"]
    assert body[2:] == (b"err\n", "")


def test_raises(node: Node) -> None:
    def function() -> None:
        print("before")
        raise KeyError("missing")

    result, body = node.run(function)
    assert result.status == TERMINATED
    assert body.exception.startswith("Traceback") and "KeyError: 'missing'" in body.exception
    assert "runner.py" not in body.exception
    assert body.stdout == b"before\n"
    error = value_of(result)
    assert type(error) is KeyError and error.args == ("missing",)


def test_raises_what_does_not_come_back(node: Node) -> None:
    def function() -> None:
        class Odd(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__("one text")

        raise Odd(1, 2)

    _, body = node.run(function)
    assert "Odd: one text" in body.exception and not body.value


def test_calls_sys_exit(node: Node) -> None:
    result, body = node.run(lambda: sys.exit(3))
    assert (result.status, body.exception) == (TERMINATED, "the job called sys.exit(3)")


def test_ends_its_process(node: Node) -> None:
    def function() -> None:
        print("last words", flush=True)
        os._exit(7)

    exited = node.crash(function)
    assert "exit code 7" in exited.reason and exited.stdout == b"last words\n"


def test_segfaults(node: Node) -> None:
    def function() -> None:
        import ctypes

        ctypes.string_at(0)

    assert "SIGSEGV (segmentation fault)" in node.crash(function).reason


def test_is_killed_by_hand(node: Node) -> None:
    exited = node.crash(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert "SIGKILL" in exited.reason and "out of memory" in exited.reason


def test_returns_what_can_not_be_pickled(node: Node) -> None:
    def function() -> Any:
        import threading

        return threading.Lock()

    result, body = node.run(function)
    assert result.status == TERMINATED
    assert "can't be pickled" in body.exception and "lock" in body.exception


def test_argument_that_can_not_be_unpickled(node: Node) -> None:
    node.prepare(lambda argument: None)
    worker = node.spawn(0)
    stream = b"cno_such_module\nname\n."
    node.launcher.workers.give(worker, [JobSpec(1, 1, pack_object([], stream))])
    node.launcher.workers.give(worker, [JobSpec(2, 1, b"\x05")])
    node.launcher.workers.give(worker, [job(3, (1,))])
    results = node.results(worker, 2)
    assert "No module named 'no_such_module'" in body_of(results[0]).exception
    assert "could not be unpickled" in body_of(results[1]).exception
    # Where the next job begins can't be known after that, so the process has ended.
    assert node.exit(worker).started == 2


def test_forks_and_returns_twice(node: Node) -> None:
    def function() -> int:
        os.fork()
        return os.getpid()

    result, _ = node.run(function)
    assert result.status == FINISHED


def test_leaves_processes_behind(node: Node) -> None:
    def function() -> list[int]:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execlp("sleep", "sleep", "1000")
            os._exit(0)
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        same_group = subprocess.Popen(["sh", "-c", "trap '' TERM INT; sleep 1000"])
        return [child.pid, same_group.pid]

    result, _ = node.run(function)
    wait_until_gone(set(value_of(result)))
    template = node.launcher._templates[COMPUTATION]
    assert not template.workers
    deadline = time.monotonic() + DEADLINE_S
    while len(node.pids_below()) > 2:  # the zygote and the template
        assert time.monotonic() < deadline


def test_prints_without_end(node: Node) -> None:
    def function() -> None:
        line = b"x" * (1 << 20)
        for _ in range(1024):
            os.write(1, line)

    result, body = node.run(function)
    assert result.status == FINISHED
    assert len(body.stdout) < (1 << 20) + 100 and body.stdout.endswith(b"bytes]\n")


# -- what a job finds -----------------------------------------------------------------------


def test_surroundings(node: Node) -> None:
    def link_of(fd: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]
        except OSError:
            return ""

    def function() -> dict[str, Any]:
        return {
            "names": (dispy_job_path, dispy_node_name),  # type: ignore[name-defined] # noqa: F821
            "folder": os.getcwd(),
            "leader": os.getpid() == os.getpgrp(),
            "open": [link_of(fd) for fd in range(40)],
            "stdin": sys.stdin.read(),
            "main": vars(sys.modules["__main__"]).keys() - {"__builtins__"},
            "modules": {"zmq", "msgspec", "dispy.node.launcher"} & sys.modules.keys(),
        }

    result, _ = node.run(function)
    found = value_of(result)
    folder = found["folder"]
    assert found["names"] == (folder, "testnode") and folder.endswith("computation-1")
    assert found["leader"] and found["stdin"] == "" and not found["modules"]
    assert not {name for name in found["main"] if not name.startswith("__")}
    log = os.readlink("/proc/self/fd/2").partition(":")[0]
    # Its outputs are there twice: a job may close or redirect those that it writes to.
    # What it takes over from the process before, and leaves to the next, are memory and pipes;
    # what it has rehearsed with is of the lane, as the list of its children is.
    expected = ["/dev/null", *["/memfd"] * 6, *["pipe"] * 5, "socket", log, log]
    expected += ["/dev/null", *["pipe"] * 4, "socket", "socket"]
    opened = [name for name in found["open"] if name and not name.endswith("/children")]
    assert sorted(opened) == sorted(expected)


def test_secrets_stay_at_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_SECRET", "hush")
    node = Node(tmp_path)
    try:
        result, _ = node.run(lambda: os.environ.get("DISPY_SECRET"))
        assert value_of(result) is None
    finally:
        node.launcher.close(10.0)


def test_random_numbers_differ(node: Node) -> None:
    import random

    node.prepare(lambda: random.random())
    workers = [node.spawn() for _ in range(3)]
    for worker in workers:
        node.give(worker, ())
    assert len({value_of(node.results(worker, 1)[0]) for worker in workers}) == 3


def test_classes_of_main(node: Node) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Point:\n  x = 1\ndef function(): return Point()", namespace)
    result, _ = node.run(namespace["function"])
    assert value_of(result).x == 1


def test_threads_and_locks_work_in_jobs(node: Node) -> None:
    def function() -> list[int]:
        import logging
        import multiprocessing
        from concurrent.futures import ThreadPoolExecutor

        logging.getLogger("job").warning("to stderr")
        with ThreadPoolExecutor(2) as threads:
            done = list(threads.map(abs, [-1, -2]))
            with multiprocessing.get_context("fork").Pool(2) as processes:
                return done + processes.map(abs, [-3, -4])

    result, body = node.run(function)
    assert body.exception == ""
    assert value_of(result) == [1, 2, 3, 4] and body.stderr == b"to stderr\n"


# -- payloads -------------------------------------------------------------------------------


def test_large_payloads_both_ways(node: Node) -> None:
    def function(constant: bytes, writable: bytearray) -> bytes:
        writable[0] = 1
        assert type(constant) is bytes
        return constant

    constant, writable = os.urandom(32 << 20), bytearray(32 << 20)
    result, body = node.run(function, constant, writable)
    assert body.exception == ""
    assert value_of(result) == constant
    assert all(len(chunk) <= 1 << 20 for part in result.parts for chunk in part.chunks)


def test_large_values_that_are_no_buffers(node: Node) -> None:
    numbers = list(range(1 << 18))
    node.prepare(lambda numbers: numbers[::-1])
    worker = node.spawn(0)
    node.give(worker, (numbers,), ([1],), (numbers,))
    results = node.results(worker, 3)
    assert [value_of(result) for result in results] == [numbers[::-1], [1], numbers[::-1]]


def test_large_payloads_of_revoked_jobs_are_skipped(node: Node, fifo: Path) -> None:
    node.prepare(lambda data: data.read_text() if isinstance(data, Path) else len(data))
    worker = node.spawn(0)
    node.give(worker, (fifo,), (bytes(1 << 20),), (bytes(3 << 20),))
    with fifo.open("w"):  # opens when the first job does
        assert node.launcher.workers.revoke(worker) == 2
    node.give(worker, (bytes(5 << 20),))
    assert [value_of(result) for result in node.results(worker, 2)] == ["", 5 << 20]


# -- processes for many jobs ----------------------------------------------------------------


def test_many_jobs_in_one_process(node: Node) -> None:
    def function(number: int) -> int:
        print(number, end="")
        return os.getpid()

    node.prepare(function)
    worker = node.spawn(0)
    node.give(worker, *[(number,) for number in range(1000)])
    results = node.results(worker, 1000)
    assert [result.seq for result in results] == list(range(1, 1001))
    assert [body_of(result).stdout for result in results] == [b"%d" % n for n in range(1000)]
    assert len({value_of(result) for result in results}) == 1


def test_process_ends_after_its_last_job(node: Node) -> None:
    node.prepare(abs)
    worker = node.spawn(3)
    node.give(worker, (-1,), (-2,), (-3,))
    assert [value_of(result) for result in node.results(worker, 3)] == [1, 2, 3]
    assert node.exit(worker) == WorkerExited(worker, 3, "")


def test_killed_in_a_batch(node: Node) -> None:
    def function(number: int) -> int:
        if number == 57:
            print("fatal", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    node.prepare(function)
    worker = node.spawn(0)
    node.give(worker, *[(number,) for number in range(100)])
    results = node.results(worker, 57)
    assert [value_of(result) for result in results] == list(range(57))
    exited = node.exit(worker)
    assert exited.started == 58 and exited.stdout == b"fatal\n"


def test_results_do_not_wait_for_a_long_job(node: Node, fifo: Path) -> None:
    node.prepare(lambda path: path.read_text() if path else "quick")
    worker = node.spawn(0)
    node.give(worker, (None,), (None,), (fifo,))
    assert [value_of(result) for result in node.results(worker, 2)] == ["quick"] * 2
    fifo.write_text("done")
    assert value_of(node.results(worker, 1)[0]) == "done"


def test_revoke_and_give_again(node: Node, fifo: Path) -> None:
    node.prepare(lambda each: each.read_text() if isinstance(each, Path) else each)
    worker = node.spawn(0)
    for _ in range(5):
        node.give(worker, (fifo,), *[(number,) for number in range(20)])
        with fifo.open("w"):
            assert node.launcher.workers.revoke(worker) == 20
            assert node.launcher.workers.revoke(worker) == 0
            node.give(worker, *[(number,) for number in range(100, 110)])
        results = node.results(worker, 11)
        assert [value_of(result) for result in results] == ["", *range(100, 110)]
    node.launcher.workers.kill(worker)
    exited = node.exit(worker)
    assert exited.started == 55 and "sent by the node" in exited.reason


# -- cancelling -----------------------------------------------------------------------------


@pytest.mark.parametrize("max_tasks", [0, 1])
def test_interrupt(node: Node, fifo: Path, max_tasks: int) -> None:
    def function() -> None:
        with open(fifo) as file:
            file.read(1)
            time.sleep(1000)

    node.prepare(function)
    worker = node.spawn(max_tasks)
    node.give(worker, ())
    with fifo.open("w") as file:
        file.write("x")
    node.launcher.workers.interrupt(worker)
    (result,) = node.results(worker, 1)
    assert result.status == TERMINATED
    assert body_of(result).exception.startswith("the job was cancelled")


@pytest.mark.parametrize("max_tasks", [0, 1])
def test_interrupt_before_the_job_begins(node: Node, max_tasks: int) -> None:
    node.prepare(lambda: time.sleep(1000))
    worker = node.spawn(max_tasks)
    node.give(worker, ())
    node.launcher.workers.interrupt(worker)  # the process is hardly forked
    (result,) = node.results(worker, 1)
    assert body_of(result).exception.startswith("the job was cancelled")


def test_interrupt_hits_no_later_job(node: Node) -> None:
    node.prepare(lambda number: number)
    worker = node.spawn(0)
    for number in range(300):
        node.give(worker, (number,))
        node.launcher.workers.interrupt(worker)
        node.results(worker, 1)
        node.give(worker, (-number,))
        assert value_of(node.results(worker, 1)[0]) == -number


def test_cancelled_job_may_finish(node: Node, fifo: Path) -> None:

    def function() -> str:
        try:
            with open(fifo) as file:
                file.read(1)
            time.sleep(1000)
        except KeyboardInterrupt:
            return "saved"
        return ""

    node.prepare(function)
    worker = node.spawn()
    node.give(worker, ())
    with fifo.open("w") as file:
        file.write("x")
    node.launcher.workers.interrupt(worker)
    (result,) = node.results(worker, 1)
    assert (result.status, value_of(result)) == (FINISHED, "saved")


def test_terminate_and_kill(node: Node) -> None:
    node.prepare(lambda: time.sleep(1000))
    workers = node.spawn(), node.spawn()
    for worker in workers:
        node.give(worker, ())
    node.launcher.workers.terminate(workers[0])
    node.launcher.workers.kill(workers[1])
    assert "SIGTERM (terminated), sent by the node" in node.exit(workers[0]).reason
    assert "SIGKILL (killed), sent by the node" in node.exit(workers[1]).reason


# -- computations ---------------------------------------------------------------------------


def test_function_that_can_not_be_loaded(node: Node) -> None:
    code = pack_object([], b"cno_such_module\nname\n.")
    node.load(JobSpec(0, 0, code))
    assert "No module named 'no_such_module'" in node.expect(TemplateFailed).reason
    node.launcher.release(COMPUTATION)
    node.expect(TemplateGone)


def test_function_with_much_data(node: Node) -> None:
    table = bytes(3 << 20)
    views: list[memoryview] = []
    stream = cloudpickle.dumps(
        ({}, lambda number: table[number], None, None),
        5,
        buffer_callback=lambda buffer: views.append(buffer.raw()),
    )
    code = pack_object([view.readonly for view in views], stream)
    node.load(JobSpec(0, 0, b"", [chunked(code), *map(chunked, views)]))
    node.expect(TemplateReady)
    worker = node.spawn()
    node.give(worker, (7,))
    assert value_of(node.results(worker, 1)[0]) == 0


def test_release_leaves_nothing(node: Node) -> None:
    def function() -> None:
        if os.fork() == 0:
            os.setsid()
            os.execlp("sleep", "sleep", "1000")
        Path("file").write_text("data")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)

    node.prepare(function)
    for max_tasks in (0, 1, 1):
        node.give(node.spawn(max_tasks), ())
    wait_for_sleepers(node, 3)
    pids = node.pids_below()
    node.launcher.release(COMPUTATION)
    node.expect(TemplateGone)
    assert len(node.pids_below()) == 1
    wait_until_gone(pids - node.pids_below())
    assert not list(node.folder.glob("*"))
    node.prepare(abs)  # the number can be used again


def wait_for_sleepers(node: Node, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while sum(is_sleep(pid) for pid in node.pids_below()) < count:
        assert time.monotonic() < deadline
        node.launcher.receive()


def is_sleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep")
    except OSError:
        return False


def test_killed_template(node: Node) -> None:
    def function() -> None:
        if os.fork() == 0:
            os.setsid()
            os.execlp("sleep", "sleep", "1000")
        time.sleep(1000)

    node.prepare(function)
    worker = node.spawn()
    node.give(worker, ())
    wait_for_sleepers(node, 1)
    zygote = node.zygote
    pids = node.pids_below() - {zygote.pid}
    (template,) = [pid for pid in pids if parent_of(pid) == zygote.pid]
    os.kill(template, signal.SIGKILL)
    assert "SIGKILL" in node.exit(worker).reason
    assert "SIGKILL" in node.expect(TemplateFailed).reason
    wait_until_gone(pids)


def parent_of(pid: int) -> int | None:
    """Its parent's pid; None when it has ended meanwhile."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_killed_zygote(node: Node) -> None:
    node.prepare(lambda: time.sleep(1000))
    worker = node.spawn()
    node.give(worker, ())
    zygote = node.zygote
    pids = node.pids_below()
    zygote.kill()
    node.expect(ZygoteLost)
    node.exit(worker)
    node.expect(TemplateFailed)
    wait_until_gone(pids)
    node.prepare(abs)  # starts another zygote
    worker = node.spawn()
    node.give(worker, (-1,))
    assert value_of(node.results(worker, 1)[0]) == 1


def test_zygote_that_is_ended_by_hand_leaves_the_node_its_folder(node: Node) -> None:
    zygote = node.zygote
    node.prepare(abs)
    blob = node.folder / "blob"
    blob.write_text("")
    zygote.terminate()
    node.expect(ZygoteLost)
    node.expect(TemplateFailed)
    blob.unlink()  # it is still there
    assert node.run(abs, -1)[1].exception == ""


def test_spawn_that_is_not_possible(node: Node) -> None:
    node.launcher.workers.spawn(99, 1, 1)
    assert node.exit(1).started == 0


def test_computation_that_can_not_be_started(node: Node) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    zygote = node.zygote
    zygote.kill()
    node.expect(ZygoteLost)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        node.load(JobSpec(0, 0, b""))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "can't start it: " in node.expect(TemplateFailed).reason
    node.launcher.release(COMPUTATION)
    node.expect(TemplateGone)
    assert node.run(abs, -1)[1].exception == ""  # it goes on


def test_fork_that_is_not_possible(node: Node) -> None:
    """The template has no descriptors left, so those of a new process don't get there."""
    text = (
        "[__import__('resource').setrlimit(7, (30, 30)),"
        "[os.dup(0) for _ in range(30 - len(os.listdir('/proc/self/fd')))],"
        "({}, abs, None, None)][-1]"
    )
    code = pack_object([], pickle.dumps(Loader(text)))
    node.load(JobSpec(0, 0, code))
    node.expect(TemplateReady)
    worker = node.spawn()
    node.give(worker, (1,))
    exited = node.exit(worker)
    assert exited.started == 0
    assert "could not be started: too many open files" in exited.reason


class Loader:
    """Evaluates a text where it's unpickled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return eval, (self.text,)


def test_nonsense_from_a_job_process(node: Node) -> None:
    def function() -> None:
        import socket

        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and "socket" in os.path.realpath(f"/proc/self/fd/{name}"):
                socket.socket(fileno=int(name)).sendall(b"\xff" * 10000)
        time.sleep(1000)

    assert "something that is no result" in node.crash(function).reason


# -- the end of the node --------------------------------------------------------------------

DAEMON = """
import os, select, sys, pathlib, cloudpickle
sys.path.insert(0, sys.argv[2])
from dispy.node.launcher import Launcher
from dispy.node.processevents import TemplateReady
from dispy.protocol.messages import Code, ComputationSpec, JobSpec, Prepare
from dispy.protocol.payload import pack_object
import pickle

def function():
    if os.fork() == 0:
        os.setsid()
        os.execlp("sleep", "sleep", "1000")
    os.system("exec sleep 1000")

folder = pathlib.Path(sys.argv[1])
launcher = Launcher(folder, {}, folder, folder)
launcher.start()
layer = JobSpec(0, 0, pack_object([], cloudpickle.dumps(({}, function, None, None))))
python = "%d.%d" % sys.version_info[:2]
launcher.prepare(Prepare(1, ComputationSpec("", [Code(python, layer)])))
while not any(isinstance(event, TemplateReady) for event in launcher.take_events()):
    select.select([launcher.fileno()], [], [])
    launcher.receive()
arguments = pack_object([], pickle.dumps(((), {})))
for worker, max_tasks in ((1, 1), (2, 0), (3, 1)):
    launcher.workers.spawn(1, worker, max_tasks)
    if worker < 3:
        launcher.workers.give(worker, [JobSpec(worker, 1, arguments)])
print("ready", flush=True)
while True:
    select.select([launcher.fileno()], [], [])
    launcher.receive()
"""


def test_node_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DAEMON, str(tmp_path), ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None and daemon.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + DEADLINE_S
        while sum(map(is_sleep, descendants(daemon.pid))) < 4:
            assert time.monotonic() < deadline
        pids = descendants(daemon.pid)
        daemon.kill()
    wait_until_gone(pids)
    assert not list(tmp_path.glob("*"))


def test_close_while_jobs_run(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.prepare(lambda: time.sleep(1000))
    for max_tasks in (0, 1):
        node.give(node.spawn(max_tasks), ())
    pids = node.pids_below()
    node.launcher.close(10.0)
    wait_until_gone(pids)
    assert not list(tmp_path.glob("*"))


def test_close_while_code_that_takes_no_signals_is_loaded(tmp_path: Path) -> None:
    node = Node(tmp_path)
    text = (
        f"[__import__('signal').pthread_sigmask(0, [{int(signal.SIGTERM)}]),"
        "os.mkdir('loading'), time.sleep(1000)]"
    )
    node.load(JobSpec(0, 0, pack_object([], pickle.dumps(Loader(text)))))
    while not list(tmp_path.glob("*/loading")):
        node.launcher.receive()
    pids = node.pids_below()
    node.launcher.close(CLOSE_S)
    assert not any(map(is_alive, pids))
    assert not list(tmp_path.glob("*"))
