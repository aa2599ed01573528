"""Real nodes with options: exit codes, what they clean up, hours, logs, files of options."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dispy import DispyJob
from dispy.node.daemon import time_of_day
from dispy.node.service import DAY_S, spelled
from dispy.protocol import exitcodes

from .apart import HERE
from .conftest import NewCluster, StartNode
from .processes import STOP_S, NodeProcess
from .waiting import ended, finished, is_there, until

START_S = 30.0


def run_node(*options: str, patience_s: float = START_S) -> subprocess.CompletedProcess[str]:
    """Run a node that ends by itself."""
    command = [sys.executable, "-m", "dispy.node.cli", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=patience_s)


def in_s(seconds: float) -> str:
    """Return the time of day that it will be."""
    return spelled(int(time_of_day() + seconds) % DAY_S)


def double(number: int) -> int:
    return 2 * number


def sleep(seconds: float, path: str = "") -> str:
    import time

    if path:
        with open(path, "w") as file:
            file.write("begun\n")
    time.sleep(seconds)
    return "slept"


# -- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--cpus", "100000"],
        ["--nonsense"],
        ["--service-start", "9:00"],
        ["--service-start", "9:00", "--service-stop", "25:00"],
        ["--zombie-interval", "0.5"],
        ["--log-format", "xml"],
        ["--config", "missing.ini"],
    ],
)
def test_wrong_options(options: list[str]) -> None:
    ran = run_node(*options)
    assert ran.returncode == exitcodes.USAGE, ran.stderr
    assert "Error: " in ran.stderr and "Traceback" not in ran.stderr


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").touch()
    ran = run_node("-p", "0", "--dest-path-prefix", str(folder / "file" / "below"))
    assert ran.returncode == exitcodes.CANNOT_CREATE
    assert "--dest-path-prefix" in ran.stderr and "Traceback" not in ran.stderr


def test_a_log_file_that_cannot_be_made(folder: Path) -> None:
    ran = run_node("-p", "0", "--log-file", str(folder / "missing" / "log"))
    assert ran.returncode == exitcodes.CANNOT_CREATE
    assert "can't write the log" in ran.stderr and "Traceback" not in ran.stderr


def test_a_port_that_is_taken() -> None:
    with socket.create_server((HERE, 0)) as taken:
        ran = run_node("-p", str(taken.getsockname()[1] - 1))
    assert ran.returncode == exitcodes.UNAVAILABLE
    assert "Choose another port with -p" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_node_that_is_stopped(start_node: StartNode, signum: int) -> None:
    start_node().stop(signum)  # it must end with 0


# -- --clean --------------------------------------------------------------------------------------

DETACHED = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(600)"


def detach(script: str, path: str) -> None:
    """Start a program that nobody looks after, and run on."""
    import subprocess
    import sys
    import time

    subprocess.Popen([sys.executable, "-c", script, path], start_new_session=True)
    time.sleep(600)


def kill_all_but(node: NodeProcess, survivor: int) -> None:
    """End a node as a machine's out-of-memory killer does on a bad day."""
    os.kill(node.pid, signal.SIGSTOP)  # so that it starts nothing anew
    for process in node.relatives():
        if process.pid != survivor:
            process.kill()
    node.kill()


def test_what_killed_nodes_left_is_removed(
    start_node: StartNode, new_cluster: NewCluster, folder: Path
) -> None:
    prefix = folder / "prefix"
    options = ("--dest-path-prefix", str(prefix))
    neighbour = start_node(*options)
    [of_neighbour] = prefix.iterdir()
    node = start_node(*options)
    cluster = new_cluster(detach, node)
    cluster.submit(DETACHED, str(folder / "pid"))
    survivor = psutil.Process(int(is_there(folder / "pid")))
    kill_all_but(node, survivor.pid)
    assert survivor.is_running() and len(list(prefix.iterdir())) == 2
    cleaner = start_node(*options, "--clean")
    assert not survivor.is_running() or survivor.status() == psutil.STATUS_ZOMBIE
    assert f"removed {prefix}/dispy-node-" in cleaner.log()
    assert of_neighbour.exists() and len(list(prefix.iterdir())) == 2  # its own, and that
    job = finished(new_cluster(double, neighbour).submit(21))
    assert job.result == 42


def test_cleaning_only(start_node: StartNode, folder: Path) -> None:
    prefix = folder / "prefix"
    node = start_node("--dest-path-prefix", str(prefix))
    kill_all_but(node, 0)
    assert list(prefix.iterdir())
    ran = run_node("--clean", "--serve", "0", "--dest-path-prefix", str(prefix))
    assert ran.returncode == exitcodes.STOPPED, ran.stderr
    assert not list(prefix.iterdir())


