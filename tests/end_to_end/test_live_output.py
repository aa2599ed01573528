"""What jobs print, followed while they run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest

import dispy
from dispy import DispyJob

from .conftest import NewCluster
from .processes import NodeProcess
from .waiting import all_ended, ended, finished, until

MIB = 1 << 20
GROWTH_BYTES = 64 * MIB
PATIENCE_S = 20.0


def wait_for(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.005)


def report(gate: Path) -> str:
    """Print something, and go on only when somebody has seen it."""
    print("first")
    wait_for(gate)
    print("second", file=sys.stderr)
    print("third")
    return "done"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it's there at the latest when the test ends."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def texts(outputs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Join what has come, by stream."""
    joined = {"stdout": "", "stderr": ""}
    for stream, text in outputs:
        joined[stream] += text
    return joined


class Printed:
    """To be given as ``job_output``."""

    def __init__(self) -> None:
        self.all: list[tuple[DispyJob, str, str]] = []

    def __call__(self, job: DispyJob, stream: str, text: str) -> None:
        self.all.append((job, stream, text))

    def of(self, job: DispyJob) -> dict[str, str]:
        return texts((stream, text) for about, stream, text in self.all if about is job)


# -- one job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "while it runs"])
def test_text_arrives_while_the_job_runs(
    node: NodeProcess, new_cluster: NewCluster, gate: Path, max_tasks: int | None, late: bool
) -> None:
    job = new_cluster(report, node, max_tasks_per_child=max_tasks).submit(gate)
    if late:
        until(lambda: job.status == DispyJob.Running, "Running")
    outputs = iter(job.follow())
    first = next(outputs)
    assert first == ("stdout", "first\n") and (first.stream, first.text) == first
    assert not job.finish.is_set()
    gate.touch()  # nothing else lets the job go on
    rest = texts(outputs)
    assert rest == {"stdout": "third\n", "stderr": "second\n"}
    assert finished(job).result == "done"
    assert (job.stdout, job.stderr) == ("first\nthird\n", "second\n")


def test_a_job_that_has_ended_can_be_followed(node: NodeProcess, new_cluster: NewCluster) -> None:
    def talk() -> None:
        print("one")
        print("two", file=sys.stderr)

    cluster = new_cluster(talk, node)
    job = finished(cluster.submit())
    for _ in range(2):
        assert list(job.follow()) == [("stdout", "one\n"), ("stderr", "two\n")]
    cluster.close()
    assert list(job.follow()) == [("stdout", "one\n"), ("stderr", "two\n")]


def test_all_is_told_once_in_order(node: NodeProcess, new_cluster: NewCluster) -> None:
    def count(lines: int) -> None:
        for number in range(lines):
            print("line", number, "\N{SNOWMAN}")
            if number % 1000 == 0:
                sys.stderr.write(f"{number}\n")
                time.sleep(0.02)

    job = new_cluster(count, node).submit(20_000)
    told = texts(job.follow())
    lines = told["stdout"].splitlines(keepends=True)  # lists are compared faster, if they differ
    assert lines == [f"line {n} \N{SNOWMAN}\n" for n in range(20_000)]
    assert told["stderr"] == "".join(f"{n}\n" for n in range(0, 20_000, 1000))
    assert finished(job).stderr == told["stderr"]
    same = job.stdout == told["stdout"]
    assert same


def talk_below_python(gate: Path) -> None:
    """Print from a subprocess, and by the system call."""
    script = "import sys; print('from a child'); print('its error', file=sys.stderr)"
    subprocess.run([sys.executable, "-c", script], check=True)
    os.write(1, b"written\n")
    wait_for(gate)


