"""Clusters at a broker of its own process: they work as others do, and outlive their programs."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dispy
from dispy import DispyJob, RecoverError

from .apart import OWN
from .conftest import NewSharedCluster, RunProgram, StartBroker, StartNode
from .processes import BrokerProcess, Program
from .waiting import all_ended, finished, until

DISPY = (sys.executable, "-m", "dispy.cli")
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
    return n * n


broker, gate, count = sys.argv[1:4]
cluster = dispy.SharedJobCluster(compute, scheduler_node=broker, name="mine")
for n in range(int(count)):
    cluster.submit_job_id(f"id-{n}", n, gate=gate)
cluster.close()
print("closed")
'''


def double(n: int) -> int:
    return 2 * n


def wait_for(gate: str) -> str:
    import os
    import time

    open(gate + ".begun", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return "done"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that jobs wait for."""
    return tmp_path / "gate"


@pytest.fixture
def broker(start_broker: StartBroker) -> BrokerProcess:
    """A broker with a journal."""
    return start_broker()


def join(node: str, broker: BrokerProcess) -> tuple[str, ...]:
    return ("--name", node, "--broker", broker.for_nodes)


def test_a_shared_cluster_works_as_others_do(
    broker: BrokerProcess, start_node: StartNode, new_shared_cluster: NewSharedCluster
) -> None:
    start_node(*join("alpha", broker), cpus=2)
    statuses: list[int] = []
    cluster = new_shared_cluster(double, broker, job_status=lambda job: statuses.append(job.status))
    jobs = [cluster.submit(n) for n in range(300)]
    assert [finished(job).result for job in jobs] == [2 * n for n in range(300)]
    assert cluster.wait(10)
    assert [node.name for node in cluster.status().nodes] == ["alpha"]
    assert cluster.resetup_node("alpha") == -1
    assert cluster.close(timeout=20)
    assert statuses == [DispyJob.Finished] * 300
    assert not list(Path().glob("_dispy_*"))


def test_two_programs_share_a_node_that_the_broker_dials(
    broker: BrokerProcess,
    start_node: StartNode,
    start_program: RunProgram,
    new_shared_cluster: NewSharedCluster,
    gate: Path,
) -> None:
    node = start_node(cpus=2)
    cluster = new_shared_cluster(double, broker, nodes=[node.address])
    assert finished(cluster.submit(1)).result == 2
    gate.touch()
    program = start_program(SOURCE, broker.address, str(gate), "3")
    assert program.wait(30) == 0, program.log()
    assert program.output() == "closed\n"
    assert finished(cluster.submit(2)).result == 4


