"""What the code of a client finds at the node, with real processes, and what it leaves."""

from __future__ import annotations

import os
import pickle
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dispy.node.launcher import Launcher
from dispy.node.processevents import (
    Event,
    FilePlaced,
    LayerFailed,
    Outcomes,
    Recorded,
    ShutdownAsked,
    TemplateFailed,
    TemplateGone,
    TemplateReady,
    WorkerExited,
)
from dispy.protocol.blobs import digest_of, file_name
from dispy.protocol.messages import (
    FILE,
    FINISHED,
    OUTPUT,
    PROVISIONAL,
    TERMINATED,
    Code,
    ComputationSpec,
    FileSpec,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    Prepare,
)
from dispy.protocol.payload import (
    pack_object,
    unpack_file_piece,
    unpack_object,
    unpack_output,
    unpack_result,
)
from dispy.protocol.wire import chunked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and memfd")

DEADLINE_S = 30.0
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
E = TypeVar("E", bound=Event)


class Evaluated:
    """Is what a text says, where it's unpickled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return eval, (self.text,)


def layer(source: str, function: str = "None", names: str = "", cleanup: str = "None") -> Code:
    """Code that defines ``names`` of a source in the main module, as a client's pickle does."""
    named = ", ".join(f"{name!r}: main[{name!r}]" for name in names.split())
    chosen = f"{{'__main__': {{{named}}}}}"
    setup = "main.get('setup')"
    text = (
        "[(main := __import__('sys').modules['__main__'].__dict__), "
        f"exec({source!r}, main), ({chosen}, main.get({function!r}), {setup}, "
        f"main.get({cleanup!r}))][-1]"
    )
    return Code(PYTHON, JobSpec(0, 0, pack_object([], pickle.dumps(Evaluated(text)))))


def arguments(*args: Any) -> bytes:
    return pack_object([], pickle.dumps((args, {}), 5))


class Node:
    """A launcher, its folders, and the loop around it. It hears records when it sees them."""

    def __init__(self, folder: Path, client_shutdown: bool = False) -> None:
        for name in ("own", "blobs", "files"):
            (folder / name).mkdir()
        self.blobs, self.files, self.own = folder / "blobs", folder / "files", folder / "own"
        names = {"dispy_node_name": "testnode"}
        self.launcher = Launcher(self.own, names, self.blobs, self.files, client_shutdown)
        self.launcher.start()
        self.records: list[JobRecord] = []
        self.hears = True
        self.refusal = ""
        self.jobs = self.workers = 0
        self.events: list[Event] = []

    def turn(self) -> None:
        select.select([self.launcher.fileno()], [], [], 0.05)
        self.launcher.receive()
        self.launcher.workers.tick()
        for event in self.launcher.take_events():
            if isinstance(event, Recorded):
                self._on_records(event)
            self.events.append(event)

    def _on_records(self, event: Recorded) -> None:
        self.records += event.records
        for record in event.records if self.hears else ():
            refusal = self.refusal if record.kind == FILE else ""
            number = record.number
            attempt = record.seq, record.attempt
            self.launcher.workers.acknowledge(event.worker, *attempt, number, refusal)

    def expect(self, kind: type[E], wanted: Callable[[E], bool] = lambda _: True) -> E:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            for event in self.events:
                if isinstance(event, kind) and wanted(event):
                    self.events.remove(event)
                    return event
                failed = isinstance(event, TemplateFailed) and kind is TemplateReady
                assert not failed, event
            self.turn()
        raise AssertionError(f"no {kind.__name__}; there is {self.events}")

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def file(self, path: str, content: bytes, mode: int = 0o644) -> FileSpec:
        """Put a content into the store."""
        digest = digest_of(content)
        (self.blobs / file_name(digest)).write_bytes(content)
        return FileSpec(path, digest, len(content), mode, 1_000_000_000.25)

    def prepare(self, *layers: Code, setup_args: tuple[Any, ...] = (), **fields: Any) -> None:
        self.start(*layers, setup_args=setup_args, **fields)
        self.expect(TemplateReady)

    def start(self, *layers: Code, setup_args: tuple[Any, ...] = (), **fields: Any) -> None:
        spec = ComputationSpec("test", list(layers), **fields)
        packed = JobSpec(0, 0, arguments(*setup_args)) if setup_args else None
        self.launcher.prepare(Prepare(1, spec, setup_args=packed))

    def spawn(self, max_tasks: int = 1) -> int:
        self.workers += 1
        self.launcher.workers.spawn(1, self.workers, max_tasks)
        return self.workers

    def give(self, worker: int, payload: bytes, **options: Any) -> None:
        self.jobs += 1
        chosen = JobOptions(**options) if options else None
        self.launcher.workers.give(worker, [JobSpec(self.jobs, 1, payload, [], chosen)])

    def result(self, worker: int) -> JobResult:
        for event in self.events:
            assert not (isinstance(event, WorkerExited) and event.reason), event
        (result,) = self.expect(Outcomes, lambda event: event.worker == worker).results
        return result

    def run(self, *args: Any, **options: Any) -> JobResult:
        worker = self.spawn()
        self.give(worker, arguments(*args), **options)
        return self.result(worker)

    def value(self, *args: Any, **options: Any) -> Any:
        return value_of(self.run(*args, **options))

    def reason(self, *layers: Code, **fields: Any) -> str:
        """Prepare what can't be prepared."""
        self.start(*layers, **fields)
        return self.expect(TemplateFailed).reason

    def release(self, keep: bool = False) -> None:
        self.launcher.release(1, keep)
        self.expect(TemplateGone)