def test_what_subprocesses_and_c_code_print_is_told(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    job = new_cluster(talk_below_python, node).submit(gate)
    seen: list[tuple[str, str]] = []
    outputs = job.follow()
    while texts(seen) != {"stdout": "from a child\nwritten\n", "stderr": "its error\n"}:
        seen.append(next(outputs))
    assert not job.finish.is_set()
    gate.touch()
    assert list(outputs) == []


def test_lines_are_told_as_they_are_printed_and_prompts_when_flushed(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    def ask(folder: Path) -> None:
        for number in range(3):
            print(f"question {number}? ", end="", flush=True)
            wait_for(folder / str(number))
            print("yes")

    job = new_cluster(ask, node).submit(tmp_path)
    seen = ""
    for _, text in job.follow():
        seen += text
        for number in range(3):
            if seen.endswith(f"question {number}? "):
                (tmp_path / str(number)).touch()
    assert seen == "".join(f"question {n}? yes\n" for n in range(3))


def test_a_program_is_followed_too(node: NodeProcess, new_cluster: NewCluster, gate: Path) -> None:
    cluster = new_cluster(sys.executable, node)
    script = (
        "import os, sys, time\nprint('first', flush=True)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.005)\n"
        "print('last', file=sys.stderr); sys.exit(3)"
    )
    job = cluster.submit("-c", script, gate)
    outputs = job.follow()
    assert next(outputs) == ("stdout", "first\n")
    gate.touch()
    assert list(outputs) == [("stderr", "last\n")]
    assert job() == 3 and (job.stdout, job.stderr) == (b"first\n", b"last\n")


def test_bytes_that_are_no_text_and_characters_in_halves(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    def halves(folder: Path) -> None:
        os.write(1, b"a\xe2\x98")
        wait_for(folder / "gate")
        os.write(1, b"\x83\xff.")

    job = new_cluster(halves, node).submit(tmp_path)
    outputs = job.follow()
    assert next(outputs).text == "a"
    (tmp_path / "gate").touch()
    assert "".join(text for _, text in outputs) == "\N{SNOWMAN}\N{REPLACEMENT CHARACTER}."
    assert finished(job).stdout == "a\N{SNOWMAN}\N{REPLACEMENT CHARACTER}."


def test_a_job_has_one_follower_at_a_time(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    job = new_cluster(report, node).submit(gate)
    outputs = job.follow()
    with pytest.raises(RuntimeError, match="followed"):
        job.follow()
    assert next(outputs).text == "first\n"
    outputs.close()  # type: ignore[attr-defined]  # as generators have it
    again = job.follow()
    gate.touch()
    assert texts(again) == {"stdout": "third\n", "stderr": "second\n"}


def test_leaving_the_iteration_holds_nothing_up(node: NodeProcess, new_cluster: NewCluster) -> None:
    def chatter(lines: int) -> int:
        for number in range(lines):
            print("line", number)
        return lines

    job = new_cluster(chatter, node).submit(200_000)
    for output in job.follow():
        assert output.stream == "stdout"
        break
    assert finished(job).result == 200_000


@pytest.mark.parametrize("end", ["fails", "is killed", "is cancelled"])
def test_following_ends_with_the_job_however_it_ends(
    node: NodeProcess, new_cluster: NewCluster, gate: Path, end: str
) -> None:
    def fall(gate: Path) -> None:
        print("first")
        wait_for(gate)
        if end == "is killed":
            os.kill(os.getpid(), 9)
        raise ValueError("as it should")

    cluster = new_cluster(fall, node)
    job = cluster.submit(gate)
    outputs = job.follow()
    assert next(outputs).text == "first\n"
    if end == "is cancelled":
        cluster.cancel(job)
    else:
        gate.touch()
    assert "".join(text for _, text in outputs if _ == "stdout") == ""
    assert ended(job).status in (DispyJob.Terminated, DispyJob.Cancelled)
    assert job.stdout == "first\n"


def test_a_job_that_waits_and_is_cancelled_has_no_output(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    cluster = new_cluster(report, node)
    jobs = [cluster.submit(gate) for _ in range(3)]
    outputs = jobs[2].follow()
    cluster.cancel(jobs[2])
    assert list(outputs) == []


def test_the_output_of_a_job_that_is_tried_again(
    node: NodeProcess, new_cluster: NewCluster, tmp_path: Path
) -> None:
    def stumble(folder: Path) -> None:
        number = len(list(folder.glob("attempt-*")))
        (folder / f"attempt-{number}").touch()
        print("attempt", number)
        if number == 0:
            wait_for(folder / "gate")
            raise ValueError("as it should")

    job = new_cluster(stumble, node, retries=1).submit(tmp_path)
    told = ""
    for stream, text in job.follow():
        told += text if stream == "stdout" else ""
        (tmp_path / "gate").touch()
    assert finished(job).stdout == "attempt 1\n"
    assert told.startswith("attempt 0\n") and told.endswith("attempt 1\n")
    assert "began again" in told


# -- all jobs of a cluster -------------------------------------------------------------------------


def test_a_callback_gets_the_output_of_all_jobs_while_they_run(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    printed = Printed()
    cluster = new_cluster(report, node, job_output=printed)
    jobs = [cluster.submit(gate) for _ in range(4)]
    for job in jobs[:2]:
        until(lambda: printed.of(job)["stdout"] == "first\n", "the first line")  # noqa: B023
    assert not any(job.finish.is_set() for job in jobs)
    gate.touch()
    cluster.close()
    for job in jobs:
        assert printed.of(job) == {"stdout": "first\nthird\n", "stderr": "second\n"}
        assert job.stdout == "first\nthird\n"


def test_the_output_of_very_short_jobs_is_told_before_their_end_is(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    printed = Printed()
    order: list[tuple[str, object]] = []

    def say(number: int) -> None:
        print("job", number)

    def on_output(job: DispyJob, stream: str, text: str) -> None:
        printed(job, stream, text)
        order.append(("output", job.id))

    cluster = new_cluster(
        say,
        node,
        job_output=on_output,
        job_status=lambda job: order.append(("end", job.id)),
        max_tasks_per_child=None,
    )
    jobs = [cluster.submit(number) for number in range(300)]
    cluster.close()
    for number, job in enumerate(jobs):
        assert printed.of(job) == {"stdout": f"job {number}\n", "stderr": ""}
        ours = [what for what, about in order if about == job.id]
        assert ours[-1] == "end" and "output" in ours


# -- slowness and size -----------------------------------------------------------------------------


def pour(count: int, size: int) -> int:
    """Print very much, as fast as it goes."""
    for _ in range(count):
        os.write(1, b"x" * (size - 1) + b"\n")
    return count


def test_a_consumer_that_does_not_read_holds_no_job_up_and_costs_no_memory(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    job = new_cluster(pour, node).submit(100, MIB)
    outputs = job.follow()
    processes = [psutil.Process(), psutil.Process(node.pid)]
    before = [process.memory_info().rss for process in processes]
    assert finished(job).result == 100
    after = [process.memory_info().rss for process in processes]
    assert all(b - a < GROWTH_BYTES for a, b in zip(before, after, strict=True))
    told = sum(len(text) for _, text in outputs)
    assert MIB <= told <= 100 * MIB + 1000


def test_a_slow_callback_holds_no_job_up_and_costs_no_memory(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    def on_output(job: DispyJob, stream: str, text: str) -> None:
        wait_for(gate)
        told[0] += len(text)

    told = [0]
    cluster = new_cluster(pour, node, job_output=on_output)
    processes = [psutil.Process(), psutil.Process(node.pid)]
    before = [process.memory_info().rss for process in processes]
    jobs = [cluster.submit(50, MIB) for _ in range(4)]
    assert [job() for job in jobs] == [50] * 4
    after = [process.memory_info().rss for process in processes]
    assert all(b - a < GROWTH_BYTES for a, b in zip(before, after, strict=True))
    gate.touch()
    cluster.close()
    assert told[0] >= 4 * MIB


def test_jobs_that_nobody_follows_tell_nothing_while_they_run(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    cluster = new_cluster(report, node)
    followed, other = cluster.submit(gate), cluster.submit(gate)
    assert next(followed.follow()).text == "first\n"
    until(lambda: other.status == DispyJob.Running, "Running")
    gate.touch()
    all_ended([followed, other])
    assert other.stdout == followed.stdout == "first\nthird\n"
    # Their bytes came with the results, and once.
    [used] = cluster.status().nodes
    assert used.rx < 1000


def rate(cluster: dispy.JobCluster, count: int) -> float:
    begin = time.monotonic()
    all_ended([cluster.submit(1) for _ in range(count)])
    return count / (time.monotonic() - begin)


def test_jobs_beside_a_followed_one_are_as_fast_as_without(
    node: NodeProcess, new_cluster: NewCluster, gate: Path
) -> None:
    cluster = new_cluster(abs, node, max_tasks_per_child=None)
    rate(cluster, 1000)
    alone = rate(cluster, 3000)
    talker = new_cluster(tick_until, node)
    job = talker.submit(gate)
    seen = threading.Event()
    reader = threading.Thread(target=_drain, args=(job.follow(), seen.set))
    reader.start()
    assert seen.wait(PATIENCE_S)
    beside = rate(cluster, 3000)
    gate.touch()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
    assert beside > alone / 5  # one CPU of two, on a busy machine


def tick_until(gate: Path) -> None:
    number = 0
    while not gate.exists():
        print("tick", number := number + 1)
        time.sleep(0.01)


def _drain(outputs: Iterator[tuple[str, str]], seen: Callable[[], None]) -> None:
    for _ in outputs:
        seen()
