"""The commands of dispy under their old names, with their old options."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dispy
from dispy.broker import oldcommand as oldscheduler
from dispy.node import oldcommand as oldnode
from dispy.protocol import exitcodes
from dispy.protocol.oldoptions import Old, translate

from .apart import HERE
from .conftest import NewCluster
from .processes import STOP_S, Marked
from .waiting import finished, until

NODE = [sys.executable, "-m", "dispy.node.oldcommand"]
SCHEDULER = [sys.executable, "-m", "dispy.broker.oldcommand"]
RESULT = 42


def answer() -> int:
    return 42


@pytest.fixture
def started() -> Iterator[list[Marked]]:
    """Processes that are ended with the test, and have to leave nothing."""
    processes: list[Marked] = []
    yield processes
    try:
        for process in processes:
            if process.process.poll() is None:
                process.process.terminate()
            assert process.wait(STOP_S) == exitcodes.STOPPED, process.log()[-2000:]
            process.assert_nothing_left()
    finally:
        for process in processes:
            process.clear_away()


def address_of(process: Marked) -> str:
    """Wait until a node listens; return where."""
    until(lambda: re.search(r"CPUs at \S+, pid", process.log()), "the node's address")
    return process.log().split("CPUs at ")[1].split(",")[0]


def test_a_node_with_old_options(
    folder: Path, started: list[Marked], new_cluster: NewCluster
) -> None:
    options = ["--ip_addr", "127.0.0.1", "--dispy_port=0", "-c", "1", "--zombie_interval", "5"]
    more = ["--dest_path_prefix", str(folder / "files"), "--max_file_size", "10M", "--serve", "-1"]
    ignored = ["--msg_timeout", "20", "--unsafe_setup"]
    more += ["--ipv4_udp_multicast", "--ext_host=node.example", "--secret="]
    started.append(Marked([*NODE, *options, *more, *ignored, "--daemon", "-d"], folder))
    cluster = new_cluster(answer, address_of(started[0]))
    assert finished(cluster.submit()).result == RESULT
    for name in ("--msg_timeout", "--unsafe_setup"):
        assert started[0].log().count(f"WARNING: {name} means nothing any more") == 1


def test_a_file_that_the_old_node_has_saved(
    folder: Path, started: list[Marked], new_cluster: NewCluster
) -> None:
    path = folder / "dispynode.ini"
    path.write_text(
        "[DEFAULT]\ncpus = 1\nsave_config = \ndebug = False\nhost = ['127.0.0.1']\n"
        "ext_host = []\ndispy_port = 0\nname = \nsecret = \nservice_start = \nserve = -1\n"
        "msg_timeout = 10\nping_interval = 0\nclean = True\nzombie_interval = 60\n"
        f"dest_path_prefix = {folder / 'files'}\n"
    )
    started.append(Marked([*NODE, "--config", str(path), "--name", "old"], folder))
    assert finished(new_cluster(answer, address_of(started[0])).submit()).result == RESULT
    assert "node old with 1 CPUs" in started[0].log()


def test_a_scheduler_with_old_options(folder: Path, started: list[Marked]) -> None:
    options = ["--port", "0", "--dest_path_prefix", str(folder / "state"), "--zombie_interval=5"]
    started.append(Marked([*SCHEDULER, *options, "--httpd", "--fair_cluster_scheduler"], folder))
    until(lambda: "--httpd means nothing any more" in started[0].log(), "its log")
    until(lambda: f"{HERE}:" in started[0].log(), "its addresses")


@pytest.mark.parametrize(
    "command, option",
    [(NODE, "--admin_secret"), (NODE, "--init")],
)
def test_what_cannot_be_had_is_refused(command: list[str], option: str) -> None:
    ran = subprocess.run([*command, option, "x"], capture_output=True, text=True, timeout=30)
    assert ran.returncode == exitcodes.USAGE
    assert f"{option}: this release" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", [NODE, SCHEDULER])
def test_nonsense_is_refused_by_the_new_command(command: list[str]) -> None:
    ran = subprocess.run([*command, "--nonsense"], capture_output=True, text=True, timeout=30)
    assert ran.returncode == exitcodes.USAGE
    assert "No such option" in ran.stderr and "--nonsense" in ran.stderr


@pytest.mark.parametrize("table", [oldnode.OPTIONS, oldscheduler.OPTIONS])
def test_just_one_thing_has_become_of_each_option(table: list[Old]) -> None:
    assert all(bool(old.to) + bool(old.gone) + bool(old.refused) == 1 for old in table)
    names = [name for old in table for name in old.names.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("spelling", ["--dest_path_prefix", "--dest-path-prefix"])
def test_old_options_may_have_dashes(spelling: str) -> None:
    now = translate("dispynode", "dispy-node", oldnode.OPTIONS, [spelling, "/x"])
    assert now.arguments == ["--dest-path-prefix=/x"] and not now.notes


def test_new_options_are_passed_on() -> None:
    now = translate("dispynode", "dispy-node", oldnode.OPTIONS, ["--log-format", "json", "-c-1"])
    assert now.arguments == ["--cpus=-1", "--log-format", "json"]


def test_options_that_may_be_repeated() -> None:
    arguments = ["-n", "a", "--node", "b", "--early_cluster_scheduler"]
    now = translate("dispyscheduler", "dispy-broker", oldscheduler.OPTIONS, arguments)
    assert now.arguments == ["--node=a", "--node=b", "--policy=fifo"]


def test_the_command_line_comes_before_the_file(folder: Path) -> None:
    path = folder / "old.ini"
    path.write_text("[DEFAULT]\nnode = ['c', 'd']\nport = 1\nsecret = \nhttpd = False\n")
    arguments = ["--config", str(path), "-n", "a"]
    now = translate("dispyscheduler", "dispy-broker", oldscheduler.OPTIONS, arguments)
    assert now.arguments == ["--node=a", "--dispy-port=1"] and not now.notes


def test_lists_have_other_names_in_a_file_than_as_options(folder: Path) -> None:
    path = folder / "old.ini"
    path.write_text("[DEFAULT]\nhosts = ['127.0.0.1']\next_hosts = []\nnodes = ['c', 'd']\n")
    arguments = ["--config", str(path)]
    now = translate("dispyscheduler", "dispy-broker", oldscheduler.OPTIONS, arguments)
    assert now.arguments == ["--host=127.0.0.1", "--node=c", "--node=d"] and not now.notes
    path.write_text("[DEFAULT]\nhosts = ['127.0.0.1']\next_hosts = []\n")
    now = translate("dispynode", "dispy-node", oldnode.OPTIONS, arguments)
    assert now.arguments == ["--host=127.0.0.1"] and not now.notes


def test_secrets_have_the_names_that_they_had(folder: Path) -> None:
    path = folder / "old.ini"
    path.write_text("[DEFAULT]\nsecret = x y\ncertfile = \nkeyfile = k.pem\n")
    now = translate("dispynode", "dispy-node", oldnode.OPTIONS, ["--config", str(path)])
    assert now.arguments == ["--secret=x y", "--keyfile=k.pem"] and not now.notes
    arguments = ["--cluster_secret", "c", "--node_secret=n", "--node_certfile", "n.pem"]
    now = translate("dispyscheduler", "dispy-broker", oldscheduler.OPTIONS, arguments)
    assert now.arguments == ["--cluster-secret=c", "--node-secret=n", "--node-certfile=n.pem"]


def test_the_package_installs_the_old_names() -> None:
    text = Path(__file__).parents[2].joinpath("setup.cfg").read_text()
    assert "dispynode = dispy.node.oldcommand:main" in text
    assert "dispyscheduler = dispy.broker.oldcommand:main" in text
    assert callable(oldnode.main) and callable(oldscheduler.main) and dispy.__version__
