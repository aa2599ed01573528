"""The command ``dispy``, as a user calls it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .behind_relays import without_hints
from .conftest import StartNode
from .processes import NodeProcess
from .waiting import is_there, until

COMMAND = [sys.executable, "-m", "dispy.cli"]
GREET = """\
import sys
print("hello", *sys.argv[1:])
print("oh", file=sys.stderr)
sys.exit(len(sys.argv) > 2)
"""
READ = """\
print(open("table.txt").read(), end="")
"""
WAIT = """\
import os, sys, time
with open(sys.argv[1], "w") as file:
    print(os.getpid(), file=file)
time.sleep(1000)
"""


def dispy(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def on(node: NodeProcess) -> list[str]:
    return ["run", "-n", node.address]


def script(folder: Path, text: str, name: str = "program.py") -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_job_for_each_argument(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    program = script(tmp_path, GREET)
    done = dispy("run", "-n", node.address, "-a", "one", "-a", "'a b'", program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "==> job 1 (one): exit code 0, " in done.stdout
    assert "==> job 2 ('a b'): exit code 0, " in done.stdout
    assert {"hello one", "hello a b"} <= set(done.stdout.splitlines())
    assert without_hints(done.stderr) == "oh\noh\n"
    assert list(tmp_path.glob("_dispy_*")) == []


def test_without_arguments_there_is_one_job(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    program = script(tmp_path, GREET)
    done = dispy("run", "-q", "-n", node.address, program, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    done = dispy("run", "-q", "-n", node.address, program, "--", "--fast", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "hello --fast\n"), done.stderr


def test_a_program_that_fails(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    program = script(tmp_path, GREET)
    done = dispy("run", "-n", node.address, "-a", "1", "-a", "1 2", program, folder=tmp_path)
    assert done.returncode == 1
    assert "job 2 (1 2): exit code 1" in done.stdout


def test_a_program_that_is_killed(start_node: StartNode, tmp_path: Path) -> None:
    done = dispy(*on(start_node()), "sh", "--", "-c", "kill -9 $$", folder=tmp_path)
    assert done.returncode == 1
    assert "job 1 (-c 'kill -9 $$'): killed by signal 9" in done.stdout


def test_standard_input_is_empty(start_node: StartNode, tmp_path: Path) -> None:
    program = script(tmp_path, "import sys; print(repr(sys.stdin.read()))", "a program.py")
    command = [*COMMAND, *on(start_node()), "-q", program]
    with open("/dev/zero", "rb") as endless:
        said = subprocess.check_output(command, stdin=endless, cwd=tmp_path, timeout=30, text=True)
    assert said == "''\n"


def test_what_is_too_long_says_so(start_node: StartNode, tmp_path: Path) -> None:
    program = script(tmp_path, "print(5_000_000 * 'x')")
    done = dispy(*on(start_node()), "-q", program, folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("x") == 1 << 20
    assert "[output cut: more than 1048576 bytes]" in done.stdout


def test_many_jobs(start_node: StartNode, tmp_path: Path) -> None:
    words = [word for number in range(300) for word in ("-a", str(number))]
    node = start_node()
    done = dispy(*on(node), "-q", *words, "echo", folder=tmp_path)
    assert done.returncode == 0
    assert sorted(map(int, done.stdout.split())) == list(range(300))


def test_a_reader_that_has_had_enough(start_node: StartNode, tmp_path: Path) -> None:
    words = [word for number in range(3) for word in ("-a", str(number))]
    program = script(tmp_path, "print(500_000 * 'x')")
    command = [*COMMAND, *on(start_node()), "-q", *words, program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert without_hints(process.stderr.read().decode()) == ""
    assert process.returncode == 1


def test_a_job_that_takes_too_long(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    program = script(tmp_path, WAIT)
    began = str(tmp_path / "began")
    words = ["run", "-n", node.address, "--timeout", "0.5", "-a", began, program]
    done = dispy(*words, folder=tmp_path)
    assert done.returncode == 1
    assert "Terminated" in done.stdout
    assert "longer than" in done.stderr


def test_files_and_other_programs(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    (tmp_path / "table.txt").write_text("a,b\n")
    words = ["-n", node.address, "-f", "table.txt"]
    done = dispy("run", "-q", *words, script(tmp_path, READ), folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "a,b\n"), done.stderr
    shell = script(tmp_path, "#!/bin/sh\ncat table.txt\n", "program")
    done = dispy("run", "-q", *words, shell, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "a,b\n"), done.stderr


def test_a_table_at_the_end(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    done = dispy("run", "-v", "-n", node.address, script(tmp_path, GREET), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Total job time" in done.stdout


def test_this_machine_is_enough(tmp_path: Path) -> None:
    done = dispy("run", "-a", "there", script(tmp_path, GREET), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hello there\n" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(start_node: StartNode, tmp_path: Path, number: signal.Signals) -> None:
    node = start_node()
    began = tmp_path / "began"
    words = ["run", "-n", node.address, "-a", str(began), script(tmp_path, WAIT)]
    with subprocess.Popen([*COMMAND, *words], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        pid = int(is_there(began))
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in said
    until(lambda: not _lives(pid), "the end of the job")
    until(lambda: not node.job_processes(), "the end of all job processes")
    assert list(tmp_path.glob("_dispy_*")) == []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run"], "Missing argument 'PROGRAM'"),
        (["run", "nothing"], "there is no file 'nothing'"),
        (["run", "."], "'.' is a folder"),
        (["run", "-f", "nothing", "program.py"], "'nothing' does not exist"),
        (["run", "-a", "'", "program.py"], 'No closing quotation, in "\'"'),
        (["run", "--timeout", "-1", "program.py"], "0 or more"),
        (["run", "--retries", "-1", "program.py"], "-1"),
        (["recover", "--timeout", "nan"], "0 or more"),
        (["walk"], "No such command"),
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str], reason: str) -> None:
    script(tmp_path, GREET)
    done = dispy(*words, folder=tmp_path)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_recover(tmp_path: Path) -> None:
    done = dispy("recover", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"Error: there is no recover file (_dispy_*) in {tmp_path}\n"
    done = dispy("recover", "nothing", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    script(tmp_path, GREET)
    done = dispy("recover", "program.py", folder=tmp_path)
    assert done.stderr == "Error: program.py is not a recover file of this version of dispy\n"


def test_it_explains_itself_quickly(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = dispy("--help", folder=tmp_path)
    assert time.monotonic() - begin < 2.0, "without what only commands need, a fifth of a second"
    assert done.returncode == 0
    assert "dispy run" in done.stdout
    for command in ("run", "recover"):
        done = dispy(command, "--help", folder=tmp_path)
        assert "Examples:" in done.stdout
        assert "Exit codes:" in done.stdout
    assert dispy("--version", folder=tmp_path).stdout.startswith("dispy, version ")


def test_only_what_is_needed_is_imported() -> None:
    program = "import sys, dispy.cli; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"zmq", "msgspec", "cloudpickle", "psutil"} & set(done.stdout.split())
