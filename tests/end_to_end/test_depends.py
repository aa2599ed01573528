"""What a computation needs travels to the nodes: code, modules and files, each of them once."""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dispy
from dispy import DispyJob

from .at_broker import embedded_only
from .conftest import NewCluster, RunProgram, StartNode
from .processes import NodeProcess
from .waiting import PATIENCE_S, all_ended, ended, finished, until

MEBIBYTE = 1 << 20
FILES = 10_000

# -- functions and classes of a program ----------------------------------------------------------

CODE = """
import functools
import sys

import dispy


class Point:
    def __init__(self, x):
        self.x = x


class Grid:
    def __init__(self, n):
        self.n = n


def double(n):
    return helper(n) * 2


def helper(n):
    return n


def shift(by, n):
    return by + n


def call(name, *args):  # refers to nothing, so all that it finds has been listed
    return globals()[name](*args)


needs = [Point, Grid(3), double, functools.partial(shift, 1)]
with dispy.JobCluster(call, nodes=[sys.argv[1]], depends=needs) as cluster:
    assert cluster.submit("double", 21)() == 42
    assert cluster.submit("shift", 2, 3)() == 5
    point = cluster.submit("Point", 7)()
    assert type(point) is Point and point.x == 7
    grid = cluster.submit("Grid", 8)()
    assert type(grid) is Grid and grid.n == 8
    job = cluster.submit("nothing")
    assert job() is None and "KeyError" in job.exception, job.exception
"""

IDENTITY = """
import enum
import sys
from collections import namedtuple
from dataclasses import dataclass

import dispy


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Order:
    number: int
    color: Color


Pair = namedtuple("Pair", "left right")


class Base:
    def __init__(self, value):
        self.value = value


class Derived(Base):
    __slots__ = ("more",)


class Slots:
    __slots__ = ("left", "right")

    def __init__(self, left):
        self.left = left


@dataclass(slots=True)
class Slotted:
    number: int


kept = {}


def same(value):
    kind = kept.setdefault(type(value).__name__, type(value))
    return value, type(value) is kind, getattr(value, "color", Color.RED) is Color.RED


def answer(number):
    return Order(number, Color.BLUE), Pair(number, [Color.RED]), Derived


derived = Derived(5)
derived.more = "x"
values = [Color.RED, Order(1, Color.RED), Pair(1, 2), Base(3), derived, Slotted(4)]
with dispy.JobCluster(same, nodes=[sys.argv[1]], max_tasks_per_child=None) as cluster:
    for _ in range(2):
        for value in values:
            job = cluster.submit(value)
            assert job() is not None, job.exception
            again, same_class, same_member = job.result
            assert same_class and same_member, value
            assert type(again) is type(value)
            assert again == value or vars(again) == vars(value)
    assert cluster.submit(Color.BLUE)()[0] is Color.BLUE
    assert cluster.submit(value=[derived])()[0][0].more == "x"
    slots = cluster.submit(Slots(5))()[0]
    assert slots.left == 5 and not hasattr(slots, "right") and not hasattr(slots, "__dict__")
with dispy.JobCluster(answer, nodes=[sys.argv[1]]) as cluster:
    assert cluster.submit(4)() == (Order(4, Color.BLUE), Pair(4, [Color.RED]), Derived)


class Late(Base):
    pass


with dispy.JobCluster(same, nodes=[sys.argv[1]], max_tasks_per_child=None) as cluster:
    assert cluster.submit(1)()[0] == 1

    class Later(Late):
        pass

    late = cluster.submit(Later(9))()[0]
    assert type(late) is Later and late.value == 9
"""

JOB_CODE = """
import sys

import dispy


class Point:
    def __init__(self, x):
        self.x = x


def triple(n):
    return n * 3


def call(name, *args):
    return globals()[name](*args) if name in globals() else "not there"


for max_tasks in (1, None):
    with dispy.JobCluster(call, nodes=[(sys.argv[1], None, 1)], max_tasks_per_child=max_tasks) as c:
        assert c.submit("triple", 5)() == "not there"
        assert c.submit("triple", 5, dispy_job_depends=[triple])() == 15
        assert c.submit("triple", 5)() == "not there"
        point = c.submit("Point", 2, dispy_job_depends=[Point, triple])()
        assert type(point) is Point and point.x == 2
        assert c.submit("Point", 5)() == "not there"
"""