def body_of(result: JobResult) -> Any:
    return unpack_result(result.payload or result.parts[0].tobytes())


def value_of(result: JobResult) -> Any:
    body = body_of(result)
    assert not body.exception, body.exception
    return pickle.loads(unpack_object(body.value)[1])


def content_of(record: JobRecord) -> bytes:
    return record.payload or record.parts[0].tobytes()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.launcher.close(10.0)
    assert not list(node.own.glob("*"))


# -- layers ---------------------------------------------------------------------------------


def test_arguments_refer_to_classes_of_the_main_module(node: Node) -> None:
    code = layer(
        "class C:\n  x = 1\ndef f(stream):\n  import pickle\n"
        "  return type(pickle.loads(stream)) is C and pickle.loads(stream).x, C()",
        "f",
        "C f",
    )
    node.prepare(code)
    result = node.run(b"c__main__\nC\n)\x81.")
    stream = bytes(unpack_object(body_of(result).value)[1])
    assert b"cloudpickle" not in stream and b"__main__" in stream, "the client's class, by name"


def test_later_layers(node: Node) -> None:
    node.prepare(layer("def f(stream):\n  import pickle\n  return pickle.loads(stream).y", "f"))
    old = node.spawn(0)
    node.launcher.define(1, [layer("class D:\n  y = 2", names="D")])
    assert node.value(b"c__main__\nD\n)\x81.") == 2
    node.launcher.workers.retire(old)
    assert node.expect(WorkerExited, lambda event: event.worker == old).reason == ""


def test_a_later_layer_that_fails(node: Node) -> None:
    node.prepare(layer("f = abs", "f"))
    node.launcher.define(1, [layer("raise ValueError('no good')")])
    assert "no good" in node.expect(LayerFailed).reason
    assert node.value(-1) == 1


def test_modules_that_only_the_client_has(node: Node) -> None:
    names = "({'far.away': {'g': lambda: 5}}, lambda: __import__('far.away').away.g(), None, None)"
    code = Code(PYTHON, JobSpec(0, 0, pack_object([], pickle.dumps(Evaluated(names)))))
    node.prepare(code)
    assert node.value() == 5


def test_names_without_import(node: Node) -> None:
    source = "def f():\n  dispynode_logger.info('a %s', 'line')\n"
    source += "  return globals()['f'] is f, os.sep, sys.argv is not None, dispy_node_name"
    node.prepare(layer(source, "f"))
    result = node.run()
    assert value_of(result) == (True, "/", True, "testnode")
    assert body_of(result).stderr == b""


def test_names_of_one_job(node: Node) -> None:
    source = "here = 1\ndef f(): return sorted({'x', 'here'} & set(globals())), here"
    node.prepare(layer(source, "f"))
    worker = node.spawn(0)
    names = {"__main__": {"x": 1, "here": 2}}
    node.give(worker, pack_object([], pickle.dumps(((), {}, names))))
    assert value_of(node.result(worker)) == (["here", "x"], 2)
    node.give(worker, arguments())
    assert value_of(node.result(worker)) == (["here"], 1)


