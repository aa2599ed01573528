"""Very many provisional results and files of running jobs: all arrive, and memory stays flat.

The sizes are those of a quick run; DISPY_TEST_SCALE=50 makes it a million results, and a hundred
thousand files.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dispy import DispyJob
from dispy.protocol.messages import RECORDS_AHEAD

from .conftest import NewCluster
from .processes import NodeProcess
from .records import note, noted
from .waiting import all_ended, ended, finished, until

SCALE = float(os.environ.get("DISPY_TEST_SCALE", "1"))
RESULTS = min(int(20_000 * SCALE), 1_000_000)
FILES = min(int(3_000 * SCALE), 100_000)
MIB = 1 << 20
GROWTH_BYTES = 64 * MIB
LOOK_S = 0.05
PATIENCE_S = 60 * max(1.0, SCALE)


@contextmanager
def flat_memory(node: NodeProcess) -> Iterator[None]:
    """Neither this process nor the node may grow much meanwhile, not even for a moment."""
    processes = {"client": psutil.Process(), "node": psutil.Process(node.pid)}
    before = {name: process.memory_info().rss for name, process in processes.items()}
    most = dict(before)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            for name, process in processes.items():
                most[name] = max(most[name], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    for name in processes:
        grown = most[name] - before[name]
        assert grown < GROWTH_BYTES, f"{name} has grown by {grown / MIB:.0f} MiB"


def send_results(count: int) -> int:
    send = dispy_provisional_result  # type: ignore[name-defined]  # noqa: F821
    return sum(send(number) != 0 for number in range(count))


def send_files(count: int, folder: str) -> int:
    send = dispy_send_file  # type: ignore[name-defined]  # noqa: F821
    os.makedirs(folder, exist_ok=True)
    failures = 0
    for number in range(count):
        path = os.path.join(folder, f"{number}.txt")
        with open(path, "w") as file:
            file.write(f"{folder} {number}\n")
        failures += send(path) != 0
        os.remove(path)
    return failures


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that is waited for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


# -- provisional results ---------------------------------------------------------------------------


@pytest.mark.timeout(120 * max(1.0, SCALE))
@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_all_provisional_results_come_once_in_order_and_cost_no_memory(
    node: NodeProcess, new_cluster: NewCluster, max_tasks: int | None
) -> None:
    nexts: dict[object, int] = {1: 0, 2: 0}
    wrong: list[tuple[object, object]] = []

    def on_result(job: DispyJob) -> None:
        if job.status == DispyJob.ProvisionalResult:
            if job.result != nexts[job.id]:
                wrong.append((job.id, job.result))
            nexts[job.id] += 1

    cluster = new_cluster(send_results, node, job_status=on_result, max_tasks_per_child=max_tasks)
    with flat_memory(node):
        jobs = all_ended([cluster.submit(RESULTS // 2) for _ in range(2)], PATIENCE_S)
    cluster.close()
    assert [(job.status, job.result) for job in jobs] == [(DispyJob.Finished, 0)] * 2
    assert nexts == {1: RESULTS // 2, 2: RESULTS // 2}
    assert not wrong[:3]


def send_large(count: int, size: int) -> int:
    send = dispy_provisional_result  # type: ignore[name-defined]  # noqa: F821
    return sum(send(bytes([number]) * size) != 0 for number in range(count))


def test_large_provisional_results_cost_no_memory(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    seen: list[tuple[int, int]] = []

    def on_result(job: DispyJob) -> None:
        if job.status == DispyJob.ProvisionalResult:
            seen.append((job.result[-1], len(job.result)))

    cluster = new_cluster(send_large, node, job_status=on_result)
    with flat_memory(node):
        assert ended(cluster.submit(200, MIB)).result == 0
    cluster.close()
    assert seen == [(number, MIB) for number in range(200)]


def send_and_note(count: int, record: Path, gate: Path) -> int:
    send = dispy_provisional_result  # type: ignore[name-defined]  # noqa: F821
    for number in range(count):
        if send(number, timeout=60) != 0:
            return number
        note(str(record), number)
    gate.with_name("sent").touch()
    return count


def test_a_slow_callback_holds_the_job_back(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, gate: Path
) -> None:
    seen: list[int] = []
    record = tmp_path / "record"

    def on_result(job: DispyJob) -> None:
        if job.status == DispyJob.ProvisionalResult:
            seen.append(job.result)
            if len(seen) == 100:
                until(gate.exists, "the gate")

    cluster = new_cluster(send_and_note, node, job_status=on_result)
    other = new_cluster(abs, node)
    job = cluster.submit(1000, record, gate)
    until(lambda: len(seen) == 100, "a hundred results")
    until(lambda: len(noted(record)) >= 100, "the next ones")
    assert [other.submit(-n)() for n in range(20)] == list(range(20))  # nobody else is held up
    assert not job.finish.wait(0.3)
    assert len(noted(record)) <= 100 + RECORDS_AHEAD
    gate.touch()
    assert finished(job).result == 1000
    cluster.close()
    assert seen == list(range(1000))


def test_a_job_that_is_not_heard_in_time_is_told_so_and_goes_on(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    def send_impatiently(count: int) -> list[int]:
        send = dispy_provisional_result  # type: ignore[name-defined]  # noqa: F821
        return [send(number, timeout=0.1) for number in range(count)]

    seen: list[int] = []

    def on_result(job: DispyJob) -> None:
        if job.status == DispyJob.ProvisionalResult:
            until(gate.exists, "the gate")
            seen.append(job.result)

    cluster = new_cluster(send_impatiently, node, job_status=on_result)
    job = finished(cluster.submit(RECORDS_AHEAD + 4))
    accepted = job.result.count(0)
    assert 1 <= accepted <= RECORDS_AHEAD
    assert job.result == [0] * accepted + [-1] * (len(job.result) - accepted)
    gate.touch()
    cluster.close()
    assert seen == list(range(accepted))


def test_a_result_that_cannot_be_pickled_harms_only_itself(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    def send_bad(value: int) -> list[object]:
        send = dispy_provisional_result  # type: ignore[name-defined]  # noqa: F821
        codes = [send(value)]
        try:
            codes.append(send(threading.Lock()))
        except Exception as error:
            codes.append(type(error).__name__)
        return [*codes, send(value + 1)]

    seen: list[object] = []
    cluster = new_cluster(send_bad, node, job_status=lambda job: seen.append(job.result))
    job = finished(cluster.submit(5))
    cluster.close()
    assert job.result[0] == job.result[2] == 0 and job.result[1] != 0
    assert seen == [5, 6, job.result]


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.timeout(120 * max(1.0, SCALE))
@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_all_small_files_arrive_and_cost_no_memory(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    cluster = new_cluster(send_files, node, max_tasks_per_child=max_tasks)
    with flat_memory(node):
        jobs = [cluster.submit(FILES // 2, f"deep/of-{name}") for name in ("one", "two")]
        all_ended(jobs, PATIENCE_S)
    assert [(job.status, job.result) for job in jobs] == [(DispyJob.Finished, 0)] * 2
    for name in ("one", "two"):
        folder = tmp_path / "deep" / f"of-{name}"
        assert len(os.listdir(folder)) == FILES // 2
        for number in (0, 1, FILES // 4, FILES // 2 - 1):
            text = (folder / f"{number}.txt").read_text()
            assert text == f"deep/of-{name} {number}\n"


def send_one(size: int, seed: int) -> tuple[int, str]:
    path = f"large-{seed}"
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(0, size, MIB):
            data = os.urandom(MIB)
            digest.update(data)
            file.write(data)
    code = dispy_send_file(path)  # type: ignore[name-defined]  # noqa: F821
    return code, digest.hexdigest()


def test_large_files_arrive_whole_and_cost_no_memory(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(send_one, node)
    with flat_memory(node):
        jobs = all_ended([cluster.submit(100 * MIB, seed) for seed in range(2)])
    for seed, job in enumerate(jobs):
        with (tmp_path / f"large-{seed}").open("rb") as file:
            digest = hashlib.sha256()
            while data := file.read(MIB):
                digest.update(data)
        assert job.result == (0, digest.hexdigest())
    assert sorted(path.name for path in tmp_path.glob("*large*")) == ["large-0", "large-1"]


def test_many_jobs_with_a_few_words_each(node: NodeProcess, new_cluster: NewCluster) -> None:
    """Provisional results of short jobs come before their ends, also in reused processes."""
    told: dict[object, list[tuple[int, object]]] = {}

    def on_result(job: DispyJob) -> None:
        told.setdefault(job.id, []).append((job.status, job.result))

    cluster = new_cluster(send_results, node, job_status=on_result, max_tasks_per_child=None)
    begin = time.monotonic()
    jobs = [cluster.submit(3) for _ in range(1000)]
    cluster.close()
    assert time.monotonic() - begin < 30
    results = [(DispyJob.ProvisionalResult, number) for number in range(3)]
    for job in jobs:
        assert told[job.id] == [*results, (DispyJob.Finished, 0)]