CHANGES = """
import sys

import dispy


class Point:
    def area(self):
        return 1


def scale(n):
    return n


def call(function, *args):
    return function(*args)


def area(point):
    return point.area(), scale(2), made()


def made():
    class Inner:
        value = 7

    return Inner()


with dispy.JobCluster(call, nodes=[sys.argv[1]], max_tasks_per_child=None) as cluster:
    first = cluster.submit(area, Point())()
    assert first[:2] == (1, 2) and first[2].value == 7
    old = Point()

    class Point:  # as in a notebook
        def area(self):
            return 2

    again = cluster.submit(area, Point())()
    assert again[:2] == (2, 2), again
    assert type(cluster.submit(call, lambda p: p, Point())()) is Point
    assert cluster.submit(lambda n: [scale(n), old.area()], 5)() == [5, 1]
    job = cluster.submit(area, 5)
    assert job() is None and "'int' object has no attribute 'area'" in str(job.exc), job.exception
"""

INIT = """
import sys

import dispy

seen = []


def init_depends():
    seen.append("init_depends")


def setup():
    seen.append("setup")
    return 0


def compute():
    return seen


with dispy.JobCluster(compute, [sys.argv[1]], depends=[init_depends], setup=setup) as cluster:
    assert cluster.submit()() == ["init_depends", "setup"]
"""


@pytest.mark.parametrize("source", [CODE, IDENTITY, JOB_CODE, CHANGES, INIT])
def test_code_of_a_program_is_what_it_was_at_the_other_side(
    node: NodeProcess, start_program: RunProgram, source: str
) -> None:
    program = start_program(source, node.address)
    assert program.wait(PATIENCE_S) == 0, program.log()


# -- modules -------------------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module ``tools`` and package ``kit``, which can be imported here."""
    here = tmp_path / "modules"
    deep = here / "kit" / "deep"
    deep.mkdir(parents=True)
    (here / "tools.py").write_text("def name(): return __name__\n")
    (here / "kit" / "__init__.py").write_text("KIT = 'kit'\n")
    (here / "kit" / "beside.py").write_text("def name(): return __name__\n")
    (here / "kit" / "data.txt").write_text("data")
    (deep / "__init__.py").write_text("")
    (deep / "part.py").write_text("from kit import KIT\ndef name(): return KIT + __name__\n")
    monkeypatch.syspath_prepend(str(here))
    yield here
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tools", "kit")]:
        del sys.modules[name]


def name_of(module: str) -> str:
    """Let a function of a module say where it is."""
    try:
        found: str = importlib.import_module(module).name()
    except ImportError as error:
        return f"ImportError: {error.name}"
    return found


def test_modules_and_packages_are_files_at_the_node(
    node: NodeProcess, new_cluster: NewCluster, modules: Path
) -> None:
    cluster = new_cluster(name_of, node, depends=_modules("tools", "kit"))
    assert finished(cluster.submit("tools")).result == "tools"
    assert finished(cluster.submit("kit.beside")).result == "kit.beside"
    assert finished(cluster.submit("kit.deep.part")).result == "kitkit.deep.part"


def test_a_submodule_goes_with_what_is_above_it_only(
    node: NodeProcess, new_cluster: NewCluster, modules: Path
) -> None:
    cluster = new_cluster(name_of, node, depends=_modules("kit.deep.part"))
    assert finished(cluster.submit("kit.deep.part")).result == "kitkit.deep.part"
    assert finished(cluster.submit("kit.beside")).result == "ImportError: kit.beside"


def test_a_module_may_be_what_only_one_job_needs(
    node: NodeProcess, new_cluster: NewCluster, modules: Path
) -> None:
    cluster = new_cluster(name_of, node, max_tasks_per_child=None)
    needs = _modules("tools")
    assert finished(cluster.submit("tools", dispy_job_depends=needs)).result == "tools"
    for job in all_ended([cluster.submit("tools") for _ in range(4)]):
        assert job.result == "ImportError: tools"


def _modules(*names: str) -> list[ModuleType]:
    return [importlib.import_module(name) for name in names]


# -- files ---------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the program runs."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def tree() -> dict[str, str]:
    """Return all files in the job's folder, and what they contain."""
    found = {}
    for folder, _, names in os.walk("."):
        for name in names:
            path = os.path.join(folder, name)
            with open(path) as file:
                found[os.path.relpath(path)] = file.read()
    return found


