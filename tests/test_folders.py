"""Files with names from the other side: nothing outside the folder, nothing half there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.protocol import folders
from dispy.protocol.folders import FileNameError, NewFile, parts_of


def put(folder: Path, name: str, content: bytes, mode: int = 0o644) -> None:
    new = NewFile(folder, name)
    new.file.write(content)
    new.commit(mode)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture(params=["unnamed", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to write a file: systems without files that have no name take the second."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE") or not folders._has_descriptor_names():
        pytest.skip("this system has no files without a name")
    return str(request.param)


# -- names ----------------------------------------------------------------------------------


def test_parts_of_good_names() -> None:
    assert parts_of("x") == ["x"]
    assert parts_of("data/a b/\u00e4.txt") == ["data", "a b", "\u00e4.txt"]
    assert parts_of("...") == ["..."]
    assert parts_of("n\udcffame") == ["n\udcffame"]  # bytes that are no UTF-8
    assert parts_of("x" * 255) == ["x" * 255]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../x",
        "a/..",
        ".",
        "./x",
        "a//b",
        "a/",
        "a\0b",
        "..\\x",
        "a\\b",
        "C:\\x",
        "C:x",
        "below/d:x",
        "x" * 256,
        "\u00e4" * 128,
        "a/" * 64 + "b",
        "\ud800",
        "/".join(["x" * 255] * 20),
    ],
)
def test_bad_names_are_refused_and_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNameError) as caught:
        parts_of(name)
    str(caught.value).encode()  # it can be told to the other side
    with pytest.raises(FileNameError):
        NewFile(tmp_path, name)
    assert everything(tmp_path) == []


@given(st.text(st.sampled_from("./\\ab\0\u00e4\udc80\ud800"), max_size=12))
def test_whatever_is_accepted_stays_below(name: str) -> None:
    try:
        parts = parts_of(name)
    except FileNameError:
        return
    path = os.path.normpath(os.path.join("/top", *parts))
    assert path.startswith("/top/") and path == "/top/" + name


# -- files ----------------------------------------------------------------------------------


def test_a_file_is_there_when_it_is_whole(tmp_path: Path, way: str) -> None:
    before = open_descriptors()
    new = NewFile(tmp_path, "a/b/c.txt")
    new.file.write(b"half")
    assert not (tmp_path / "a/b/c.txt").exists()
    new.file.write(b" and half")
    new.commit(0o750, 1234.5)
    path = tmp_path / "a/b/c.txt"
    assert path.read_bytes() == b"half and half"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert path.stat().st_mtime == 1234.5
    assert everything(tmp_path) == ["a", "a/b", "a/b/c.txt"]
    assert open_descriptors() == before


def test_discard_leaves_nothing_and_can_be_repeated(tmp_path: Path, way: str) -> None:
    before = open_descriptors()
    new = NewFile(tmp_path, "x")
    new.file.write(b"x")
    new.discard()
    new.discard()
    assert everything(tmp_path) == []
    assert open_descriptors() == before


def test_discard_after_commit_does_nothing(tmp_path: Path, way: str) -> None:
    new = NewFile(tmp_path, "x")
    new.commit()
    with open(tmp_path / "other", "wb") as other:  # gets the descriptor that became free
        new.discard()
        other.write(b"still open")
    assert everything(tmp_path) == ["other", "x"]


def test_an_old_file_is_replaced_not_written_to(tmp_path: Path, way: str) -> None:
    put(tmp_path, "x", b"old")
    with open(tmp_path / "x", "rb") as reader:
        new = NewFile(tmp_path, "x")
        new.file.write(b"new")
        assert (tmp_path / "x").read_bytes() == b"old"
        new.commit()
        assert reader.read() == b"old"
    assert (tmp_path / "x").read_bytes() == b"new"
    assert everything(tmp_path) == ["x"]


def test_a_link_is_replaced_not_followed(tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "x").symlink_to(outside)
    put(inside, "x", b"new")
    assert outside.read_bytes() == b"precious"
    assert not (inside / "x").is_symlink()


def test_a_device_or_pipe_is_replaced_not_opened(tmp_path: Path, way: str) -> None:
    os.mkfifo(tmp_path / "x")  # opening it would wait for ever
    put(tmp_path, "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("target", ["folder", "dangling", "self"])
def test_links_on_the_way_are_not_followed(tmp_path: Path, target: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    places = {"folder": outside, "dangling": outside / "none", "self": inside / "x"}
    (inside / "x").symlink_to(places[target])
    before = open_descriptors()
    with pytest.raises(NotADirectoryError, match="link where the name needs a folder"):
        NewFile(inside, "x/y")
    assert open_descriptors() == before
    assert everything(outside) == []


def test_a_file_or_pipe_where_a_folder_is_needed(tmp_path: Path) -> None:
    put(tmp_path, "x", b"")
    os.mkfifo(tmp_path / "pipe")
    for name in ("x/y", "pipe/y"):
        with pytest.raises(NotADirectoryError):
            NewFile(tmp_path, name)


def test_a_folder_where_the_file_should_be(tmp_path: Path, way: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/kept").touch()
    before = open_descriptors()
    with pytest.raises(OSError):
        put(tmp_path, "x", b"new")
    assert everything(tmp_path) == ["x", "x/kept"]
    assert open_descriptors() == before


def test_the_top_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    put(tmp_path / "link", "x", b"")
    assert everything(tmp_path / "real") == ["x"]


def test_a_missing_top_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NewFile(tmp_path / "none", "x")


@pytest.mark.parametrize("mtime", [float("nan"), float("inf"), 1e300])
def test_impossible_times_are_an_error_that_leaves_nothing(
    tmp_path: Path, way: str, mtime: float
) -> None:
    new = NewFile(tmp_path, "x")
    with pytest.raises(OSError, match="no file can be of the time"):
        new.commit(mtime=mtime)
    assert everything(tmp_path) == []


def test_only_permission_bits_are_taken(tmp_path: Path) -> None:
    put(tmp_path, "x", b"", mode=0o6755)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755


def test_a_folder_swapped_for_a_link_in_between(tmp_path: Path, way: str) -> None:
    """The file goes where its folder was opened, not where a path leads by now."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    new = NewFile(inside, "a/x")
    (inside / "a").rename(inside / "moved")
    (inside / "a").symlink_to(outside)
    new.commit()
    assert everything(outside) == []
    assert (inside / "moved/x").exists()


