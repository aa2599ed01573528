"""Which folders are nobody's, and what runs below them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dispy.node import leftovers
from dispy.node.leftovers import FOLDER, MARK, YOUNG_S

SLEEPER = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"]


def folder_of(above: Path, name: str) -> Path:
    folder = above / f"{FOLDER}{name}"
    (folder / "computation-1").mkdir(parents=True)
    return folder


def dead(folder: Path) -> Path:
    """Its node has ended."""
    os.close(leftovers.lock(folder))
    return folder


def test_the_folder_of_a_dead_node_goes_and_others_stay(tmp_path: Path) -> None:
    alive, gone = folder_of(tmp_path, "alive"), dead(folder_of(tmp_path, "gone"))
    (tmp_path / "data").mkdir()
    descriptor = leftovers.lock(alive)
    [line] = leftovers.clean(tmp_path)
    assert line == f"removed {gone}, left by a node; processes killed: 0"
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, "data"}
    os.close(descriptor)
    leftovers.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_a_node_that_is_just_starting_is_left_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "new")
    assert not leftovers.clean(tmp_path) and folder.exists()
    before = time.time() - YOUNG_S - 1
    os.utime(folder, (before, before))
    assert leftovers.clean(tmp_path) and not folder.exists()


@pytest.mark.parametrize("name", ["lock", "itself"])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "lock").touch()
    if name == "itself":
        (tmp_path / f"{FOLDER}link").symlink_to(outside)
    else:
        (folder_of(tmp_path, "link") / "lock").symlink_to(outside / "lock")
    assert not leftovers.clean(tmp_path)
    assert (outside / "lock").exists() and (tmp_path / f"{FOLDER}link").exists()


def test_only_processes_of_the_dead_node_are_killed(tmp_path: Path) -> None:
    gone = dead(folder_of(tmp_path, "gone"))
    marks = [str(gone), f"{gone}2"]
    processes = [
        subprocess.Popen(SLEEPER, env={**os.environ, MARK: mark}, stdout=subprocess.PIPE)
        for mark in marks
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
        [line] = leftovers.clean(tmp_path)
        assert line.endswith("processes killed: 1") and not gone.exists()
        assert processes[0].wait(10) == -9 and processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_nothing_to_clean(tmp_path: Path) -> None:
    assert leftovers.clean(tmp_path / "missing") == []
