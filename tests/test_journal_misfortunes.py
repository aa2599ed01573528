"""What may happen to the broker's journal: death at any moment, full disks, damage, a second owner.

Processes are real and die by SIGKILL; this file is also the program that they run.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from dispy.broker.ballast import Room
from dispy.broker.crashpoints import POINTS, crashpoint
from dispy.broker.durable import ClusterMeta, JobMark, Kept, Progress
from dispy.broker.effects import (
    DropBatch,
    DropCluster,
    DropResults,
    JournalEffect,
    KeepBatch,
    KeepCluster,
    KeepProgress,
    KeepResults,
)
from dispy.broker.journal import (
    Journal,
    JournalBroken,
    JournalError,
    JournalForbidden,
    JournalFull,
    JournalLocked,
    JournalUnreadable,
)
from dispy.protocol import exitcodes
from dispy.protocol.messages import (
    FINISHED,
    ComputationSpec,
    JobResult,
    JobSpec,
    OpenCluster,
    Results,
    Submit,
)
from dispy.protocol.wire import chunked

MEBIBYTE = 1 << 20
PATIENCE_S = 30.0
STEPS = 400  # of a program that isn't killed
KEPT = 5  # batches that are kept at a time
JOBS = 20  # in a batch
LARGE_STEPS = 7  # every so many batches one has a large payload
DISK_MIB = 24
NO_MOUNT = 77
FULL = "the disk of the broker's journal is full"


# -- the programs: each is run as `python FILE NAME ARGUMENTS...` ------------------------------


def write(folder: str, durability: str) -> None:
    """Apply one step after the other, and say of each that it is on disk."""
    with closing(Journal(Path(folder), durability)) as journal:
        kept = journal.load()
        if not kept.clusters:
            journal.apply([opened()])
        first = step_of(kept) + 1
        say(f"from {first}")
        for step in range(first, first + STEPS):
            journal.apply(effects_of(step))
            crashpoint("before-send")
            say(f"{step}")
            crashpoint("after-send")


def hold(folder: str) -> None:
    """Keep a journal open until the standard input ends."""
    with closing(Journal(Path(folder))):
        say("open")
        sys.stdin.read()


def fill(folder: str) -> None:
    """Write until the disk is full, make room, write again; print what was seen as JSON."""
    seen: dict[str, object] = {}
    state = Path(folder) / "state"
    filler = Path(folder) / "filler"
    with closing(Journal(state)) as journal:
        seen["at first"] = journal.trouble
        journal.apply([opened()])
        filler.write_bytes(os.urandom(free(folder) - 5 * MEBIBYTE))
        journal.look(1.0)
        seen["when nearly full"] = journal.trouble
        filler.write_bytes(os.urandom(filler.stat().st_size - 5 * MEBIBYTE))
        journal.look(2.0)
        seen["when there is room"] = journal.trouble
        seen["acknowledged"] = fill_up(journal, seen)
        seen["loaded"] = [batch.id for batch in journal.load().clusters[0].batches]
        seen["read"] = len(journal.read_batch(1) or [])
        journal.look(3.0)
        seen["looked at"] = journal.trouble
    seen["a new one"] = error_of(lambda: Journal(Path(folder) / "new"))
    with closing(Journal(state)) as journal:
        seen["restarted"] = journal.trouble
        seen["restarted with"] = [batch.id for batch in journal.load().clusters[0].batches]
        filler.unlink()
        journal.look(4.0)
        seen["with room"] = journal.trouble
        journal.apply([large_batch(1000)])
        seen["ballast"] = (state / "ballast").stat().st_size
    print(json.dumps(seen))


def fill_up(journal: Journal, seen: dict[str, object]) -> list[int]:
    """Write batches until the journal is full; return those that were kept."""
    acknowledged: list[int] = []
    while len(acknowledged) < 10 * DISK_MIB:
        try:
            journal.apply([large_batch(len(acknowledged) + 1)])
        except JournalFull as error:
            seen["error"] = str(error)
            break
        acknowledged.append(len(acknowledged) + 1)
        if journal.trouble and "first with trouble" not in seen:
            seen["first with trouble"] = acknowledged[-1]
            seen["trouble"] = journal.trouble
    seen["again"] = error_of(lambda: journal.apply([large_batch(500)]))
    return acknowledged


def exceed(folder: str) -> None:
    """Write more than this process may, which is no full disk; print what was raised."""
    with closing(Journal(Path(folder))) as journal:
        journal.apply([opened()])
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE // 4, resource.RLIM_INFINITY))
        errors = [error_of(lambda: journal.apply([large_batch(1)]))]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        errors.append(error_of(lambda: journal.apply([effects_of(1)[0]])))
    print(json.dumps(errors))


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def free(folder: str) -> int:
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize


def error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except JournalError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# -- what they write ---------------------------------------------------------------------------


def opened() -> KeepCluster:
    meta = ClusterMeta("owner", 1, "user", 1.0)
    return KeepCluster(1, meta, OpenCluster(1, ComputationSpec("name", []), []))


def large_batch(number: int) -> KeepBatch:
    return KeepBatch(number, 1, Submit(1, [JobSpec(number, 0, os.urandom(MEBIBYTE // 2))]), True, 0)


def jobs_of(step: int) -> list[JobSpec]:
    """Return the jobs of a step; a large payload tells whether it is whole."""
    jobs = [JobSpec(JOBS * step + index, 0, b"%d" % step) for index in range(JOBS)]
    if step % LARGE_STEPS == 0:
        jobs[0].payload, jobs[0].parts = b"", [chunked(b"%08d" % step * (MEBIBYTE // 7))]
    return jobs


def effects_of(step: int) -> list[JournalEffect]:
    """Return what is kept at a step; it is one transaction."""
    end = JobResult(JOBS * step, 1, FINISHED, 1.0, 2.0, b"%d" % step)
    effects: list[JournalEffect] = [
        KeepBatch(2 * step, 1, Submit(1, jobs_of(step)), True, 0),
        KeepProgress(2 * step, Progress(b"", [JobMark(0, step, 1)])),
        KeepResults(2 * step + 1, 1, Results(1, 1, [end])),
        KeepCluster(1, ClusterMeta("owner", 1, "user", 1.0, ended=step), None),
    ]
    if step > 1:
        effects.append(KeepProgress(2 * step - 2, Progress(b"\1", [JobMark(1, step, 1)])))
    if step > KEPT:
        old = 2 * (step - KEPT)
        effects += [DropBatch(old), DropResults([old + 1])]
    return effects


def step_of(kept: Kept) -> int:
    """Return the last step that is in a journal; 0: none is."""
    return kept.clusters[0].meta.ended if kept.clusters else 0


def check_it_is_just(journal: Journal, step: int) -> None:
    """All of the steps up to this one must be there, and nothing else."""
    assert not journal.strays()
    (cluster,) = journal.load().clusters
    steps = list(range(max(1, step - KEPT + 1), step + 1))
    assert [batch.id for batch in cluster.batches] == [2 * each for each in steps]
    assert [each.id for each in cluster.results] == [2 * each + 1 for each in steps]
    for batch, each in zip(cluster.batches, steps, strict=True):
        assert journal.read_batch(batch.id) == jobs_of(each)
        last = Progress(b"", [JobMark(0, each, 1)])
        earlier = Progress(b"\1", [JobMark(1, each + 1, 1)])
        assert batch.progress == (last if each == step else earlier)


# -- running them ------------------------------------------------------------------------------


def run(name: str, *arguments: str, through: tuple[str, ...] = (), **environment: str) -> Program:
    command = [*through, sys.executable, __file__, name, *arguments]
    return Program(command, {**os.environ, **environment})


class Program:
    """One of these programs, as a process with pipes."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> Iterator[str]:
        """Yield what it prints, line by line."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.strip()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> tuple[int, list[str], str]:
        """Wait; return its exit code, the lines it has printed since, and its errors."""
        out, err = self._process.communicate(timeout=PATIENCE_S)
        return self._process.returncode, out.split("\n")[:-1], err


@pytest.fixture
def started() -> Iterator[list[Program]]:
    """Programs in this list don't outlive the test."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.kill()
        with suppress(ValueError):  # it has been waited for
            program.end()