def test_another_version_of_python(node: Node) -> None:
    code = layer("f = abs")
    code.python = "3.0"
    assert f"the client runs Python 3.0, this node {PYTHON}" in node.reason(code)
    node.release()
    code.source = "def f(n): return n + 1"
    code.by_name = pack_object([], b"(}c__main__\nf\nNNt.")
    node.prepare(code)
    assert node.value(1) == 2
    worker = node.spawn()
    node.give(worker, pack_object([], b"cno_such_module\nx\n."))
    assert "client runs Python 3.0" in body_of(node.result(worker)).exception


# -- setup and cleanup ----------------------------------------------------------------------


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_setup_shares_globals(node: Node, answer: int) -> None:
    source = f"def setup(n):\n  global data, json\n  import json\n  data = [n]\n  return {answer}\n"
    node.prepare(layer(source + "def f(): return json.dumps(data)", "f"), setup_args=(7,))
    assert node.value() == "[7]"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("pass", "setup returned None: it must return 0, 1 or 2"),
        ("return 3", "setup returned 3"),
        ("raise KeyError('gone')", "KeyError: 'gone'"),
        ("sys.exit(4)", "SystemExit: 4"),
    ],
)
def test_setup_that_fails(node: Node, body: str, reason: str) -> None:
    text = node.reason(layer(f"def setup():\n  {body}\nf = abs", "f"))
    assert reason in text and "template.py" not in text


def test_setup_that_never_ends_is_released(node: Node) -> None:
    node.start(layer("def setup():\n  open('begun', 'w')\n  time.sleep(1000)\nf = abs", "f"))
    node.until(lambda: (node.own / "computation-1" / "begun").exists())
    node.release()


def test_shared_values(node: Node) -> None:
    source = """
def setup():
    import multiprocessing, multiprocessing.sharedctypes
    global shared
    shared = multiprocessing.sharedctypes.Value('i', 1, lock=multiprocessing.Lock())
    return 0
def f(n):
    shared.value += n
    return shared.value
"""
    node.prepare(layer(source, "f"))
    assert [node.value(1), node.value(2), node.value(3)] == [2, 4, 7]


def test_what_setup_has_started_stays(node: Node) -> None:
    source = """
def setup():
    import multiprocessing
    global table
    table = multiprocessing.Manager().dict()
    return 0
def f(n):
    table[n] = n
    return dict(table)
"""
    node.prepare(layer(source, "f"))
    assert node.value(1) == {1: 1}
    assert node.value(2) == {1: 1, 2: 2}


def test_init_depends_is_called_before_setup(node: Node) -> None:
    source = "def init_depends():\n  global n\n  n = 1\ndef setup():\n  return n - 1\nf = abs"
    node.prepare(layer(source, "f"))


@pytest.mark.parametrize("parameter", ["path", ""])
def test_cleanup_function(node: Node, tmp_path: Path, parameter: str) -> None:
    source = "def setup(path):\n  global where\n  where = path\n  return 0\nf = abs\n"
    source += f"def done({parameter}): open(where, 'w').write(os.getcwd())"
    node.prepare(layer(source, "f", cleanup="done"), setup_args=(str(tmp_path / "done"),))
    node.release()
    assert (tmp_path / "done").read_text().endswith("computation-1")


def test_shutdown_by_the_cleanup_function(tmp_path: Path) -> None:
    node = Node(tmp_path, client_shutdown=True)
    try:
        node.prepare(layer("f = abs\ndef done(): dispynode_shutdown()", "f", cleanup="done"))
        node.launcher.release(1)
        node.expect(ShutdownAsked)
        node.expect(TemplateGone)
    finally:
        node.launcher.close(10.0)


# -- files ----------------------------------------------------------------------------------

READ = "def f(path): return open(path).read()"


def test_files(node: Node) -> None:
    files = [node.file("data/a.txt", b"text"), node.file("mod.py", b"x = 3")]
    node.prepare(layer("import mod\n" + READ + ", mod.x", "f"), files=files)
    assert node.value("data/a.txt") == ("text", 3)