def test_a_broker_that_is_not_there_is_waited_for(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = start_broker()
    broker.stop()
    cluster = new_shared_cluster(double, broker)
    job = cluster.submit(4)
    until(lambda: "is dispy-broker running there?" in caplog.text, "a warning", 5)
    assert "connection" in job.explain()
    broker = start_broker(instead_of=broker)
    start_node(*join("alpha", broker))
    assert finished(job).result == 8


@pytest.mark.parametrize("politely", [True, False])
def test_jobs_outlive_the_broker(
    politely: bool,
    broker: BrokerProcess,
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    gate: Path,
) -> None:
    start_node(*join("alpha", broker), cpus=1)
    cluster = new_shared_cluster(wait_for, broker)
    jobs = [cluster.submit(str(gate)) for _ in range(5)]
    until(lambda: Path(f"{gate}.begun").exists(), "a job that runs")
    if politely:
        broker.stop()
    else:
        broker.kill()
    jobs.append(cluster.submit(str(gate)))
    gate.touch()
    start_broker(instead_of=broker)
    assert {job.result for job in all_ended(jobs)} == {"done"}
    assert {job.status for job in jobs} == {DispyJob.Finished}


def test_a_broker_without_a_journal_forgets(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
    gate: Path,
) -> None:
    broker = start_broker("--no-journal")
    start_node(*join("alpha", broker), cpus=1)
    cluster = new_shared_cluster(wait_for, broker)
    job = cluster.submit(str(gate))
    until(lambda: Path(f"{gate}.begun").exists(), "a job that runs")
    broker.kill()
    start_broker(instead_of=broker)
    all_ended([job])
    assert job.status == DispyJob.Abandoned
    assert job.exception is not None and "without its journal" in job.exception
    gate.touch()
    assert finished(cluster.submit(str(gate))).result == "done"


def start_jobs(
    start_program: RunProgram, broker: BrokerProcess, gate: Path, count: int, running: int
) -> Program:
    program = start_program(SOURCE, broker.address, str(gate), str(count))
    until(lambda: len(list(gate.parent.glob("gate.*"))) >= running, f"{running} jobs that run")
    until(lambda: _has_last(program, count), "the last job in the recover file")
    return program


def _has_last(program: Program, count: int) -> bool:
    files = list(program.folder.glob("_dispy_*"))
    return bool(files) and f"id-{count - 1}".encode() in files[0].read_bytes()


def test_a_killed_program_is_recovered_from_the_broker_in_two_steps(
    broker: BrokerProcess, start_node: StartNode, start_program: RunProgram, gate: Path
) -> None:
    start_node(*join("alpha", broker), cpus=2)
    program = start_jobs(start_program, broker, gate, 4, running=2)
    (path,) = program.folder.glob("_dispy_*")
    with pytest.raises(RecoverError, match="still runs"):
        dispy.recover_jobs(path)
    program.kill()
    Path(f"{gate}-1").touch()
    is_over: list[DispyJob] = []
    while not is_over:
        is_over = dispy.recover_jobs(path, timeout=0.2)
    assert [(job.id, job.result, job.args) for job in is_over] == [("id-1", 1, (1,))]
    assert path.exists()
    gate.touch()
    jobs = dispy.recover_jobs(path)
    assert [(job.id, job.result) for job in jobs] == [("id-0", 0), ("id-2", 4), ("id-3", 9)]
    assert {job.host for job in jobs} == {OWN}
    assert jobs[0].kwargs == {"gate": str(gate)} and jobs[0].stdout == "begin 0\n"
    assert not path.exists()
    with pytest.raises(RecoverError, match="mine"):
        dispy.recover_jobs(cluster="mine", scheduler_node=broker.address)


def test_a_cluster_is_recovered_by_its_name(
    broker: BrokerProcess, start_node: StartNode, start_program: RunProgram, gate: Path
) -> None:
    start_node(*join("alpha", broker), cpus=2)
    program = start_jobs(start_program, broker, gate, 2, running=2)
    with pytest.raises(RecoverError, match=getpass.getuser()):  # whose program still runs
        dispy.recover_jobs(cluster="mine", scheduler_node=broker.address)
    program.kill()
    gate.touch()
    done = subprocess.run(
        [*DISPY, "recover", "--cluster", "mine", "--json"],
        env={**os.environ, "DISPY_BROKER": broker.address},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert [(job["id"], job["result"]) for job in json.loads(done.stdout)] == [(1, 0), (2, 1)]


def test_jobs_that_are_left_are_ended_when_that_is_wanted(
    broker: BrokerProcess, start_node: StartNode, start_program: RunProgram, gate: Path
) -> None:
    start_node(*join("alpha", broker), cpus=2)
    program = start_jobs(start_program, broker, gate, 3, running=2)
    program.kill()
    (path,) = program.folder.glob("_dispy_*")
    jobs = dispy.recover_jobs(path, terminate_pending=True)
    assert [job.id for job in jobs] == ["id-0", "id-1", "id-2"]
    assert {job.status for job in jobs} == {DispyJob.Terminated, DispyJob.Cancelled}
    assert not path.exists()


def test_a_program_that_fails_leaves_its_jobs_behind(
    broker: BrokerProcess, start_node: StartNode, start_program: RunProgram, gate: Path
) -> None:
    start_node(*join("alpha", broker), cpus=1)
    fails = SOURCE.replace("cluster.close()", "raise ValueError('a bug of the user')")
    program = start_program(fails, broker.address, str(gate), "3")
    assert program.wait(30) == 1
    assert "a bug of the user" in program.log() and "'dispy recover'" in program.log()
    (path,) = program.folder.glob("_dispy_*")
    gate.touch()
    jobs = dispy.recover_jobs(path)
    assert [(job.id, job.result) for job in jobs] == [("id-0", 0), ("id-1", 1), ("id-2", 4)]


def test_nobody_to_recover_from_is_an_error() -> None:
    with pytest.raises(RecoverError, match=r"no broker answers at 127\.0\.0\.1:1: "):
        dispy.recover_jobs(cluster="mine", scheduler_node="127.0.0.1:1", timeout=0.1)
    with pytest.raises(TypeError, match="not both"):
        dispy.recover_jobs("a file", cluster="mine")


def test_the_command_runs_programs_at_a_broker(
    broker: BrokerProcess, start_node: StartNode
) -> None:
    start_node(*join("alpha", broker))
    more = ["-a", "hello", "-a", "world"]
    done = subprocess.run(
        [*DISPY, "run", "--scheduler_node", broker.address, "--name", "greetings", *more, "echo"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "job 1 (hello): exit code 0" in done.stdout and "\nworld\n" in done.stdout
