"""``dispy-node`` as its users see it: options, messages, exit codes, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import dispy
from dispy import DispyJob
from dispy.protocol import exitcodes

from .at_broker import embedded_only
from .behind_relays import OWN_PORT, direct_only
from .conftest import NewCluster, RunProgram, StartNode
from .processes import NodeProcess
from .waiting import ended, finished, is_there, until

KILLED_S = 2.0  # after a node was killed, so long may its jobs live


def run_node(*options: str) -> subprocess.CompletedProcess[str]:
    """Run a command line that ends by itself, without any secret."""
    command = [sys.executable, "-m", "dispy.node.cli", *options]
    others = os.environ.keys() - {"DISPY_SECRET", "DISPY_HOST"}
    alone = {name: os.environ[name] for name in others}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=False, env=alone
    )


def hold(started: Path) -> None:
    started.write_text(f"{os.getpid()}\n")
    time.sleep(600)


def hold_with_children(started: Path) -> None:
    """Start a child and a daemon; ignore whatever can be ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    code = "import time; time.sleep(600)"
    daemon = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    started.write_text(f"{os.getpid()} {child.pid} {daemon.pid}\n")
    time.sleep(600)


def name_of_node() -> tuple[str, str]:
    name: str = dispy_node_name  # type: ignore[name-defined]  # noqa: F821
    return name, os.getcwd()


# -- options -------------------------------------------------------------------------------------


def test_help_has_examples() -> None:
    done = run_node("--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout and "--cpus" in done.stdout and "Exit codes" in done.stdout


def test_version() -> None:
    done = run_node("--version")
    assert (done.returncode, done.stdout) == (0, f"dispy-node, version {dispy.__version__}\n")


@pytest.mark.parametrize(
    "options, shown",
    [
        (("-c", "1000"), "1000"),
        (("-c", "-1000"), "none would be left"),
        (("-c", "two"), "two"),
        (("-p", "65535"), "65535"),
        (("-p", "-1"), "-1"),
        (("-i", "0.0.0.0"), "127.0.0.1"),
        (("-i", "192.0.2.1"), "127.0.0.1"),
        (("--broker", "127.0.0.1:port"), "port"),
        (("--broker", "192.0.2.1"), "127.0.0.1"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_a_wrong_option_is_named_and_ends_with_2(options: tuple[str, ...], shown: str) -> None:
    done = run_node(*options)
    assert done.returncode == 2, done.stderr
    assert "Error" in done.stderr and shown in done.stderr and "Traceback" not in done.stderr


@direct_only(OWN_PORT)
def test_a_taken_port_says_what_to_do(start_node: StartNode) -> None:
    node = start_node()
    done = run_node("-p", str(node.port - 1))
    assert done.returncode == exitcodes.UNAVAILABLE
    assert str(node.port) in done.stderr and "-p" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_node("-p", "0", "--dest-path-prefix", str(tmp_path / "file" / "folder"))
    assert done.returncode == exitcodes.CANNOT_CREATE
    assert "folder" in done.stderr and "Traceback" not in done.stderr


def test_name_and_folder_are_what_the_options_say(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix" / "deep"
    node = start_node("--name", "bert", "--dest-path-prefix", str(prefix))
    name, folder = finished(new_cluster(name_of_node, node).submit()).result
    assert name == "bert"
    assert Path(folder).is_relative_to(prefix)
    node.stop()
    assert list(prefix.iterdir()) == []


def test_several_nodes_run_on_one_machine(start_node: StartNode, new_cluster: NewCluster) -> None:
    nodes = [start_node("--name", f"n{number}", cpus=1) for number in range(3)]
    for node in nodes:
        found = finished(new_cluster(name_of_node, node).submit()).result
        assert found[0] == node.options[1]


@embedded_only("a LocalNode belongs to one program")
def test_a_node_can_dial_a_broker(start_program: RunProgram) -> None:
    # A private node does so; what it is told on its command line is in the list of processes.
    program = start_program(DIALLED)
    assert program.wait(30) == 0, program.log()
    assert "--broker" in program.output(), program.output()


DIALLED = """
import dispy

def command_line():
    import psutil
    return [above.cmdline() for above in psutil.Process().parents()]

if __name__ == "__main__":
    with dispy.JobCluster(command_line, nodes=[dispy.LocalNode()]) as cluster:
        print(cluster.submit()())
"""


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_idle_node_well(start_node: StartNode, signum: int) -> None:
    begin = time.monotonic()
    start_node().stop(signum)
    assert time.monotonic() - begin < 3.0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_under_load_and_leaves_nothing(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path, signum: int
) -> None:
    node = start_node()
    cluster = new_cluster(hold_with_children, node)
    jobs = [cluster.submit(tmp_path / f"started-{number}") for number in range(2)]
    for number in range(2):
        is_there(tmp_path / f"started-{number}")
    assert len(node.relatives()) >= 6
    node.stop(signum)  # asserts code, time, processes and files
    for job in jobs:
        assert ended(job, 10).status in (DispyJob.Abandoned, DispyJob.Terminated)


def test_a_second_signal_does_no_harm(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    node = start_node()
    new_cluster(hold_with_children, node).submit(tmp_path / "started")
    is_there(tmp_path / "started")
    for _ in range(5):
        node.process.send_signal(signal.SIGINT)
    node.stop()


@pytest.mark.parametrize("max_tasks", [1, None], ids=["fresh", "reused"])
def test_a_killed_node_leaves_no_process(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path, max_tasks: int | None
) -> None:
    node = start_node()
    cluster = new_cluster(hold_with_children, node, max_tasks_per_child=max_tasks)
    cluster.submit(tmp_path / "started")
    pids = [int(pid) for pid in is_there(tmp_path / "started").split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    node.kill()
    until(lambda: not node.relatives(), "the end of all processes", KILLED_S)
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("victim", ["zygote", "template"])
def test_a_node_survives_the_loss_of_its_own_processes(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path, victim: str
) -> None:
    node = start_node()
    cluster = new_cluster(hold, node)
    job = cluster.submit(tmp_path / "started")
    pid = int(is_there(tmp_path / "started"))
    [zygote] = psutil.Process(node.pid).children()
    [template] = zygote.children()
    (zygote if victim == "zygote" else template).kill()
    assert ended(job).status == DispyJob.Terminated
    until(lambda: not psutil.pid_exists(pid), "the end of the job's process", KILLED_S)
    second = cluster.submit(tmp_path / "second")
    is_there(tmp_path / "second")
    cluster.cancel(second)
    ended(second)


def leftovers(node: NodeProcess) -> list[Path]:
    return list(node.temporary.iterdir())


def test_a_killed_nodes_folder_is_removed_too(
    start_node: StartNode, new_cluster: NewCluster, tmp_path: Path
) -> None:
    node = start_node()
    finished(new_cluster(name_of_node, node).submit())
    assert leftovers(node)
    node.kill()
    until(lambda: not leftovers(node), "the end of its folder", KILLED_S)