# -- death -------------------------------------------------------------------------------------

UNACKNOWLEDGED = {  # whether the step during which the program died is to be there
    "before-write": False,
    "after-write": False,
    "before-commit": False,
    "after-commit": True,
    "before-send": True,
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_all_that_was_acknowledged_is_there(tmp_path: Path, point: str) -> None:
    last = 0
    for count, durability in ((1, "normal"), (2, "full"), (17, "full"), (60, "normal")):
        program = run("write", str(tmp_path), durability, DISPY_CRASH_AT=f"{point}:{count}")
        code, said, err = program.end()
        assert code == -signal.SIGKILL, err
        acknowledged = int(said[-1]) if said and said[-1].isdecimal() else last
        with closing(Journal(tmp_path)) as journal:
            kept = journal.load()
            last = step_of(kept)
            if kept.clusters:
                check_it_is_just(journal, last)
        has_opened = bool(said)
        assert last == acknowledged + (has_opened and UNACKNOWLEDGED.get(point, False))
    assert last >= 5


def test_killed_at_any_moment_all_that_was_acknowledged_is_there(
    tmp_path: Path, started: list[Program]
) -> None:
    acknowledged = 0
    for moment in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89):
        program = run("write", str(tmp_path), "normal")
        started.append(program)
        lines = program.lines()
        for _ in range(moment + 1):
            next(lines)
        program.kill()
        said = [*lines]
        code, _, err = program.end()
        assert code == -signal.SIGKILL, err
        acknowledged = int(said[-1]) if said else acknowledged + moment
        with closing(Journal(tmp_path)) as journal:
            last = step_of(journal.load())
            assert acknowledged <= last <= acknowledged + 1
            check_it_is_just(journal, last)
        acknowledged = last


