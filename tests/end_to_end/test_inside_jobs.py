"""What a job can do while it runs: tell results, send files, and write to the node's log."""

# ruff: noqa: F821  # jobs find some names without an import

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dispy
from dispy import DispyJob

from .conftest import NewCluster, StartNode
from .processes import NodeProcess
from .waiting import PATIENCE_S, all_ended, ended, finished, is_there, until

if TYPE_CHECKING:  # what jobs find without an import
    dispy_job_path: str
    dispy_node_ip_addr: str
    dispy_node_name: str
    dispy_provisional_result: Callable[..., int]
    dispy_send_file: Callable[..., int]
    dispynode_logger: Any

MEBIBYTE = 1 << 20
MANY = 1000  # more than may be on their way


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user's program runs in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Be the computation of most clusters here."""
    return function(*arguments)


class Seen:
    """A ``job_status`` that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, int, Any]] = []  # id, status, result

    def __call__(self, job: DispyJob) -> None:
        self.told.append((job.id, job.status, job.result))

    def results_of(self, job: DispyJob) -> list[Any]:
        """Return the provisional results of a job, as they came."""
        return [r for i, s, r in self.told if i == job.id and s == DispyJob.ProvisionalResult]

    def ends_of(self, job: DispyJob) -> list[Any]:
        """Return the other results."""
        return [r for i, s, r in self.told if i == job.id and s != DispyJob.ProvisionalResult]


# -- provisional results -------------------------------------------------------------------------


def tell(first: int, count: int) -> str:
    for number in range(first, first + count):
        assert dispy_provisional_result((number, "so far")) == 0
    return "all told"


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_provisional_results_come_in_order_and_none_is_lost(
    node: NodeProcess, new_cluster: NewCluster, max_tasks: int | None
) -> None:
    seen = Seen()
    cluster = new_cluster(tell, node, job_status=seen, max_tasks_per_child=max_tasks)
    jobs = [cluster.submit(first, MANY) for first in (0, MANY, 2 * MANY)]
    for number, job in enumerate(jobs):
        assert finished(job).result == "all told"
        first = number * MANY
        until(lambda: seen.ends_of(job), "the last call")  # noqa: B023
        assert seen.results_of(job) == [(n, "so far") for n in range(first, first + MANY)]
        assert [told[2] for told in seen.told if told[0] == job.id][-1] == "all told"


def test_a_slow_callback_holds_the_job_up_and_loses_nothing(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    told: list[Any] = []
    go_on = threading.Event()

    def slow(job: DispyJob) -> None:
        go_on.wait(PATIENCE_S)
        told.append(job.result)

    cluster = new_cluster(tell_and_note, node, job_status=slow)
    job = cluster.submit(str(tmp_path / "noted"), MANY)
    is_there(tmp_path / "noted")
    assert not job.finish.wait(0.5)  # the job waits for the callback
    assert (tmp_path / "noted").stat().st_size < MANY
    go_on.set()
    assert finished(job).result == MANY
    until(lambda: len(told) == MANY + 1, "all calls")
    assert told == [*range(MANY), MANY]


def tell_and_note(path: str, count: int) -> int:
    for number in range(count):
        dispy_provisional_result(number)
        with open(path, "a") as file:
            file.write("\n")
    return count


def tell_all(values: list[Any]) -> list[int]:
    return [dispy_provisional_result(value) for value in values]


class Point:
    """A class of the user's own."""

    def __init__(self, x: int) -> None:
        self.x = x


def tell_oddities() -> list[int]:
    codes = tell_all([None, Point(3), bytes(3 * MEBIBYTE)])
    codes.append(dispy_provisional_result(threading.Lock()))
    return codes