def test_dest_path_is_kept_and_reused(node: Node) -> None:
    file = node.file("a.txt", b"text")
    place = node.files / "some" / "where"
    for _ in range(2):
        node.prepare(layer(READ, "f"), files=[file], dest_path="some/where", cleanup=False)
        assert node.value("a.txt") == "text"
        node.release()
        (node.blobs / file_name(file.digest)).unlink(missing_ok=True)  # not copied again
        assert (place / "a.txt").stat().st_mtime == file.mtime
    (place / "other").write_text("")
    node.prepare(layer(READ, "f"), files=[file], dest_path="some/where")
    node.release()
    assert [path.name for path in place.iterdir()] == ["other"]


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x"])
@pytest.mark.parametrize("dest_path", ["", "some/where"])
def test_names_that_lead_out(node: Node, path: str, dest_path: str) -> None:
    assert "x" in node.reason(layer(READ, "f"), dest_path=path)
    file = node.file("a", b"")
    bad = FileSpec(path, file.digest, 0)
    reason = node.reason(layer(READ, "f"), files=[file, bad], dest_path=dest_path)
    assert "not one below a folder" in reason
    assert not list(node.files.glob("*"))
    node.prepare(layer(READ, "f"))
    worker = node.spawn()
    node.give(worker, arguments("a"), files=[bad])
    assert "can't have its files" in body_of(node.result(worker)).exception


def test_put_and_keep(node: Node) -> None:
    node.prepare(layer(READ, "f"))
    node.launcher.put(1, 5, node.file("late.txt", b"late"))
    assert node.expect(FilePlaced) == FilePlaced(1, 5, "")
    node.launcher.put(1, 6, FileSpec("none.txt", b"\0" * 32, 1))
    assert "'none.txt' can't be placed" in node.expect(FilePlaced).error
    node.release(keep=True)
    node.prepare(layer(READ, "f"))
    assert node.value("late.txt") == "late"


@pytest.mark.parametrize("anew", [True, False])
def test_files_that_were_put_and_kept_go_at_the_end(node: Node, anew: bool) -> None:
    node.prepare(layer(READ, "f"), dest_path="some/where")
    node.launcher.put(1, 5, node.file("late.txt", b"late"))
    assert node.expect(FilePlaced).error == ""
    node.release(keep=True)
    if anew:
        node.prepare(layer(READ, "f"), dest_path="some/where")
        assert node.value("late.txt") == "late"
        node.release()
    else:
        node.launcher.clear(1)
    assert not list(node.files.glob("*"))


def test_a_job_may_remove_the_folder_of_the_computation(node: Node) -> None:
    source = "def f(folder):\n  import shutil\n  shutil.rmtree(folder)\n  return 7"
    node.prepare(layer(source, "f"))
    worker = node.spawn(0)
    folder = str(node.own / "computation-1")
    node.give(worker, arguments(folder), files=[node.file("a.txt", b"own")])
    assert value_of(node.result(worker)) == 7


@pytest.mark.parametrize("max_tasks", [0, 1])
def test_files_of_a_job(node: Node, max_tasks: int) -> None:
    common = [node.file("a.txt", b"common"), node.file("d/b.txt", b"below")]
    source = "def f(*paths): return dispy_job_path == os.getcwd(), [open(p).read() for p in paths]"
    node.prepare(layer(source, "f"), files=common)
    worker = node.spawn(max_tasks)
    own = [node.file("a.txt", b"own"), node.file("d/c.txt", b"beside")]
    node.give(worker, arguments("a.txt", "d/b.txt", "d/c.txt"), files=own)
    assert value_of(node.result(worker)) == (True, ["own", "below", "beside"])
    assert not list(node.own.glob("computation-1-jobs/*"))
    node.give(worker, arguments("a.txt"))
    assert value_of(node.result(worker)) == (True, ["common"])


def test_folder_of_a_job_that_was_killed(node: Node) -> None:
    node.prepare(layer("def f(): os.kill(os.getpid(), 9)", "f"))
    worker = node.spawn()
    node.give(worker, arguments(), files=[node.file("a.txt", b"own")])
    assert "SIGKILL" in node.expect(WorkerExited).reason
    assert not list(node.own.glob("computation-1-jobs/*"))


# -- programs -------------------------------------------------------------------------------