def test_a_crashpoint_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    code, _, err = run("write", str(tmp_path), "normal", DISPY_CRASH_AT="sometime:3").end()
    assert code == 1
    assert "sometime" in err and "before-commit" in err


# -- a second owner ----------------------------------------------------------------------------


def test_a_second_broker_is_refused_while_the_first_lives(
    tmp_path: Path, started: list[Program]
) -> None:
    program = run("hold", str(tmp_path))
    started.append(program)
    assert next(program.lines()) == "open"
    with pytest.raises(JournalLocked, match=r"process \d+: stop that broker first") as raised:
        Journal(tmp_path)
    assert raised.value.code == exitcodes.LOCKED
    with pytest.raises(JournalLocked):
        Journal.remove(tmp_path)
    program.kill()
    program.end()
    Journal(tmp_path).close()


def test_another_program_that_has_it_open_is_told(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalLocked, match="another program has"):
            Journal(tmp_path)
    Journal(tmp_path).close()


# -- no journal --------------------------------------------------------------------------------


def written(folder: Path) -> Path:
    """Make a journal with something in it; return its file."""
    with closing(Journal(folder)) as journal:
        journal.apply([opened()])
        for step in range(1, 40):
            journal.apply([large_batch(step)])
    return folder / "journal.sqlite"


def overwrite(path: Path, offset: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))


@pytest.mark.parametrize("offset", [0, 16, 4096, 8192])
def test_a_damaged_journal_is_refused_and_says_what_to_do(tmp_path: Path, offset: int) -> None:
    path = written(tmp_path)
    overwrite(path, offset, 8192)
    with pytest.raises(JournalUnreadable, match=r"damaged.*journal export") as raised:
        Journal(tmp_path)
    assert raised.value.code == exitcodes.CORRUPT
    for _ in range(2):  # it is no crash loop: the refusal changes nothing
        with pytest.raises(JournalUnreadable):
            Journal(tmp_path)
    for file in tmp_path.glob("journal.sqlite*"):
        file.rename(tmp_path / f"old-{file.name}")
    Journal(tmp_path).close()


def test_a_shortened_journal_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(JournalUnreadable, match="damaged"):
        Journal(tmp_path)