def test_two_files_of_one_name_do_not_mix(tmp_path: Path, way: str) -> None:
    first, second = NewFile(tmp_path, "x"), NewFile(tmp_path, "x")
    first.file.write(b"first")
    second.file.write(b"second")
    first.commit()
    second.commit()
    assert (tmp_path / "x").read_bytes() == b"second"
    assert everything(tmp_path) == ["x"]


def test_threads_that_make_the_same_folders(tmp_path: Path, way: str) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        try:
            for turn in range(50):
                put(tmp_path, f"{turn}/below/{number}", b"")
        except BaseException as error:
            errors.append(error)

    run_threads(work)
    assert not errors
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 200


def run_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- resting --------------------------------------------------------------------------------


def test_rest_takes_no_descriptors_and_resume_goes_on(tmp_path: Path, way: str) -> None:
    before = open_descriptors()
    new = NewFile(tmp_path, "a/x")
    for _ in range(3):
        new.file.write(b"piece ")
        new.rest()
        assert open_descriptors() == before
        assert not (tmp_path / "a/x").exists()
        new.resume()
    new.commit(0o600)
    assert (tmp_path / "a/x").read_bytes() == b"piece piece piece "
    assert everything(tmp_path) == ["a", "a/x"]
    assert open_descriptors() == before


def test_a_resting_file_is_discarded(tmp_path: Path, way: str) -> None:
    before = open_descriptors()
    new = NewFile(tmp_path, "a/x")
    new.rest()
    new.discard()
    assert everything(tmp_path) == ["a"]
    assert open_descriptors() == before


def test_a_resting_file_that_was_removed(tmp_path: Path, way: str) -> None:
    new = NewFile(tmp_path, "x")
    new.rest()
    [partial] = tmp_path.iterdir()
    partial.unlink()
    with pytest.raises(FileNotFoundError):
        new.resume()
    new.discard()
    assert everything(tmp_path) == []


def test_a_resting_file_swapped_for_a_link(tmp_path: Path, way: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.write_bytes(b"precious")
    inside.mkdir()
    new = NewFile(inside, "x")
    new.rest()
    [partial] = inside.iterdir()
    partial.unlink()
    partial.symlink_to(outside)
    with pytest.raises(OSError):
        new.resume()
    new.discard()
    assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize("other", ["pipe", "file"])
def test_a_resting_file_swapped_for_something_else(tmp_path: Path, way: str, other: str) -> None:
    before = open_descriptors()
    new = NewFile(tmp_path, "x")
    new.rest()
    [partial] = tmp_path.iterdir()
    partial.rename(tmp_path / "aside")
    if other == "pipe":
        os.mkfifo(partial)
    else:
        partial.touch()
    with pytest.raises(OSError):
        new.resume()
    new.discard()
    assert everything(tmp_path) == ["aside"]
    assert open_descriptors() == before


# -- a process that is killed ---------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name")
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from dispy.protocol.folders import NewFile\n"
        "new = NewFile(sys.argv[1], 'x')\n"
        "new.file.write(b'half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert everything(tmp_path) == []