def test_a_provisional_result_may_be_anything_that_can_be_pickled(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    seen = Seen()
    job = finished(new_cluster(tell_oddities, node, job_status=seen).submit())
    assert job.result == [0, 0, 0, -1]
    assert "lock" in str(job.stderr) and "dispy_provisional_result" in str(job.stderr)
    until(lambda: seen.ends_of(job), "the last call")
    nothing, point, data = seen.results_of(job)
    assert nothing is None and type(point) is Point and point.x == 3
    assert data == bytes(3 * MEBIBYTE)


def test_the_callback_gets_a_copy_and_the_job_itself_goes_on(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    copies: list[DispyJob] = []
    cluster = new_cluster(tell, node, job_status=copies.append)
    job = cluster.submit_job_id("mine", 5, 3)
    finished(job)
    until(lambda: len(copies) == 4, "all calls")
    assert [copy.result for copy in copies[:3]] == [(5, "so far"), (6, "so far"), (7, "so far")]
    assert {copy.status for copy in copies[:3]} == {DispyJob.ProvisionalResult}
    assert {copy.id for copy in copies} == {"mine"} and copies[-1] is job
    assert all(copy.args == (5, 3) and copy.host == node.host for copy in copies)


def test_a_callback_may_cancel_the_job_by_what_it_has_told(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster: dispy.JobCluster

    def judge(told: DispyJob) -> None:
        if told.status == DispyJob.ProvisionalResult and told.result == 5:
            cluster.cancel(job)

    cluster = new_cluster(tell_until_interrupted, node, job_status=judge)
    job = cluster.submit()
    assert finished(job).result >= 5


def tell_until_interrupted() -> int:
    number = 0
    try:
        for number in range(10_000):
            dispy_provisional_result(number)
            time.sleep(0.005)
    except KeyboardInterrupt:
        return number
    return -1


# -- files ---------------------------------------------------------------------------------------


def send(name: str, size: int, **options: Any) -> tuple[int, str]:
    """Make a file and send it; return what came of that, and its digest."""
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as file:
        file.write(os.urandom(size))
    os.chmod(name, 0o640)
    with open(name, "rb") as file:
        return dispy_send_file(name, **options), hashlib.sha256(file.read()).hexdigest()


def files(folder: Path) -> list[str]:
    """Return all files below a folder, hidden ones too, but not the recovery file."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(str(path) for path in found if not path.name.startswith("_dispy_"))


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_a_file_arrives_whole_with_its_folders(
    node: NodeProcess, new_cluster: NewCluster, here: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(send, node, max_tasks_per_child=max_tasks)
    sizes = {"plain": 1000, "empty": 0, "sub/deep/large": 5 * MEBIBYTE + 3}
    jobs = {name: cluster.submit(name, size) for name, size in sizes.items()}
    for name, job in jobs.items():
        code, digest = finished(job).result
        assert code == 0, job.stderr
        assert hashlib.sha256((here / name).read_bytes()).hexdigest() == digest
        assert (here / name).stat().st_mode & 0o777 == 0o640
    assert files(here) == sorted(sizes)


def test_dispy_send_file_takes_the_documented_options(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    job = finished(new_cluster(send, node).submit("made", 10, relay=True, timeout=5))
    assert job.result[0] == 0 and files(here) == ["made"]


def send_from_elsewhere(folder: str) -> list[int]:
    codes = [dispy_send_file(os.path.join(folder, "absolute.txt"))]
    os.chdir(folder)
    codes.append(dispy_send_file("relative.txt"))
    codes.append(dispy_send_file("../up.txt"))
    os.chdir(dispy_job_path)
    Path("own.txt").touch()
    codes.append(dispy_send_file(os.path.join(dispy_job_path, "own.txt")))
    return codes


def test_a_file_from_elsewhere_never_leaves_the_programs_folder(
    node: NodeProcess, new_cluster: NewCluster, here: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "below"
    elsewhere.mkdir(parents=True)
    for name in ("absolute.txt", "relative.txt", "../up.txt"):
        (elsewhere / name).write_text(name)
    job = finished(new_cluster(send_from_elsewhere, node).submit(str(elsewhere)))
    assert job.result == [0, 0, 0, 0]
    assert files(here) == ["absolute.txt", "own.txt", "relative.txt", "up.txt"]


def test_a_link_in_the_programs_folder_leads_nothing_out(
    node: NodeProcess, new_cluster: NewCluster, here: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (here / "link").symlink_to(outside)
    job = finished(new_cluster(send, node).submit("link/stolen", 10))
    assert job.result[0] == -1
    assert "link/stolen" in str(job.stderr)
    assert files(outside) == []


def test_a_file_replaces_a_file_and_never_a_folder(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    (here / "folder").mkdir()
    (here / "old").write_text("old")
    cluster = new_cluster(send, node)
    refused = finished(cluster.submit("folder", 10))
    assert refused.result[0] == -1 and "folder" in str(refused.stderr)
    assert (here / "folder").is_dir()
    assert finished(cluster.submit("old", 1000)).result[0] == 0
    assert (here / "old").stat().st_size == 1000 and files(here) == ["old"]


def send_each(*names: str) -> list[int]:
    os.mkdir("folder")
    os.mkfifo("pipe")
    return [dispy_send_file(name) for name in names]


def test_what_is_no_file_is_refused_with_the_reason(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    job = finished(new_cluster(send_each, node).submit("missing", "folder", "pipe", "a\0b"))
    assert job.result == [-1, -1, -1, -1]
    lines = str(job.stderr).splitlines()
    assert len(lines) == 4
    assert "No such file" in lines[0] and "missing" in lines[0]
    assert "not a regular file" in lines[1] and "not a regular file" in lines[2]
    assert files(here) == []


@pytest.mark.parametrize("where", ["client", "node"])
def test_a_file_that_is_too_large_is_refused_with_the_reason(
    start_node: StartNode,
    new_cluster: NewCluster,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    limit = 2 * MEBIBYTE
    if where == "client":
        monkeypatch.setattr(dispy.config, "MaxFileSize", limit)
    node = start_node(*(["--max-file-size", "2m"] if where == "node" else []))
    cluster = new_cluster(send, node)
    large = finished(cluster.submit("large", limit + 1))
    assert large.result[0] == -1
    assert str(limit) in str(large.stderr) and str(limit + 1) in str(large.stderr)
    fits = finished(cluster.submit("fits", limit))
    assert fits.result[0] == 0, fits.stderr
    assert files(here) == ["fits"]


def send_and_die(size: int, after: float) -> None:
    with open("large", "wb") as file:
        file.truncate(size)
    threading.Thread(target=dispy_send_file, args=("large",)).start()
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)


def send_and_change(size: int) -> int:
    with open("large", "wb") as file:
        file.truncate(size)
    stop = threading.Event()
    changes = threading.Thread(target=_change, args=(stop,))
    changes.start()
    try:
        return dispy_send_file("large")
    finally:
        stop.set()
        changes.join()


def _change(stop: threading.Event) -> None:
    while not stop.wait(0.001):
        with open("large", "r+b") as file:
            file.write(os.urandom(8))


def test_a_file_that_is_not_complete_never_appears(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    cluster = new_cluster(call, node)
    for after in (0.0, 0.02, 0.05):
        dead = ended(cluster.submit(send_and_die, 64 * MEBIBYTE, after))
        assert "SIGKILL" in str(dead.exception)
        assert files(here) == [] or (here / "large").stat().st_size == 64 * MEBIBYTE
        (here / "large").unlink(missing_ok=True)
    job = finished(cluster.submit(send_and_change, 16 * MEBIBYTE))
    assert job.result == -1 and "changed" in str(job.stderr)
    assert files(here) == []


def send_until_interrupted(started: str) -> tuple[int, int]:
    sent = 0
    with open("file", "wb") as file:
        file.write(bytes(2 * MEBIBYTE))
    Path(started).write_text("started\n")
    try:
        while dispy_send_file("file") == 0:
            sent += 1
    except KeyboardInterrupt:
        return sent, dispy_send_file("file")
    return -1, -1


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_an_interrupt_while_a_file_is_sent_breaks_nothing(
    node: NodeProcess,
    new_cluster: NewCluster,
    here: Path,
    tmp_path: Path,
    max_tasks: int | None,
) -> None:
    cluster = new_cluster(call, node, max_tasks_per_child=max_tasks)
    for number in range(5):
        started = tmp_path / f"started-{number}"
        job = cluster.submit(send_until_interrupted, str(started))
        is_there(started)
        assert cluster.cancel(job) == 0
        sent, code = finished(job).result
        assert sent >= 0 and code == 0, job.stderr
        assert files(here) == ["file"]
        assert (here / "file").read_bytes() == bytes(2 * MEBIBYTE)
    for job in all_ended([cluster.submit(send, f"file-{number}", 100) for number in range(4)]):
        assert job.result[0] == 0, job.stderr


# -- names and the log ---------------------------------------------------------------------------


def names() -> list[str]:
    return [dispy_node_name, dispy_node_ip_addr, dispy_job_path, os.getcwd(), sys.path[0]]


def times_and_modules() -> bool:
    builtins: Any = __builtins__
    present = builtins if isinstance(builtins, dict) else vars(builtins)
    return all(present[name].__name__ == name for name in ("os", "sys", "time"))


def test_a_job_knows_where_it_is(start_node: StartNode, new_cluster: NewCluster) -> None:
    node = start_node("--name", "n5")
    cluster = new_cluster(call, node)
    name, address, path, current, first = finished(cluster.submit(names)).result
    assert (name, address) == ("n5", node.host)
    assert path == current == first and os.path.isabs(path)
    assert finished(cluster.submit(times_and_modules)).result is True


def write_to_the_log() -> None:
    print("for the client")
    dispynode_logger.info("process %s of %s", 17, "mine")
    dispynode_logger.debug("a detail")
    dispynode_logger.warning("odd: %d", "no number")
    try:
        raise ValueError("a problem")
    except ValueError:
        dispynode_logger.exception("it failed")


def test_the_logger_writes_to_the_node_and_not_to_the_client(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    job = finished(new_cluster(call, node).submit(write_to_the_log))
    assert (job.stdout, job.stderr) == ("for the client\n", "")
    until(lambda: "ValueError: a problem" in node.log(), "the last line in the node's log")
    log = node.log()
    assert "INFO: process 17 of mine" in log and "DEBUG: a detail" in log
    assert "odd: %d" in log and "ERROR: it failed" in log
    assert "for the client" not in log
