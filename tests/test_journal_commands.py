"""`dispy journal check`, `export` and `prune`, on journals in order and damaged ones."""

from __future__ import annotations

import json
import os
import time
from base64 import b64decode
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dispy.broker.durable import ClusterMeta, JobMark, NodeMeta, Progress
from dispy.broker.effects import (
    KeepBatch,
    KeepCluster,
    KeepNode,
    KeepProgress,
    KeepResults,
)
from dispy.broker.journal import Journal
from dispy.cli import main
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

DAY_S = 86400.0
MEBIBYTE = 1 << 20
LARGE = bytes(range(256)) * (MEBIBYTE // 200)


def dispy(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["journal", *map(str, arguments)])


def exported(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dispy("export", *arguments).stdout.splitlines()]


def cluster(number: int, label: str, away_days: float = 0.0) -> KeepCluster:
    away_since = time.time() - away_days * DAY_S if away_days else 0.0
    meta = ClusterMeta("owner", number, "ann@lab", 1.0, away_since=away_since)
    spec = ComputationSpec("compute", [])
    return KeepCluster(number, meta, OpenCluster(number, spec, [], label=label))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder with clusters of three clients, two of which are away."""
    folder = tmp_path / "state"
    jobs = [JobSpec(1, 0, b"one"), JobSpec(2, 0, b"", [chunked(LARGE)]), JobSpec(3, 0, b"three")]
    end = JobResult(1, 1, FINISHED, 1.0, 2.5, b"result")
    with closing(Journal(folder)) as journal:
        journal.apply(
            [
                cluster(1, "simulation"),
                cluster(2, "", away_days=3),
                cluster(3, "old", away_days=30),
                KeepBatch(10, 1, Submit(1, jobs), True, 0),
                KeepProgress(10, Progress(b"\1", [JobMark(1, 1, 7)])),
                KeepResults(11, 1, Results(1, 7, [end])),
                KeepBatch(12, 3, Submit(1, jobs), True, 0),
                KeepResults(13, 3, Results(1, 7, [end])),
                KeepNode(7, NodeMeta("instance", "alpha", "127.0.0.1:9701", drained="by ann")),
            ]
        )
    return folder


def spoil(folder: Path, offset: int, size: int) -> None:
    with (folder / "journal.sqlite").open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))


def test_check_counts_what_is_there(folder: Path) -> None:
    result = dispy("check", folder)
    assert result.exit_code == 0, result.output
    assert "3 clusters, 1 nodes" in result.stdout
    assert "6 jobs in 2 batches, 1 of them have ended" in result.stdout
    assert "2 results that haven't been heard" in result.stdout
    assert "no damage" in result.stdout


def test_check_tells_of_damage(folder: Path) -> None:
    size = (folder / "journal.sqlite").stat().st_size
    spoil(folder, size // 2, 8192)
    result = dispy("check", folder)
    assert result.exit_code == 1
    assert "it is damaged" in result.stderr


def test_check_tells_of_what_belongs_to_nothing(folder: Path) -> None:
    with closing(Journal(folder)) as journal:
        journal.apply([KeepBatch(20, 99, Submit(1, [JobSpec(1, 0, b"")]), True, 0)])
    result = dispy("check", folder)
    assert result.exit_code == 1
    assert "1 rows of batches belong to nothing" in result.stderr
    assert dispy("prune", folder).exit_code == 0
    assert dispy("check", folder).exit_code == 0


def test_export_says_what_is_there_in_lines_of_json(folder: Path) -> None:
    lines = exported(folder)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["node", *["cluster"] * 3, *["batch"] * 2, *["result"] * 2]
    node, first, second = lines[:3]
    assert (node["id"], node["name"], node["drained"]) == (7, "alpha", "by ann")
    assert (first["id"], first["label"], first["user"]) == (1, "simulation", "ann@lab")
    assert second["label"] == "compute"
    batch, result = lines[4], lines[6]
    assert batch == {
        "kind": "batch",
        "id": 10,
        "cluster": 1,
        "first": 1,
        "last": 3,
        "count": 3,
        "ended": 1,
        "at_nodes": 1,
    }
    assert (result["seq"], result["status"], result["end"]) == (1, "Finished", 2.5)
    assert not {"payload", "parts"} & {key for line in lines for key in line}


def test_export_has_payloads_when_asked_for(folder: Path) -> None:
    lines = exported("--payloads", folder)
    jobs = [line for line in lines if line["kind"] == "job" and line["cluster"] == 1]
    assert [(job["seq"], job["ended"]) for job in jobs] == [(1, True), (2, False), (3, False)]
    assert b64decode(jobs[0]["payload"]) == b"one"
    assert [b64decode(part) for part in jobs[1]["parts"]] == [LARGE]
    (result,) = [line for line in lines if line["kind"] == "result" and line["cluster"] == 1]
    assert b64decode(result["payload"]) == b"result"


@pytest.mark.parametrize("part", range(4))
def test_export_reads_a_damaged_journal_as_far_as_it_goes(folder: Path, part: int) -> None:
    with closing(Journal(folder)) as journal:
        for number in range(100, 400):
            batch = Submit(1, [JobSpec(number, 0, os.urandom(10_000))])
            journal.apply([KeepBatch(number, 1, batch, True, 0)])
    pages = (folder / "journal.sqlite").stat().st_size // 4096
    spoil(folder, (pages * (part + 5) // 9) * 4096, 3 * 4096)
    result = dispy("export", "--payloads", folder)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert "some of it can't be read" in result.stderr
    assert any(line["kind"] == "unreadable" for line in lines)
    assert sum(line["kind"] == "job" for line in lines) > 250
    assert sum(line["kind"] == "cluster" for line in lines) == 3


def test_prune_removes_whose_clients_are_away_for_long(folder: Path) -> None:
    before = (folder / "journal.sqlite").stat().st_size
    told = dispy("prune", "--days", "7", "--dry-run", folder)
    assert "3  old  ann@lab  away for 30.0 days, 3 jobs, 1 results" in told.stdout
    assert "1 cluster would be removed" in told.stdout
    assert (folder / "journal.sqlite").stat().st_size == before
    assert "1 cluster removed" in dispy("prune", folder).stdout
    assert (folder / "journal.sqlite").stat().st_size < before - MEBIBYTE
    assert "2 clusters" not in dispy("prune", "--days", "0", folder).stdout
    kept = [line["id"] for line in exported(folder) if line["kind"] == "cluster"]
    assert kept == [1], "its client was there when the broker ended"
    assert dispy("check", folder).exit_code == 0


@pytest.mark.parametrize("command", ["check", "export", "prune"])
def test_a_journal_that_is_used_or_is_not_there_is_refused(
    folder: Path, tmp_path: Path, command: str
) -> None:
    with closing(Journal(folder)):
        result = dispy(command, folder)
        assert result.exit_code == 1
        assert "is used by process" in result.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    result = dispy(command, empty)
    assert result.exit_code == 1
    assert "there is no journal.sqlite" in result.stderr
    assert not [*empty.iterdir()]
    assert dispy(command, tmp_path / "nowhere").exit_code == 2