def test_program_with_an_interpreter(node: Node) -> None:
    script = b"#!/bin/sh\necho $dispy_node_name $1; pwd; which helper >&2; exit 3\n"
    files = [node.file("run", script, 0o755), node.file("helper", b"#!/bin/sh\n", 0o755)]
    node.prepare(program="run", files=files)
    result = node.run("argument")
    assert (result.status, value_of(result)) == (FINISHED, 3)
    body = body_of(result)
    folder = str(node.own / "computation-1").encode()
    assert body.stdout == b"testnode argument\n%s\n" % folder
    assert body.stderr == b"%s/helper\n" % folder


def test_python_program(node: Node) -> None:
    script = node.file("bin/run.py", b"import mod, sys; print(mod.x, sys.argv[1:])")
    node.prepare(program="bin/run.py", files=[script, node.file("mod.py", b"x = 3")])
    result = node.run("a", "b")
    assert (value_of(result), body_of(result).stdout) == (0, b"3 ['a', 'b']\n")


def test_binary_program(node: Node) -> None:
    node.prepare(program="bin", files=[node.file("bin", Path("/bin/true").read_bytes(), 0o755)])
    assert node.value() == 0


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_program_that_can_not_be_executed(node: Node, mode: int) -> None:
    node.prepare(program="run", files=[node.file("run", b"\x01\x02", mode)])
    result = node.run()
    assert result.status == TERMINATED
    assert "the program 'run' can't be executed at this node: " in body_of(result).exception
    assert "Traceback" not in body_of(result).exception


def test_program_that_is_cancelled(node: Node) -> None:
    script = b"#!/bin/sh\ntrap 'echo heard; exit 1' INT\necho begun\nwhile :; do sleep 0.05; done"
    node.prepare(program="run", files=[node.file("run", script, 0o755)])
    worker = node.spawn()
    node.give(worker, arguments(), follow=True)
    node.until(lambda: bool(node.records))
    node.launcher.workers.interrupt(worker)
    result = node.result(worker)
    assert result.status == TERMINATED
    assert body_of(result).exception.startswith("the job was cancelled")
    assert body_of(result).stdout == b"begun\nheard\n"


# -- records --------------------------------------------------------------------------------

TELL = "def f(n): return [dispy_provisional_result(i) for i in range(n)]"


@pytest.mark.parametrize("max_tasks", [0, 1])
def test_provisional_results(node: Node, max_tasks: int) -> None:
    node.prepare(layer(TELL, "f"))
    worker = node.spawn(max_tasks)
    node.give(worker, arguments(100))
    assert value_of(node.result(worker)) == [0] * 100
    assert [record.number for record in node.records] == list(range(1, 101))
    assert {(record.kind, record.seq) for record in node.records} == {(PROVISIONAL, 1)}
    values = [pickle.loads(unpack_object(record.payload)[1]) for record in node.records]
    assert values == list(range(100))
    node.give(worker, arguments(20))
    assert value_of(node.result(worker)) == [0] * 20
    assert [record.number for record in node.records[100:]] == list(range(1, 21))


@pytest.mark.parametrize("max_tasks", [0, 1])
def test_records_come_before_the_result(node: Node, max_tasks: int) -> None:
    node.prepare(layer(TELL, "f"))
    worker = node.spawn(max_tasks)
    node.give(worker, arguments(3))
    node.result(worker)
    assert len(node.records) == 3
    for _ in range(20):
        node.records.clear()
        for _ in range(5):
            node.give(worker, arguments(2))
        while len(node.records) < 10:
            node.turn()
        assert [record.number for record in node.records] == [1, 2] * 5
        seqs = [record.seq for record in node.records]
        assert seqs == sorted(seqs)


def test_a_job_that_nobody_hears_waits(node: Node) -> None:
    node.hears = False
    source = "def f(n): return [dispy_provisional_result(1, timeout=0.2) for i in range(n)]"
    node.prepare(layer(source, "f"))
    result = node.run(8)
    assert value_of(result) == [0] * 6 + [-1] * 2
    assert len(node.records) == 6
    assert b"has not taken anything for 0.2 seconds" in body_of(result).stderr


