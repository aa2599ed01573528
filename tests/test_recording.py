"""The recover file: what a session has recorded can be read again, however it was cut off."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy import recorded, recording, recoverfile
from dispy.job import DispyJob
from dispy.protocol.messages import JobSpec, Large, NodeInfo
from dispy.recorded import (
    BrokerRecord,
    EndedRecord,
    ProgramRecord,
    Recorded,
    RecoverError,
    id_of,
)
from dispy.recording import Recordings
from dispy.recover import clusters_of, newest
from dispy.recoverfile import RecoverFile
from dispy.recovery import Recovery

LOCKED = """
import sys
from dispy.recoverfile import RecoverError, is_in_use, open_again
from pathlib import Path
path = Path(sys.argv[1])
try:
    open_again(path)
except RecoverError as error:
    print(is_in_use(path), error)
"""
NODE = NodeInfo(3, "127.0.0.1:9701", "here", 2, "Linux")
PRIVATE = NodeInfo(4, "", "mine", 2, "Linux")


class Key:
    """An id as users make them."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


def new_job(seq: int, job_id: object = None, payload: bytes = b"arguments") -> DispyJob:
    return DispyJob(1, JobSpec(seq, 0, payload), job_id, (seq,), {})


class Play(Recordings):
    """Recordings, with what the core would know of the jobs."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:9700")
        self.jobs: dict[int, dict[int, DispyJob]] = {}
        self.away: dict[int, set[int]] = {}

    def begin(self, number: int = 1, path: str | None = None) -> None:
        jobs, away = self.jobs.setdefault(number, {}), self.away.setdefault(number, set())
        self.open(number, False, path, jobs, away)
        self.opened(number, 100 + number, "broker")

    def submit(self, number: int, *jobs: DispyJob) -> None:
        self.jobs[number] |= {job._seq: job for job in jobs}
        self.grown([number])

    def send(self, number: int, *seqs: int) -> None:
        self.away[number].update(seqs)
        self.sent(number, seqs)

    def end(self, number: int, *seqs: int) -> None:
        for seq in seqs:
            del self.jobs[number][seq]
            self.away[number].discard(seq)
        self.ended(number, seqs)


def read(path: Path) -> Recorded:
    return recorded.read(path.read_bytes(), path.name)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("_dispy_*"))


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    monkeypatch.chdir(tmp_path)
    made = Play()
    yield made
    made.forget()


def test_what_was_sent_and_has_not_ended_is_in_the_file(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    recordings.submit(1, new_job(1), new_job(2, "second"), new_job(3, Key(3)))
    recordings.running(1, NODE.id, [1, 2])
    recordings.end(1, 1)
    recordings.flush(0.0)
    (path,) = files(tmp_path)
    found = read(path)
    assert found.program.broker == "broker"
    assert found.program.door == "127.0.0.1:9700"
    assert found.program.pid == os.getpid()
    cluster = found.computations[101]
    assert (cluster.number, cluster.program) == (1, False)
    assert cluster.nodes[NODE.id].address == NODE.address
    assert [id_of(job) for job in cluster.jobs.values()] == ["second", Key(3)]
    assert cluster.jobs[2].payload == b"arguments"
    assert cluster.begun[2] == NODE.id
    assert cluster.has_ended(1)
    assert not cluster.has_ended(2)
    assert not cluster.has_ended(4)


def test_nobody_else_may_read_it(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    recordings.flush(0.0)
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.name) == len("_dispy_YYYYMMDDHHMMSS")


def test_nor_one_that_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.touch()
    path.chmod(0o644)
    file = recoverfile.create(path, tmp_path, ProgramRecord("b", "127.0.0.1:9700", 1, "here"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.remove()


def test_there_is_no_file_for_private_nodes(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, PRIVATE)
    recordings.submit(1, new_job(1), new_job(2))
    recordings.flush(0.0)
    assert files(tmp_path) == []
    recordings.end(1, 1)
    recordings.node(1, NODE)
    recordings.flush(0.0)
    cluster = read(files(tmp_path)[0]).computations[101]
    assert list(cluster.jobs) == [2]
    assert list(cluster.nodes) == [NODE.id]


def test_it_goes_with_the_last_cluster(recordings: Play, tmp_path: Path) -> None:
    for number in (1, 2):
        recordings.begin(number)
        recordings.node(number, NODE)
    recordings.closed(1)
    recordings.flush(0.0)
    (path,) = files(tmp_path)
    assert read(path).clusters[1].closed
    first, second = clusters_of(read(path))
    assert (first.addresses, second.addresses) == (set(), {NODE.address})
    recordings.closed(2)
    assert files(tmp_path) == []


def test_a_file_with_a_name_is_of_its_cluster_alone(recordings: Play, tmp_path: Path) -> None:
    recordings.begin(1)
    recordings.begin(2, "mine")
    for number in (1, 2):
        recordings.node(number, NODE)
    recordings.flush(0.0)
    (path,) = files(tmp_path)
    assert set(read(path).computations) == {101}
    assert set(read(tmp_path / "mine").computations) == {102}
    assert read(path).siblings == [str(tmp_path / "mine")]
    assert read(tmp_path / "mine").siblings == [str(path)]


def test_ids_set_after_submit_are_kept(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    job = new_job(1)
    recordings.submit(1, job)
    recordings.flush(0.0)
    assert 0.0 < recordings.deadline() < 1.0
    job.id = {"any": "thing"}
    recordings.flush(recordings.deadline())
    (path,) = files(tmp_path)
    assert id_of(read(path).computations[101].jobs[1]) == {"any": "thing"}
    recordings.end(1, 1)
    recordings.flush(recordings.deadline())
    assert recordings.deadline() == float("inf")


def test_jobs_that_wait_are_in_the_file_too(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.submit(1, *[new_job(seq) for seq in range(1, 31)])
    recordings.flush(0.0)
    assert files(tmp_path) == [], "there is no node that outlives the program"
    recordings.send(1, 1, 2, 3)
    recordings.end(1, 1)
    recordings.node(1, NODE)
    recordings.submit(1, new_job(31))
    recordings.end(1, 30)
    recordings.flush(0.0)
    cluster = read(files(tmp_path)[0]).computations[101]
    assert list(cluster.jobs) == [*range(2, 30), 31]
    assert cluster.sent == {2, 3}
    assert cluster.has_ended(1)
    assert cluster.has_ended(30)
    recordings.send(1, 4)
    recordings.flush(0.0)
    assert read(files(tmp_path)[0]).computations[101].sent == {2, 3, 4}


def test_many_jobs_are_recorded_in_steps(
    recordings: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "RECORD_JOBS", 4)
    monkeypatch.setattr(recording, "RECORD_BYTES", 20)
    recordings.begin()
    recordings.submit(1, *[new_job(seq, payload=b"") for seq in range(1, 7)])
    recordings.submit(1, *[new_job(seq, payload=bytes(15)) for seq in range(7, 11)])
    recordings.node(1, NODE)
    kept = []
    for _ in range(3):
        recordings.flush(0.0)
        cluster = read(files(tmp_path)[0]).computations[101]
        kept.append(len(cluster.jobs))
        assert cluster.up_to == kept[-1]
        assert (recordings.deadline() < 0.0) == (kept[-1] < 10), "it goes on at once"
    assert kept == [4, 8, 10]


def test_ids_are_looked_at_in_turns(
    recordings: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LOOK_JOBS", 10)
    recordings.begin()
    recordings.node(1, NODE)
    jobs = [new_job(seq) for seq in range(1, 26)]
    recordings.submit(1, *jobs)
    recordings.flush(0.0)
    recordings.end(1, 1)
    assert _changed_per_look(recordings, jobs, tmp_path) == [9, 19, 24]
    assert recordings.deadline() > 1.0, "then it has time"
    assert _changed_per_look(recordings, jobs, tmp_path) == [9, 19, 24]
    assert _changed_per_look(recordings, jobs, tmp_path) == [10, 20, 24]
    jobs.append(new_job(26))
    recordings.submit(1, jobs[-1])
    recordings.flush(0.0)
    jobs[-1].id = "new"
    recordings.flush(recordings.deadline())
    assert id_of(read(files(tmp_path)[0]).computations[101].jobs[26]) == "new", "it comes first"


def _changed_per_look(recordings: Play, jobs: list[DispyJob], folder: Path) -> list[int]:
    """Change all ids; return how many of them are in the file after one look, two, three."""
    before = {job._seq: job.id for job in jobs}
    for job in jobs:
        job.id = object.__repr__(job) + str(job.id)
    counts = []
    for _ in range(3):
        recordings.flush(recordings.deadline())
        found = read(files(folder)[0]).computations[101].jobs.values()
        counts.append(sum(id_of(job) != before[job.seq] for job in found))
    return counts


@pytest.mark.parametrize("job_id", [0, -1, 1 << 70, "", "ü", "\ud800", b"b", None, 1.5, Key(1)])
def test_every_id_comes_back(recordings: Play, tmp_path: Path, job_id: object) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    job = new_job(7)
    job.id = job_id
    recordings.submit(1, job)
    recordings.flush(0.0)
    entry = read(files(tmp_path)[0]).computations[101].jobs[7]
    assert id_of(entry) == job_id


def test_an_id_that_cannot_be_pickled_comes_as_text(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    lock = threading.Lock()
    recordings.submit(1, new_job(1, lock))
    recordings.flush(0.0)
    entry = read(files(tmp_path)[0]).computations[101].jobs[1]
    assert id_of(entry) == repr(lock)


def test_arguments_are_kept_up_to_a_size(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    size = recording.ARGUMENTS_BYTES_MAX
    fits = new_job(1)
    fits._spec = JobSpec(1, 0, b"", [Large(4, [b"ab", b"cd"]), Large(size - 4, [bytes(size - 4)])])
    large = new_job(2)
    large._spec = JobSpec(2, 0, b"x", [Large(size, [bytes(size)])])
    recordings.submit(1, fits, large)
    recordings.flush(0.0)
    jobs = read(files(tmp_path)[0]).computations[101].jobs
    assert jobs[1].parts == [b"abcd", bytes(size - 4)]
    assert (jobs[2].payload, jobs[2].parts) == (b"", [])


def test_a_huge_file_keeps_no_arguments(
    recordings: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "FILE_BYTES_MAX", 300)
    recordings.begin()
    recordings.node(1, NODE)
    for seq in (1, 2):
        recordings.submit(1, new_job(seq, payload=bytes(300)))
        recordings.flush(0.0)
    jobs = read(files(tmp_path)[0]).computations[101].jobs
    assert [len(job.payload) for job in jobs.values()] == [300, 0]


def test_a_long_file_is_rewritten_without_what_has_ended(
    recordings: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recoverfile, "REWRITE_BYTES", 5_000)
    recordings.begin()
    recordings.begin(2, "other")
    for number in (1, 2):
        recordings.node(number, NODE)
    recordings.submit(1, new_job(1, "the first"))
    recordings.running(1, NODE.id, [1])
    for seq in range(2, 1000):
        recordings.submit(1, new_job(seq))
        recordings.flush(0.0)
        recordings.end(1, seq)
        recordings.flush(0.0)
    (path,) = files(tmp_path)
    assert path.stat().st_size < 6_000
    found = read(path)
    cluster = found.computations[101]
    assert [id_of(job) for job in cluster.jobs.values()] == ["the first"]
    assert cluster.begun == {1: NODE.id}
    assert cluster.has_ended(500)
    assert found.siblings == [str(tmp_path / "other")]
    recordings.closed(1)
    assert files(tmp_path) == []


def test_what_is_at_a_shared_broker_is_recorded_without_any_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recoverfile, "REWRITE_BYTES", 1_000)
    shared = Recordings(shared_at="127.0.0.1:9702")
    shared.owner = "me"
    jobs: dict[int, DispyJob] = {}
    shared.open(3, True, None, jobs, set())
    assert files(tmp_path) == []  # the broker may never get to know it
    shared.opened(3, 77, "broker")
    jobs[1] = new_job(1, "one")
    for seq in range(2, 100):  # also when it is rewritten
        jobs[seq] = new_job(seq)
        shared.flush(0.0)
        del jobs[seq]
        shared.ended(3, [seq])
        shared.flush(0.0)
    (path,) = files(tmp_path)
    found = read(path)
    assert found.shared == BrokerRecord("127.0.0.1:9702", "me")
    cluster = found.clusters[3]
    assert (cluster.computation, cluster.program) == (77, True)
    assert [id_of(job) for job in cluster.jobs.values()] == ["one"]
    shared.closed(3)
    assert files(tmp_path) == []


def test_a_full_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = RecoverFile(tmp_path / "file", os.open("/dev/full", os.O_WRONLY))
    for _ in range(5):
        file.append(EndedRecord(1, [1]))
        file.write()
    file.close()
    assert len(caplog.records) == 1
    assert f"recover file {tmp_path / 'file'} (No space left" in caplog.text


def test_a_missing_folder_is_told_once(
    recordings: Play, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        recordings.begin(number, str(tmp_path / "nowhere" / "file"))
        recordings.node(number, NODE)
        recordings.submit(number, new_job(1))
        recordings.flush(0.0)
        recordings.closed(number)
    assert len(caplog.records) == 1


def test_unknown_clusters_are_ignored(recordings: Play, tmp_path: Path) -> None:
    recordings.opened(9, 109, "broker")
    recordings.node(9, NODE)
    recordings.sent(9, [1])
    recordings.running(9, NODE.id, [1])
    recordings.ended(9, [1])
    recordings.closed(9)
    recordings.flush(0.0)
    assert files(tmp_path) == []


# -- reading ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Twenty jobs, of which five have ended."""
    path = tmp_path_factory.mktemp("whole") / "file"
    recordings = Play()
    recordings.begin(path=str(path))
    recordings.node(1, NODE)
    for seq in range(1, 21):
        recordings.submit(1, new_job(seq))
        recordings.send(1, seq)
        recordings.flush(0.0)
    recordings.end(1, 1, 2, 3, 4, 5)
    recordings.flush(0.0)
    data = path.read_bytes()
    recordings.closed(1)
    return data