# -- --serve --------------------------------------------------------------------------------------


def test_a_node_ends_when_it_has_served_its_clusters(
    start_node: StartNode, new_cluster: NewCluster
) -> None:
    node = start_node("--serve", "2")
    first = new_cluster(double, node)
    assert finished(first.submit(1)).result == 2
    first.close()
    assert node.process.poll() is None
    second = new_cluster(double, node)
    assert finished(second.submit(2)).result == 4
    second.close()
    assert node.wait(STOP_S) == exitcodes.STOPPED
    node.assert_nothing_left()


# -- hours ----------------------------------------------------------------------------------------


def test_out_of_its_hours_a_node_takes_no_jobs_until_they_begin(
    start_node: StartNode, new_cluster: NewCluster
) -> None:
    begins_s = 4.0
    hours = ("--service-start", in_s(begins_s), "--service-stop", in_s(3600))
    begun = time.monotonic()
    job = new_cluster(double, start_node(*hours)).submit(21)
    assert finished(job).result == 42
    assert time.monotonic() - begun > begins_s - 1.5  # times of day are whole seconds


def test_jobs_that_run_at_the_end_of_the_hours_are_ended(
    start_node: StartNode, new_cluster: NewCluster, folder: Path
) -> None:
    stop, end = in_s(6), in_s(8)
    hours = ("--service-start", in_s(-60), "--service-stop", stop, "--service-end", end)
    cluster = new_cluster(sleep, start_node(*hours, cpus=1))
    job = cluster.submit(600, str(folder / "begun"))
    is_there(folder / "begun")
    waits = cluster.submit(0)
    ended(job)
    assert job.status == DispyJob.Terminated
    assert str(job.exception).startswith(f"the node's service ended at {end}")
    assert waits.status == DispyJob.Created


# -- logs and files of options --------------------------------------------------------------------


def test_logs_as_json_lines(start_node: StartNode, new_cluster: NewCluster) -> None:
    node = start_node("--log-format", "json")
    finished(new_cluster(double, node).submit(1))
    node.stop()
    lines = [json.loads(line) for line in node.log().splitlines()]
    assert {"time", "level", "logger", "message"} == set(lines[0])
    assert lines[0]["level"] == "INFO" and lines[0]["logger"] == "dispy.node"
    assert " with 2 CPUs at " in lines[0]["message"]
    assert lines[0]["time"].endswith("Z") and lines[0]["time"][10] == "T"


def test_a_log_file_that_is_rotated(folder: Path) -> None:
    log = folder / "log"
    command = [sys.executable, "-m", "dispy.node.cli", "-p", "0", "--log-file", str(log)]
    with subprocess.Popen([*command, "-d"], stderr=subprocess.PIPE) as node:
        until(lambda: log.exists() and "CPUs at" in log.read_text(), "the first line")
        log.rename(folder / "log.1")
        os.kill(node.pid, signal.SIGTERM)
        _, stderr = node.communicate(timeout=STOP_S)
    assert node.returncode == exitcodes.STOPPED and not stderr
    assert "has stopped" in log.read_text() and "CPUs at" not in log.read_text()


def test_options_in_a_file(start_node: StartNode, folder: Path) -> None:
    path = folder / "node.ini"
    saved = run_node("--name", "100%", "--zombie_interval", "5", "--save_config", str(path))
    assert saved.returncode == exitcodes.STOPPED, saved.stderr
    assert path.read_text() == "[DEFAULT]\nname = 100%\nzombie_interval = 5.0\n\n"
    node = start_node("--config", str(path))
    assert "node 100% with 2 CPUs" in node.log()
    node = start_node("--config", str(path), "--name", "another")
    assert "node another with 2 CPUs" in node.log()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[DEFAULT]\nbogus = 1\n", "there is no option bogus"),
        ("[DEFAULT]\nname = ['a', 'b']\n", "name has several values"),
        ("[other]\nname = a\n", "[other] is unknown"),
        ("name = a\n", "is no file of options"),
        ("[DEFAULT]\ncpus = many\n", "'many' is not a valid integer"),
        ("[DEFAULT]\nhost = __import__('os').system('touch ran')\n", "can't be found"),
    ],
)
def test_files_that_are_none_of_options(folder: Path, text: str, reason: str) -> None:
    path = folder / "node.ini"
    path.write_text(text)
    ran = run_node("--config", str(path))
    assert ran.returncode == exitcodes.USAGE and reason in ran.stderr, ran.stderr
    assert not (folder / "ran").exists()