def test_interrupt_while_a_job_waits(node: Node) -> None:
    node.hears = False
    source = """
def f():
    try:
        while True:
            dispy_provisional_result(1)
    except KeyboardInterrupt:
        return "saved"
"""
    node.prepare(layer(source, "f"))
    worker = node.spawn()
    node.give(worker, arguments())
    node.until(lambda: len(node.records) == 6)
    node.launcher.workers.interrupt(worker)
    assert value_of(node.result(worker)) == "saved"


def test_jobs_with_parts_wait_before_an_acknowledgement(node: Node) -> None:
    source = "def f(n, data=b''):\n"
    source += "  return [dispy_provisional_result(i) for i in range(n)], len(data)"
    node.prepare(layer(source, "f"))
    worker = node.spawn(0)
    node.hears = False
    node.give(worker, arguments(20))
    buffer = pickle.PickleBuffer(bytes(3 << 20))
    views: list[Any] = []
    stream = pickle.dumps(((1, buffer), {}), 5, buffer_callback=views.append)
    job = JobSpec(50, 1, pack_object([True], stream), [chunked(views[0].raw())])
    node.launcher.workers.give(worker, [job])
    node.until(lambda: len(node.records) == 6)
    node.hears = True
    node.launcher.workers.acknowledge(worker, 1, 1, 6, "")
    assert value_of(node.result(worker)) == ([0] * 20, 0)
    assert value_of(node.result(worker)) == ([0], 3 << 20)


def test_threads_tell_at_the_same_time(node: Node) -> None:
    source = """
def f():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as threads:
        return sum(threads.map(dispy_provisional_result, range(400)))
"""
    node.prepare(layer(source, "f"))
    assert node.value() == 0
    values = [pickle.loads(unpack_object(record.payload)[1]) for record in node.records]
    assert sorted(values) == list(range(400))


def test_send_file(node: Node) -> None:
    source = """
def f(size):
    os.mkdir("sub")
    with open("sub/big", "wb") as file:
        file.write(os.urandom(size))
    sent = dispy_send_file("sub/big"), dispy_send_file("/bin/true"), dispy_send_file("none")
    return sent, open("sub/big", "rb").read()
"""
    node.prepare(layer(source, "f"))
    worker = node.spawn()
    node.give(worker, arguments(5 << 20))
    result = node.result(worker)
    sent, content = value_of(result)
    assert sent == (0, 0, -1)
    assert b"'none' was not sent: No such file" in body_of(result).stderr
    pieces = [unpack_file_piece(content_of(record)) for record in node.records]
    big = [piece for piece in pieces if piece.path == "sub/big"]
    assert b"".join(piece.data for piece in big) == content
    assert [piece.last for piece in big] == [False] * 19 + [True]
    assert {piece.path for piece in pieces} == {"sub/big", "true"}


def test_a_file_that_is_refused(node: Node) -> None:
    node.refusal = "no such luck"
    node.prepare(layer("def f():\n  open('x', 'w').close()\n  return dispy_send_file('x')", "f"))
    result = node.run()
    assert value_of(result) == -1 and b"no such luck" in body_of(result).stderr


def test_output_is_followed(node: Node, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    node.prepare(layer("def f(path):\n  print('one')\n  open(path).read()\n  print('two')", "f"))
    worker = node.spawn(0)
    node.give(worker, arguments(str(tmp_path / "fifo")), follow=True)
    node.until(lambda: bool(node.records))
    (record,) = node.records
    assert record.kind == OUTPUT and unpack_output(record.payload)[:2] == (1, 0)
    assert bytes(unpack_output(record.payload).data) == b"one\n"
    (tmp_path / "fifo").write_text("")
    assert body_of(node.result(worker)).stdout == b"one\ntwo\n"


def test_output_is_followed_later(node: Node, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    source = "def f(path):\n  print('a', end='')\n  open(path).read()\n"
    source += "  print('b')\n  open(path).read()"
    node.prepare(layer(source, "f"))
    worker = node.spawn()
    node.give(worker, arguments(str(tmp_path / "fifo")))
    with (tmp_path / "fifo").open("w"):
        node.launcher.workers.follow(worker, 1, 1)
        node.until(lambda: bool(node.records))
    node.until(lambda: len(node.records) == 2)
    told = b"".join(unpack_output(record.payload).data for record in node.records)
    assert told == b"ab\n"
    (tmp_path / "fifo").write_text("")
    node.result(worker)