@pytest.mark.parametrize("tail", [b"", b"\0" * 100, b"\xff" * 100])
def test_a_torn_tail_costs_only_what_is_torn(whole: bytes, tail: bytes) -> None:
    seen = 0
    for length in range(len(whole) + 1):
        try:
            found = recorded.read(whole[:length] + tail, "torn")
        except RecoverError:
            assert not seen, "what could be read once can still be read"
            continue
        assert found.good_bytes <= length
        assert recorded.read(whole[: found.good_bytes], "again") == found
        clusters = [*clusters_of(found)]
        Recovery(clusters, set(), 0.0).check()
        jobs = {seq for each in found.clusters.values() for seq in {*each.jobs, *each.ended}}
        assert jobs == set(range(1, len(jobs) + 1))
        assert len(jobs) >= seen
        seen = len(jobs)
    assert seen == 20


@given(st.binary(max_size=50))
def test_a_tail_of_anything(whole: bytes, tail: bytes) -> None:
    assert recorded.read(whole + tail, "torn") == recorded.read(whole, "whole")


@given(st.data())
def test_damage_is_noticed(whole: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        found = recorded.read(bytes(damaged), "damaged")
    except RecoverError:
        return
    assert found.good_bytes <= place
    assert recorded.read(whole[: found.good_bytes], "the good part") == found


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_text("Dear reader")
    with pytest.raises(RecoverError, match="letter is not a recover file"):
        recoverfile.open_again(path)
    path.write_bytes(recorded.MAGIC)
    with pytest.raises(RecoverError, match="letter is cut off"):
        recoverfile.open_again(path)
    with pytest.raises(FileNotFoundError):
        recoverfile.open_again(tmp_path / "nothing")


def test_what_was_being_written_at_the_end_is_removed_too(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "_dispy_1"
    path.write_bytes(whole)
    (tmp_path / "._dispy_1.new").write_bytes(whole[:100])
    assert newest(tmp_path) == path
    file, _ = recoverfile.open_again(path)
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_opening_again_takes_the_torn_tail_off(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(whole[:-1])
    file, found = recoverfile.open_again(path)
    try:
        file.append(EndedRecord(1, [20]))
        file.write()
        cluster = read(path).clusters[1]
        assert cluster.ended == {20}
        assert len(cluster.jobs) == 19
        assert found.good_bytes < len(whole)
    finally:
        file.remove()
    assert not path.exists()


def test_a_file_of_this_program_is_not_opened(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    recordings.flush(0.0)
    (path,) = files(tmp_path)
    assert recoverfile.is_in_use(path)
    with pytest.raises(RecoverError, match="belongs to this program"):
        recoverfile.open_again(path)
    with pytest.raises(RecoverError, match="still runs"):
        newest(tmp_path)
    command = [sys.executable, "-c", LOCKED, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("True "), "looking at it hasn't unlocked it"


def test_a_file_whose_program_runs_is_not_opened(recordings: Play, tmp_path: Path) -> None:
    recordings.begin()
    recordings.node(1, NODE)
    recordings.flush(0.0)
    (path,) = files(tmp_path)
    command = [sys.executable, "-c", LOCKED, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("True the program of _dispy_")
    assert f"still runs (process {os.getpid()} on " in said
    recordings.forget()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_paths_are_checked_before(recordings: Play, tmp_path: Path) -> None:
    recoverfile.check_path(None)
    recoverfile.check_path(tmp_path / "new")
    with pytest.raises(TypeError):
        recoverfile.check_path(7)
    with pytest.raises(IsADirectoryError):
        recoverfile.check_path(tmp_path)
    with pytest.raises(FileNotFoundError):
        recoverfile.check_path(tmp_path / "nowhere" / "file")
    (tmp_path / "letter").write_text("Dear reader")
    with pytest.raises(FileExistsError):
        recoverfile.check_path(str(tmp_path / "letter"))
    recordings.begin(path="mine")
    recordings.node(1, NODE)
    recordings.flush(0.0)
    recoverfile.check_path("mine")
    assert recoverfile.is_in_use(tmp_path / "mine"), "it is still locked"
