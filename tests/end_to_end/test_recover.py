"""A program is killed while its jobs run: another gets their results, and the node is free."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dispy
from dispy import DispyJob, recorded

from . import behind_relays
from .apart import OWN
from .conftest import NewCluster, RunProgram, StartNode
from .processes import NodeProcess, Program
from .waiting import finished, until

SOURCE = '''
import sys

import dispy


def compute(n, gate):
    """Run until there is a file."""
    import os
    import time
    print("begin", n)
    open(f"{gate}.{n}", "w").close()
    while not (os.path.exists(gate) or os.path.exists(f"{gate}-{n}")):
        time.sleep(0.01)
    print("end", n)
    return n * n


node, gate, count = sys.argv[1:4]
recover_file = sys.argv[4] if len(sys.argv) > 4 else None
cluster = dispy.JobCluster(compute, nodes=[node], recover_file=recover_file)
for n in range(int(count)):
    job = cluster.submit(n, gate=gate)
    job.id = f"id-{n}"
cluster.close()
print("closed")
'''

StartJobs = Callable[..., tuple[Program, Path]]


def double(n: int) -> int:
    return 2 * n


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that jobs wait for."""
    return tmp_path / "gate"


@pytest.fixture
def start_jobs(start_program: RunProgram, gate: Path) -> StartJobs:
    """Start a program with jobs that run, and whose file is complete; return both."""

    def start(node: NodeProcess, count: int, *more: str) -> tuple[Program, Path]:
        program = start_program(SOURCE, node.address, str(gate), str(count), *more)
        running = min(count, node.cpus)
        until(lambda: _running(gate) >= running, f"{running} jobs that run")
        path = program.folder / more[0] if more else _only(program)
        until(
            lambda: path.exists() and path.read_bytes().count(b"id-") >= count,
            "all ids in the file",
        )
        return program, path

    return start


def _running(gate: Path) -> int:
    return len(list(gate.parent.glob(gate.name + ".*")))


def _only(program: Program) -> Path:
    until(lambda: list(program.folder.glob("_dispy_*")), "a recover file")
    (path,) = program.folder.glob("_dispy_*")
    return path


def by_id(jobs: list[DispyJob]) -> dict[str, DispyJob]:
    return {job.id: job for job in jobs}


def assert_free(node: NodeProcess, new_cluster: NewCluster) -> None:
    """The node runs jobs of others, and has nothing of before."""
    cluster = new_cluster(double, node)
    assert finished(cluster.submit(4)).result == 8
    assert cluster.close(timeout=10)
    until(lambda: not node.job_processes(), "the end of all job processes")