def test_rows_that_no_version_has_written_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    for table, column in (("clusters", "header"), ("clusters", "meta"), ("batches", "extent")):
        with closing(sqlite3.connect(path)) as database, database:
            (good,) = database.execute(f"SELECT {column} FROM {table} WHERE id = 1").fetchone()
            database.execute(f"UPDATE {table} SET {column} = x'ff'")
        undecodable = pytest.raises(JournalUnreadable, match="undecodable")
        with closing(Journal(tmp_path)) as journal, undecodable:
            journal.load()
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(f"UPDATE {table} SET {column} = ?", (good,))
    with closing(Journal(tmp_path)) as journal:
        assert journal.load().clusters[0].meta.user == "user"


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalUnreadable, match=r"newer version.*format 99") as raised:
        Journal(tmp_path)
    assert raised.value.code == exitcodes.CORRUPT


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_text("Dear diary, " * 1000)
    with pytest.raises(JournalUnreadable, match="not a database"):
        Journal(tmp_path)
    (tmp_path / "journal.sqlite").unlink()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database:
        database.execute("CREATE TABLE diary (text)")
    with pytest.raises(JournalUnreadable, match="no journal of a broker"):
        Journal(tmp_path)


def test_a_folder_that_can_not_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file") as raised:
        Journal(tmp_path / "file" / "state")
    assert raised.value.code == exitcodes.CANNOT_CREATE
    with pytest.raises(JournalForbidden) as forbidden:  # not even root may make a folder there
        Journal(Path("/sys/state"))
    assert forbidden.value.code == exitcodes.NOT_PERMITTED


def test_damage_that_is_met_later_ends_all_writing(tmp_path: Path) -> None:
    path = written(tmp_path)
    with closing(Journal(tmp_path)) as journal:
        os.truncate(path, 4096)
        with pytest.raises(JournalBroken):
            for number in range(1, 40):
                journal.read_batch(number)
        with pytest.raises(JournalBroken):
            journal.apply([DropCluster(1)])


# -- disks -------------------------------------------------------------------------------------


def test_an_error_of_the_disk_ends_all_writing(tmp_path: Path) -> None:
    code, said, err = run("exceed", str(tmp_path)).end()
    assert code == 0, err
    first, second = json.loads(said[-1])
    assert first.startswith("JournalBroken: ") and "disk" in first
    assert second == first
    with closing(Journal(tmp_path)) as journal:
        assert journal.load().clusters[0].batches == []


@pytest.fixture
def disk(tmp_path: Path) -> tuple[tuple[str, ...], str]:
    """Return what runs a program with a small disk that nobody else sees, and its folder."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can give a program a disk of its own")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={DISK_MIB}m dispy "$0" || exit {NO_MOUNT}; exec "$@"'
    through = ("unshare", "-m", "--propagation", "private", "sh", "-c", mount, str(folder))
    return through, str(folder)


def test_a_full_disk_is_told_in_time_and_nothing_is_lost(
    disk: tuple[tuple[str, ...], str],
) -> None:
    through, folder = disk
    code, said, err = run("fill", folder, through=through).end()
    if code == NO_MOUNT or "unshare" in err:
        pytest.skip(f"no disk of its own for a program here: {err}")
    assert code == 0, err
    seen = json.loads(said[-1])
    assert seen["at first"] == seen["when there is room"] == seen["with room"] == ""
    assert FULL in seen["when nearly full"] and folder in seen["when nearly full"]
    assert FULL in seen["trouble"] and FULL in seen["looked at"] and FULL in seen["restarted"]
    acknowledged = seen["acknowledged"]
    after = len(acknowledged) - seen["first with trouble"]
    assert after >= 2, "what has begun could go on, where the ballast was"
    assert seen["loaded"] == seen["restarted with"] == acknowledged
    assert seen["read"] == 1
    assert FULL in seen["error"]
    assert seen["again"].startswith("JournalFull: ")
    assert seen["a new one"].startswith("JournalFull: ")
    assert seen["ballast"] == DISK_MIB * MEBIBYTE // 8


def test_a_ballast_is_given_up_once(tmp_path: Path) -> None:
    room = Room(tmp_path, 0)
    assert not room.give_up()
    room = Room(tmp_path, 0)
    room.look(0)
    assert room.trouble == ""
    assert room.give_up()
    assert FULL in room.trouble
    assert not room.give_up()
    room.look(0)  # there is room on this disk
    assert room.trouble == ""
    assert room.give_up()


if __name__ == "__main__":
    PROGRAMS: dict[str, Callable[..., None]] = {
        "write": write,
        "hold": hold,
        "fill": fill,
        "exceed": exceed,
    }
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
