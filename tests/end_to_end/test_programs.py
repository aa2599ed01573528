"""Programs as computations: scripts, Python files and binaries, as their users would write them."""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import sys
from pathlib import Path

import psutil
import pytest

import dispy
from dispy import DispyJob

from .conftest import NewCluster
from .processes import STOP_S, NodeProcess
from .waiting import ended, finished, is_there, until


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user's program runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, source: str, mode: int = 0o755) -> str:
    """Write a program; return its path."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    path.chmod(mode)
    return name


def output(job: DispyJob) -> bytes:
    """Return what a program has printed."""
    assert isinstance(job.stdout, bytes)
    return job.stdout


SCRIPT = """#!/bin/sh
echo "$1-$2"
echo problem >&2
exit $3
"""


@pytest.mark.parametrize("mode", [0o755, 0o644], ids=["executable", "plain"])
def test_a_script_has_its_exit_status_as_result_and_bytes_as_output(
    node: NodeProcess, new_cluster: NewCluster, mode: int
) -> None:
    cluster = new_cluster(write("work.sh", SCRIPT, mode), node)
    assert cluster.name == "work.sh"
    for status in (0, 3):
        job = finished(cluster.submit("one two", "$HOME", status))
        assert job.result == job() == status
        assert (job.stdout, job.stderr) == (b"one two-$HOME\n", b"problem\n")
        assert job.exception is None


PYTHON = """
import json, os, sys
names = ["dispy_node_name", "dispy_node_ip_addr", "dispy_job_path", "PATH"]
print(json.dumps([sys.argv[1:], os.getcwd(), os.listdir("."), [os.environ[n] for n in names]]))
sys.stdout.buffer.write(bytes([0, 255]))
"""


def test_a_python_file_runs_below_the_nodes_python_and_finds_its_surroundings(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    Path("data.txt").touch()
    cluster = new_cluster(write("work.py", PYTHON, 0o644), node, depends=["data.txt"])
    job = finished(cluster.submit(1, 2.5, "three", None))
    assert job.result == 0
    assert isinstance(job.stdout, bytes) and job.stdout.endswith(b"\n\0\xff")
    arguments, current, files, names = json.loads(job.stdout[:-2])
    assert arguments == ["1", "2.5", "three", "None"]
    assert sorted(files) == ["data.txt", "work.py"]
    name, address, path, search = names
    assert name and address == node.host and path == current
    assert search.split(":")[0] == current


def test_a_job_of_a_program_may_have_files_of_its_own(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(
        write("work.sh", '#!/bin/sh\ncat "$1"; pwd; echo $dispy_job_path\n'), node
    )
    Path("mine.txt").write_text("mine\n")
    job = finished(cluster.submit("mine.txt", dispy_job_depends=["mine.txt"]))
    text, current, path = output(job).decode().split()
    assert text == "mine" and current == path and job.result == 0
    without = finished(cluster.submit("mine.txt"))
    assert isinstance(without.stderr, bytes) and b"mine.txt" in without.stderr
    assert not Path(path).exists()


def test_a_python_program_finds_modules_that_it_depends_on(
    node: NodeProcess, new_cluster: NewCluster, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("lib/helper_of_a_program.py", "def name(): return __name__\n", 0o644)
    monkeypatch.syspath_prepend(str(here / "lib"))
    module = importlib.import_module("helper_of_a_program")
    source = "import helper_of_a_program\nprint(helper_of_a_program.name())\n"
    cluster = new_cluster(write("bin/work.py", source), node, depends=[module])
    job = finished(cluster.submit())
    assert (job.result, job.stdout) == (0, b"helper_of_a_program\n"), job.stderr
    del sys.modules[module.__name__]


def test_a_binary_is_found_on_path(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster("expr", node)
    job = finished(cluster.submit(6, "*", 7))
    assert (job.result, job.stdout) == (0, b"42\n")
    assert finished(cluster.submit(1, "-", 1)).result == 1
    copy = shutil.copy(str(shutil.which("expr")), "mine")
    assert finished(new_cluster(f"./{copy}", node).submit(1, "+", 1)).stdout == b"2\n"


def test_a_program_in_a_folder_keeps_its_path(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(write("bin/below/work.sh", "#!/bin/sh\necho $0\n"), node)
    assert output(finished(cluster.submit())).endswith(b"/bin/below/work.sh\n")


def test_a_program_that_is_killed_has_a_negative_status(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(write("work.sh", "#!/bin/sh\nkill -9 $$\n"), node)
    assert finished(cluster.submit()).result == -9


CHILDREN = """#!/bin/sh
sleep 600 &
echo $! > "$1.part"
setsid sleep 600 &
echo $! >> "$1.part"
echo $$ >> "$1.part"
echo begun
mv "$1.part" "$1"
wait
"""


def test_cancel_ends_a_program_with_all_its_children(
    node: NodeProcess, new_cluster: NewCluster, here: Path
) -> None:
    cluster = new_cluster(write("work.sh", CHILDREN), node, cancel_grace=0.5)
    job = cluster.submit(here / "pids")
    pids = [int(pid) for pid in is_there(here / "pids").split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    assert cluster.cancel(job) == 0
    ended(job, STOP_S + 1)
    assert job.status == DispyJob.Terminated
    assert output(job) == b"begun\n"
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the end of all of them")


def test_a_timeout_ends_a_program(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster("sleep", node, timeout=0.3)
    job = ended(cluster.submit(600))
    assert job.status == DispyJob.Terminated
    assert "ran longer than its limit of 0.3 s" in str(job.exception)


def prepare(name: str) -> int:
    Path(name).write_text("prepared\n")
    return 0


def test_a_program_can_have_a_setup(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster(
        write("work.sh", "#!/bin/sh\ncat made\n"),
        node,
        setup=functools.partial(prepare, "made"),
        cleanup=functools.partial(prepare, "made"),
    )
    assert finished(cluster.submit()).stdout == b"prepared\n"


# -- what can't be run ---------------------------------------------------------------------------


def test_what_cannot_be_executed_raises_in_the_caller(
    node: NodeProcess, new_cluster: NewCluster
) -> None:
    with pytest.raises(FileNotFoundError, match="missing-program"):
        new_cluster("missing-program", node)
    with pytest.raises(FileNotFoundError, match=r"\./missing"):
        new_cluster("./missing", node)
    with pytest.raises(PermissionError, match=r"plain\.txt"):
        new_cluster(write("plain.txt", "text", 0o644), node)
    with pytest.raises(ValueError, match="folder"):
        Path("folder").mkdir()
        new_cluster("./folder", node)


@pytest.mark.parametrize("source", ["#!/no/such/interpreter\n", "\0garbage"])
def test_what_cannot_be_executed_at_the_node_is_told(
    node: NodeProcess, new_cluster: NewCluster, source: str
) -> None:
    cluster = new_cluster(write("work", source), node)
    job = ended(cluster.submit())
    assert job.status == DispyJob.Terminated and job.result is None
    assert "'work' can't be executed" in str(job.exception)
    assert "Traceback" not in str(job.exception)


def test_arguments_no_program_can_get_are_told(node: NodeProcess, new_cluster: NewCluster) -> None:
    cluster = new_cluster("echo", node)
    try:
        job = ended(cluster.submit("a\0b"))
    except ValueError as error:
        assert "null" in str(error) or "NUL" in str(error)
    else:
        assert job.status == DispyJob.Terminated and "null" in str(job.exception)
    with pytest.raises(TypeError):
        cluster.submit(name="value")
    assert finished(cluster.submit("ä")).stdout == "ä\n".encode()


def test_a_program_leaves_the_client_as_it_was(node: NodeProcess) -> None:
    with dispy.JobCluster("true", nodes=[node.address]) as cluster:
        assert cluster.submit()() == 0
    assert not list(Path().iterdir())