def test_a_killed_program_is_recovered(
    start_node: StartNode, start_jobs: StartJobs, gate: Path, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    program.kill()
    gate.touch()
    jobs = dispy.recover_jobs(path)
    assert [job.id for job in jobs] == ["id-0", "id-1"]
    for n, job in enumerate(jobs):
        assert job.status == DispyJob.Finished, job.exception
        assert job.result == n * n
        assert job.stdout == f"begin {n}\nend {n}\n"
        assert job.stderr == ""
        assert job.exception is None
        assert job.host == OWN
        assert job.args == (n,)
        assert job.kwargs == {"gate": str(gate)}
        assert job.start_time is not None
        assert job.end_time is not None
        assert job.submit_time <= job.start_time + 1 <= job.end_time + 1
        assert job.finish.is_set()
        assert job() == n * n
    assert not path.exists()
    assert_free(node, new_cluster)


def test_what_had_not_been_sent_is_cancelled(
    start_node: StartNode, start_jobs: StartJobs, gate: Path
) -> None:
    program, path = start_jobs(start_node(cpus=1), 8)
    program.kill()
    gate.touch()
    jobs = dispy.recover_jobs(path)
    assert [job.id for job in jobs] == [f"id-{n}" for n in range(8)]
    assert jobs[0].status == DispyJob.Finished
    assert {job.status for job in jobs} == {DispyJob.Finished, DispyJob.Cancelled}
    for job in jobs:
        if job.status == DispyJob.Cancelled:
            assert "had not been sent" in str(job.exception)


def test_jobs_that_waited_in_the_program_can_be_submitted_again(
    start_node: StartNode, start_jobs: StartJobs, gate: Path, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 3000)
    program.kill()
    gate.touch()
    jobs = dispy.recover_jobs(path)
    assert [job.id for job in jobs] == [f"id-{n}" for n in range(3000)]
    assert [(job.args, job.kwargs) for job in jobs] == [
        ((n,), {"gate": str(gate)}) for n in range(3000)
    ]
    assert [job.result for job in jobs if job.status == DispyJob.Finished][:2] == [0, 1]
    waited = [job for job in jobs if job.status == DispyJob.Cancelled]
    assert len(waited) > 2900
    assert "had not been sent to a node" in str(waited[-1].exception)
    assert not path.exists()
    assert_free(node, new_cluster)


def test_jobs_may_end_before_anybody_asks(
    start_node: StartNode, start_jobs: StartJobs, gate: Path, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    program.kill()
    gate.touch()
    until(lambda: "can't be reached" in node.log(), "the node's notice of the end")
    jobs = dispy.recover_jobs(str(path))
    assert [job.result for job in jobs] == [0, 1]
    assert_free(node, new_cluster)


def test_after_a_timeout_the_rest_can_be_had_later(
    start_node: StartNode, start_jobs: StartJobs, gate: Path, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    program.kill()
    assert dispy.recover_jobs(path, timeout=0.1) == []
    assert dispy.recover_jobs(path, timeout=0) == []
    assert path.exists()
    gate.touch()
    assert [job.result for job in dispy.recover_jobs(path)] == [0, 1]
    assert not path.exists()
    assert_free(node, new_cluster)


def test_each_job_is_returned_once(
    start_node: StartNode, start_jobs: StartJobs, gate: Path, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=1)
    program, path = start_jobs(node, 4)
    program.kill()
    first = dispy.recover_jobs(path, timeout=1)
    assert {job.status for job in first} <= {DispyJob.Cancelled}
    gate.touch()
    second = dispy.recover_jobs(path)
    assert {job.status for job in second} == {DispyJob.Finished}
    assert sorted(by_id(first) | by_id(second)) == ["id-0", "id-1", "id-2", "id-3"]
    assert len(first) + len(second) == 4


@pytest.mark.parametrize("timeout", [None, 0.3])
def test_pending_jobs_can_be_ended(
    start_node: StartNode, start_jobs: StartJobs, new_cluster: NewCluster, timeout: float | None
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 3)
    program.kill()
    jobs = by_id(dispy.recover_jobs(path, timeout, terminate_pending=True))
    assert sorted(jobs) == ["id-0", "id-1", "id-2"]
    assert jobs["id-0"].status == jobs["id-1"].status == DispyJob.Terminated
    assert jobs["id-0"].stdout == "begin 0\n"
    assert "KeyboardInterrupt" in str(jobs["id-0"].exception)
    assert jobs["id-2"].status == DispyJob.Cancelled
    assert not path.exists()
    assert_free(node, new_cluster)


def test_a_program_that_runs_is_left_alone(
    start_node: StartNode, start_jobs: StartJobs, gate: Path
) -> None:
    program, path = start_jobs(start_node(cpus=2), 2)
    with pytest.raises(dispy.RecoverError, match=f"still runs \\(process {program.pid} on"):
        dispy.recover_jobs(path)
    gate.touch()
    assert program.wait(20) == 0
    assert program.output() == "closed\n"
    assert list(program.folder.glob("_dispy_*")) == []


def test_two_recoveries_do_not_meet(
    start_node: StartNode, start_jobs: StartJobs, gate: Path
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    program.kill()
    command = [sys.executable, "-m", "dispy.cli", "recover", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            until(lambda: "(recovery)" in node.log(), "the first recovery at the node")
            with pytest.raises(dispy.RecoverError, match="are being recovered already"):
                dispy.recover_jobs(path)
        finally:
            gate.touch()
            output, _ = first.communicate(timeout=20)
    assert first.returncode == 0
    assert "job id-0: Finished, result 0" in output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_recovery_may_be_stopped(
    start_node: StartNode,
    start_jobs: StartJobs,
    gate: Path,
    number: signal.Signals,
    new_cluster: NewCluster,
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    program.kill()
    before = path.stat().st_size
    command = [sys.executable, "-m", "dispy.cli", "recover", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        gate.with_name(gate.name + "-0").touch()
        until(lambda: path.stat().st_size > before, "a result in the file")
        first.send_signal(number)
        output, errors = first.communicate(timeout=20)
    assert first.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert (output, errors) == (b"", b"")
    gate.touch()
    assert [job.result for job in dispy.recover_jobs(path)] == [0, 1]
    assert_free(node, new_cluster)


def test_a_torn_file_is_enough(
    start_node: StartNode, start_jobs: StartJobs, gate: Path, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    program.kill()
    gate.touch()
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"id-1") + 1])
    jobs = dispy.recover_jobs(path)
    assert [job.result for job in jobs] == [0, 1]
    assert jobs[1].id == 2
    assert not path.exists()
    assert_free(node, new_cluster)


def test_a_node_that_is_gone(
    start_node: StartNode, start_jobs: StartJobs, caplog: pytest.LogCaptureFixture
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    program.kill()
    node.kill()
    jobs = dispy.recover_jobs(path)
    assert [job.status for job in jobs] == [DispyJob.Abandoned] * 2
    reason = "no answer" if behind_relays.COUNT else f"{node.address}: connection refused"
    assert reason in str(jobs[0].exception)
    assert path.exists(), "the node may come back"
    assert "is kept" in caplog.text
    node.clear_away()


def test_a_node_that_was_started_anew(
    start_node: StartNode, start_jobs: StartJobs, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=2)
    program, path = start_jobs(node, 2)
    until(lambda: begun_jobs(path) == 2, "two jobs known to run")
    program.kill()
    node.kill()
    other = start_node(cpus=2, port=node.port)
    jobs = dispy.recover_jobs(path)
    assert [job.status for job in jobs] == [DispyJob.Abandoned] * 2
    assert "started anew" in str(jobs[0].exception)
    assert not path.exists()
    assert_free(other, new_cluster)
    node.clear_away()


def test_the_newest_file_of_the_folder_is_used(
    start_node: StartNode, start_jobs: StartJobs, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = start_jobs(start_node(cpus=2), 2)
    program.kill()
    gate.touch()
    monkeypatch.chdir(program.folder)
    Path("_dispy_99990101000000").write_text("no such file")
    assert [job.result for job in dispy.recover_jobs()] == [0, 1]
    with pytest.raises(FileNotFoundError, match="no recover file"):
        dispy.recover_jobs()


def test_the_file_can_have_a_name(start_node: StartNode, start_jobs: StartJobs, gate: Path) -> None:
    program, path = start_jobs(start_node(cpus=2), 2, "mine")
    assert list(program.folder.glob("_dispy_*")) == []
    program.kill()
    gate.touch()
    assert [job.result for job in dispy.recover_jobs(path)] == [0, 1]


def test_the_command_tells_in_json(
    start_node: StartNode, start_jobs: StartJobs, gate: Path
) -> None:
    program, _ = start_jobs(start_node(cpus=2), 2)
    program.kill()
    gate.touch()
    done = subprocess.run(
        [sys.executable, "-m", "dispy.cli", "recover", "--json"],
        cwd=program.folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    first, second = json.loads(done.stdout)
    assert (first["id"], first["status"], first["result"]) == ("id-0", "Finished", 0)
    assert (second["args"], second["kwargs"]) == ([1], {"gate": str(gate)})
    assert second["stdout"] == "begin 1\nend 1\n"


def test_the_command_lists_all_jobs(
    start_node: StartNode, start_jobs: StartJobs, gate: Path
) -> None:
    program, _ = start_jobs(start_node(cpus=1), 20)
    program.kill()
    gate.touch()
    command = [sys.executable, "-m", "dispy.cli", "recover"]
    done = subprocess.run(
        command, cwd=program.folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1, "some didn't finish"
    assert "==> job id-0: Finished, result 0, " in done.stdout
    assert "==> job id-19 (19, gate='/" in done.stdout
    assert "): Cancelled, it had not been sent to a node when its program ended <==" in done.stdout
    assert done.stderr == ""


def test_nothing_is_written_for_private_nodes(start_program: RunProgram) -> None:
    program = start_program(
        "import dispy\n"
        "from pathlib import Path\n"
        "def compute(n): return n\n"
        "cluster = dispy.JobCluster(compute, nodes=dispy.LocalNode(cpus=1))\n"
        "print(cluster.submit(3)(), list(Path().glob('_dispy_*')))\n"
        "cluster.shutdown()\n"
    )
    assert program.wait(20) == 0, program.log()
    assert program.output() == "3 []\n"


OWN_CLASS = """
import sys
import time

import dispy


class Point:
    def __init__(self, x):
        self.x = x


def compute(x, gate):
    import os
    open(gate + ".0", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return Point(x)


if sys.argv[1] == "recover":
    print([job.result.x for job in dispy.recover_jobs("mine")])
else:
    cluster = dispy.JobCluster(compute, nodes=sys.argv[1], recover_file="mine", depends=[Point])
    cluster.submit(1, sys.argv[2])
    print("submitted", flush=True)
    time.sleep(1000)
"""


def test_results_wait_for_who_has_their_classes(
    start_node: StartNode, start_program: RunProgram, gate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = start_program(OWN_CLASS, start_node(cpus=1).address, str(gate))
    path = program.folder / "mine"
    until(lambda: _running(gate) == 1, "a job that runs")  # what is only recorded may be unsent
    until(lambda: path.exists() and path.stat().st_size, "the file")  # and the other way round
    program.kill()
    gate.touch()
    (job,) = dispy.recover_jobs(path)
    assert job.status == DispyJob.Terminated
    assert "classes of the one that died" in str(job.exception)
    assert "is kept" in caplog.text
    command = [sys.executable, str(program.folder.parent / "program.py"), "recover"]
    again = subprocess.run(command, cwd=program.folder, capture_output=True, text=True, check=True)
    assert again.stdout == "[1]\n", again.stderr
    assert not path.exists()


def begun_jobs(path: Path) -> int:
    """Return of how many it's known where they run."""
    return sum(len(cluster.begun) for cluster in recorded_clusters(path))


def recorded_clusters(path: Path) -> list[recorded.RecordedCluster]:
    try:
        return [*recorded.read(path.read_bytes(), path.name).clusters.values()]
    except dispy.RecoverError:  # it is just being made
        return []


KILLED_BY_A_RESULT = """
import os
import sys

import dispy


def compute(pid):
    import subprocess

    class Deadly:
        def __reduce__(self):
            return subprocess.call, (["kill", "-9", str(pid)],)

    return Deadly()


cluster = dispy.JobCluster(compute, nodes=sys.argv[1], recover_file="mine")
for _ in range(50):  # what is sent when the first has ended acknowledges its result
    cluster.submit(os.getpid())
cluster.wait()
"""


def test_a_result_that_the_program_had_not_noted_is_not_lost(
    start_node: StartNode, start_program: RunProgram
) -> None:
    """It dies while it unpickles the first result: the node still has that, too."""
    program = start_program(KILLED_BY_A_RESULT, start_node(cpus=1).address)
    assert program.wait(30) == -signal.SIGKILL
    jobs = dispy.recover_jobs(program.folder / "mine")
    assert jobs[0].status == DispyJob.Finished, jobs[0].exception
    assert jobs[0].result != 0, "there was nobody left to be killed"


TALKS = """
import sys

import dispy


def compute(gate):
    import os
    import time
    open(gate + ".0", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    for number in range(20):
        assert dispy_provisional_result(number) == 0
    with open("file", "w") as file:
        file.write("content")
    return dispy_send_file("file")


cluster = dispy.JobCluster(compute, nodes=sys.argv[1], recover_file="mine")
cluster.submit(sys.argv[2])
cluster.wait()
"""


def test_jobs_that_talk_are_not_held_up(
    start_node: StartNode, start_program: RunProgram, gate: Path
) -> None:
    program = start_program(TALKS, start_node(cpus=1).address, str(gate))
    until(lambda: _running(gate) == 1, "a job that runs")
    program.kill()
    gate.touch()
    (job,) = dispy.recover_jobs(program.folder / "mine")
    assert job.status == DispyJob.Finished, job.exception
    assert job.result == -1, "nobody takes the file"
    assert "nobody takes the file" in str(job.stderr)


TWO_CLUSTERS = """
import sys

import dispy


def compute(n, gate):
    import os
    import time
    open(f"{gate}.{n}", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return n


node, gate = sys.argv[1:3]
host, port = node.split(":")
one = dispy.JobCluster(compute, nodes=[(host, int(port), 1)], recover_file="one")
two = dispy.JobCluster(compute, nodes=[(host, int(port), 1)], recover_file="two")
one.submit(1, gate)
two.submit(2, gate)
one.wait()
"""


def test_files_of_one_program_are_recovered_one_by_one(
    start_node: StartNode, start_program: RunProgram, gate: Path, new_cluster: NewCluster
) -> None:
    node = start_node(cpus=2)
    program = start_program(TWO_CLUSTERS, node.address, str(gate))
    until(lambda: _running(gate) == 2, "two jobs that run")
    program.kill()
    gate.touch()
    assert [job.result for job in dispy.recover_jobs(program.folder / "two")] == [2]
    assert [job.result for job in dispy.recover_jobs(program.folder / "one")] == [1]
    assert not (program.folder / "one").exists()
    assert not (program.folder / "two").exists()
    assert_free(node, new_cluster)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dispy.recover_jobs(tmp_path / "nothing")
    (tmp_path / "letter").write_text("Dear reader")
    with pytest.raises(dispy.RecoverError, match="not a recover file"):
        dispy.recover_jobs(tmp_path / "letter")
    with pytest.raises(ValueError, match="timeout"):
        dispy.recover_jobs(tmp_path / "letter", timeout=-1)
    with pytest.raises(TypeError, match="timeout"):
        dispy.recover_jobs(tmp_path / "letter", timeout="soon")  # type: ignore[arg-type]