def test_files_have_their_path_below_the_programs_folder_or_their_base_name(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    for name in ("relative.txt", "sub/deep/kept.txt", "all/one.txt", "all/below/two.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    elsewhere = here.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.txt").write_text("far")
    needs = ["relative.txt", here / "sub/deep/kept.txt", Path("all"), str(elsewhere / "far.txt")]
    assert finished(new_cluster(tree, node, depends=needs).submit()).result == {
        "relative.txt": "relative.txt",
        "sub/deep/kept.txt": "sub/deep/kept.txt",
        "all/one.txt": "all/one.txt",
        "all/below/two.txt": "all/below/two.txt",
        "far.txt": "far",
    }


def look(path: str) -> tuple[int, float, str]:
    found = os.stat(path)
    with open(path, "rb") as file:
        return found.st_mode & 0o777, found.st_mtime, hashlib.sha256(file.read()).hexdigest()


def test_a_file_keeps_its_content_mode_and_time(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    data = random.Random(5).randbytes(9 * MEBIBYTE + 1)
    cases = {"large": data, "empty": b"", "small": b"\r\n\0"}
    for name, content in cases.items():
        Path(name).write_bytes(content)
        os.chmod(name, 0o750)
        os.utime(name, (1e9, 1_234_567_890.5))
    cluster = new_cluster(look, node, depends=[*cases])
    for name, content in cases.items():
        mode, mtime, digest = finished(cluster.submit(name)).result
        assert digest == hashlib.sha256(content).hexdigest()
        assert mode == 0o750 and abs(mtime - 1_234_567_890.5) < 0.001


def sent(cluster: dispy.JobCluster) -> int:
    """How many bytes have gone to the nodes of a cluster."""
    return sum(node.tx for node in cluster.status().nodes)


@embedded_only("a shared broker takes each file from the client once, and gives it to nodes itself")
def test_content_goes_to_a_node_only_once(
    start_node: StartNode, new_cluster: NewCluster, here: Path
) -> None:
    nodes = [start_node(cpus=1), start_node(cpus=1)]
    data = random.Random(6).randbytes(3 * MEBIBYTE)
    Path("one.bin").write_bytes(data)
    first = new_cluster(look, *nodes, depends=["one.bin"])
    until(lambda: len(first.status().nodes) == 2, "two nodes")
    for job in all_ended([first.submit_node(node.address, "one.bin") for node in nodes]):
        assert job.result[2] == hashlib.sha256(data).hexdigest()
    assert 2 * len(data) <= sent(first) < 2 * len(data) + 100_000
    first.close()
    Path("two.bin").write_bytes(data)
    second = new_cluster(look, *nodes, depends=["two.bin"])
    assert finished(second.submit("two.bin")).result[2] == hashlib.sha256(data).hexdigest()
    Path("three.bin").write_bytes(data)
    job = finished(second.submit("three.bin", dispy_job_depends=["three.bin"]))
    assert job.result[2] == hashlib.sha256(data).hexdigest()
    assert sent(second) < 100_000


def read(path: str) -> str:
    return Path(path).read_text()


def test_a_file_that_has_changed_is_sent_anew(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    for text in ("old text", "new text", "old text"):
        Path("words.txt").write_text(text)
        cluster = new_cluster(read, node, depends=["words.txt"])
        assert finished(cluster.submit("words.txt")).result == text


@embedded_only("a shared broker takes each file from the client once, and gives it to nodes itself")
def test_a_file_that_changes_before_it_is_sent_is_named(
    start_node: StartNode, new_cluster: NewCluster, here: Path
) -> None:
    node = start_node()
    node.stop()
    Path("words.txt").write_text("old text")
    cluster = new_cluster(read, node, depends=["words.txt"])
    job = cluster.submit("words.txt")
    Path("words.txt").write_text("another text")
    again = start_node(port=node.port)
    ended(job)
    assert job.status == DispyJob.Terminated
    assert "words.txt" in str(job.exception) and "change" in str(job.exception)
    assert finished(new_cluster(read, again, depends=["words.txt"]).submit("words.txt"))


def test_a_node_that_is_started_anew_gets_its_files_again(
    start_node: StartNode, new_cluster: NewCluster, here: Path
) -> None:
    node = start_node()
    Path("words.txt").write_text("words")
    Path("mine.txt").write_text("mine")
    cluster = new_cluster(read, node, depends=["words.txt"], reentrant=True)
    assert finished(cluster.submit("words.txt")).result == "words"
    node.kill()
    start_node(port=node.port)
    assert finished(cluster.submit("words.txt")).result == "words"
    assert finished(cluster.submit("mine.txt", dispy_job_depends=["mine.txt"])).result == "mine"


def test_each_node_gets_the_files_of_its_own_entry(
    start_node: StartNode, new_cluster: NewCluster, here: Path
) -> None:
    nodes = [start_node(cpus=1), start_node(cpus=1)]
    entries = []
    for number, node in enumerate(nodes):
        folder = here.parent / f"for-{number}"
        folder.mkdir()
        (folder / "data.txt").write_text(f"data {number}")
        entries.append(dispy.NodeAllocate(node.host, node.port, depends=[folder / "data.txt"]))
    with dispy.JobCluster(read, nodes=entries) as cluster:
        until(lambda: len(cluster.status().nodes) == 2, "two nodes")
        for number, node in enumerate(nodes):
            job = cluster.submit_node(node.address, "data.txt")
            assert finished(job).result == f"data {number}"


def test_ten_thousand_small_files(node: NodeProcess, new_cluster: NewCluster, here: Path) -> None:
    for number in range(FILES):
        path = Path("many", f"{number % 100}", f"{number}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    cluster = new_cluster(total, node, depends=["many"])
    assert finished(cluster.submit()).result == (FILES, sum(range(FILES)))


def total() -> tuple[int, int]:
    numbers = [int(path.read_text()) for path in Path("many").glob("*/*.txt")]
    return len(numbers), sum(numbers)


# -- what one job needs --------------------------------------------------------------------------


def read_together(meeting: str, name: str, count: int) -> str:
    """Read a file when so many jobs like this one are running."""
    Path(meeting, f"{os.getpid()}-{time.monotonic_ns()}").touch()
    deadline = time.monotonic() + PATIENCE_S
    while len(os.listdir(meeting)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError("the other job hasn't begun")
        time.sleep(0.005)
    text = Path(name).read_text() + Path("common.txt").read_text()
    Path(name).write_text("spoiled")
    Path("left.txt").touch()
    return text


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_two_jobs_at_once_have_different_files_of_the_same_name(
    node: NodeProcess, new_cluster: NewCluster, here: Path, max_tasks: int | None
) -> None:
    Path("common.txt").write_text("common")
    for name in "ab":
        (here.parent / name).mkdir()
        (here.parent / name / "input.txt").write_text(name)
    meeting = here.parent / "meeting"
    meeting.mkdir()
    cluster = new_cluster(
        read_together, node, depends=["common.txt"], max_tasks_per_child=max_tasks
    )
    jobs = [
        cluster.submit(
            meeting, "input.txt", 2, dispy_job_depends=[here.parent / name / "input.txt"]
        )
        for name in "ab"
    ]
    assert [finished(job).result for job in jobs] == ["acommon", "bcommon"]
    job = ended(cluster.submit(meeting, "input.txt", 2))
    assert "FileNotFoundError" in str(job.exception)
    again = [here.parent / "a" / "input.txt"]
    assert finished(cluster.submit(meeting, "input.txt", 2, dispy_job_depends=again)).result == (
        "acommon"
    )


def where_and_what() -> tuple[str, str, list[str]]:
    path: str = dispy_job_path  # type: ignore[name-defined]  # noqa: F821
    return path, os.getcwd(), sorted(os.listdir("."))


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_what_a_job_needed_is_gone_after_it(
    node: NodeProcess, new_cluster: NewCluster, here: Path, max_tasks: int | None
) -> None:
    Path("mine.txt").write_text("mine")
    Path("all.txt").write_text("all")
    cluster = new_cluster(where_and_what, node, depends=["all.txt"], max_tasks_per_child=max_tasks)
    plain = finished(cluster.submit()).result
    special = finished(cluster.submit(dispy_job_depends=["mine.txt"])).result
    assert plain[2] == ["all.txt"] and special[2] == ["all.txt", "mine.txt"]
    assert plain[0] == plain[1] and special[0] == special[1]
    for job in all_ended([cluster.submit() for _ in range(3)]):
        assert job.result == plain
    assert not os.path.exists(special[0])


def die() -> None:
    os._exit(1)


def test_a_job_that_dies_leaves_no_folder(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    Path("mine.txt").write_text("mine")
    cluster = new_cluster(_call, node)
    base = finished(cluster.submit(os.getcwd)).result
    ended(cluster.submit(die, dispy_job_depends=["mine.txt"]))
    left = finished(cluster.submit(_listed, os.path.dirname(base))).result
    assert "mine.txt" not in left


def _call(function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


def _listed(folder: str) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names]
