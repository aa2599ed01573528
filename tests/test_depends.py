"""What depends may list, how files are named, and what is refused, naming the entry."""

from __future__ import annotations

import functools
import json
import math
import os
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dispy.depends
from dispy.blobs import BlobSource
from dispy.depends import read, read_files, read_job_depends


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "b.txt").write_text("b")
    (folder / "data" / ".a").write_text("a")
    (folder / "data" / "deep" / "c").write_text("c")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "x").write_text("x")
    monkeypatch.chdir(folder)
    return folder


def names(*items: object) -> list[str]:
    return [spec.path for spec in read_files(list(items), BlobSource())]


# -- files -----------------------------------------------------------------------------------------


def test_names_of_files(here: Path) -> None:
    assert names("data/b.txt") == ["data/b.txt"]
    assert names(Path("data/b.txt")) == names(here / "data" / "b.txt") == ["data/b.txt"]
    assert names("./data/../data/b.txt") == ["data/b.txt"]
    assert names("../beside/x") == names(here.parent / "beside" / "x") == ["x"]


def test_folders_bring_all_that_is_below(here: Path) -> None:
    assert names("data") == ["data/.a", "data/b.txt", "data/deep/c"]
    assert names(here) == names(".") == names("data")
    assert names("../beside") == ["beside/x"]


def test_a_file_twice_is_one_file() -> None:
    assert names("data/b.txt", "data", "data/b.txt") == ["data/b.txt", "data/.a", "data/deep/c"]


def test_a_link_is_followed_only_where_it_is_named(here: Path) -> None:
    (here / "link").symlink_to("data/b.txt")
    (here / "folder").symlink_to("data")
    assert names("link") == ["link"]
    assert names("folder") == ["folder/.a", "folder/b.txt", "folder/deep/c"]
    (here / "data" / "link").symlink_to("b.txt")
    with pytest.raises(ValueError, match=r"depends\[0\].*data/link"):
        names("data")


def test_a_current_folder_that_is_reached_by_a_link(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here.parent / "link").symlink_to(here)
    assert names(here.parent / "link" / "data" / "b.txt") == ["data/b.txt"]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"depends\[1\].*nowhere"):
        names("data", "nowhere")
    with pytest.raises(ValueError, match=r"depends\[0\]"):
        names("")
    with pytest.raises(ValueError, match=r"depends\[0\]"):
        names("a\0b")


def test_sockets_and_devices_are_refused(here: Path) -> None:
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        names("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("data/socket")
        with pytest.raises(ValueError, match=r"data/socket"):
            names("data")


def test_one_name_for_two_contents(here: Path) -> None:
    (here / "x").write_text("other")
    with pytest.raises(ValueError, match="differ, and both would be called 'x'"):
        names("x", "../beside/x")
    (here / "x").write_text("x")
    assert names("x", "../beside/x") == ["x"]


def test_a_file_can_not_be_a_folder_as_well(here: Path) -> None:
    (here / "x").mkdir()
    (here / "x" / "y").write_text("y")
    with pytest.raises(ValueError, match="'x' would be a file and a folder"):
        names("x", "../beside/x")


def test_too_many_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispy.depends, "FILES_MAX", 2)
    with pytest.raises(ValueError, match=r"more than 2 files: pack them"):
        names("data")


def test_a_file_that_is_too_large(here: Path) -> None:
    with pytest.raises(ValueError, match=r"deep/c.*1 bytes.*allows 0|b\.txt.*2 bytes.*allows 1"):
        (here / "data" / "b.txt").write_text("bb")
        read_files(["data"], BlobSource(max_file_size=1))


# -- modules ---------------------------------------------------------------------------------------


def test_installed_modules_can_be_sent_too() -> None:
    assert "pytest/__init__.py" in names(pytest)
    assert not [name for name in names(pytest) if "__pycache__" in name]


def test_modules_that_nodes_have() -> None:
    assert names(json, math, os, dispy.depends, sys) == []


def test_packages_and_modules_in_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = here / "my_package"
    (package / "sub" / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "data.bin", "sub/__init__.py", "sub/code.py", ".hidden"):
        (package / name).write_text("")
    (package / "sub" / "__pycache__" / "code.pyc").write_text("")
    (here / "my_plain.py").write_text("")
    monkeypatch.syspath_prepend(str(here))
    import my_package.sub.code  # type: ignore[import-not-found]
    import my_plain  # type: ignore[import-not-found]

    assert names(my_plain) == ["my_plain.py"]
    assert names(my_package.sub.code) == [
        "my_package/__init__.py",
        "my_package/sub/__init__.py",
        "my_package/sub/code.py",
    ]
    assert set(names(my_package)) == {
        "my_package/__init__.py",
        "my_package/data.bin",
        "my_package/sub/__init__.py",
        "my_package/sub/code.py",
    }
    for name in [name for name in sys.modules if name.startswith("my_p")]:
        monkeypatch.delitem(sys.modules, name)


def test_modules_without_a_file() -> None:
    with pytest.raises(ValueError, match=r"depends\[0\].*'made_up' has no file"):
        names(ModuleType("made_up"))
    with pytest.raises(ValueError, match="__main__"):
        names(sys.modules["__main__"])


# -- code ------------------------------------------------------------------------------------------


class Thing:
    def method(self) -> None: ...


def work() -> None: ...


def test_code_by_its_names() -> None:
    items = [work, Thing, Thing(), Thing().method, functools.partial(work), work]
    assert read(items, BlobSource()).code.named == (("work", work), ("Thing", Thing))
    found = read_job_depends([work, "data/b.txt"], BlobSource())
    assert found.code.named == (("work", work),) and found.files[0].path == "data/b.txt"
    assert not read_job_depends((), BlobSource()).code


def test_two_things_of_one_name() -> None:
    def other() -> None: ...

    other.__name__ = "work"
    with pytest.raises(ValueError, match=r"depends\[1\]: there is another 'work'"):
        read([work, other], BlobSource())


@pytest.mark.parametrize("item", [None, 3, 2.5, [], len, {"a": 1}, int])
def test_what_can_not_be_listed(item: object) -> None:
    with pytest.raises(TypeError, match=r"depends\[2\] must be a path"):
        read([work, Thing, item], BlobSource())


def test_code_where_only_files_can_be() -> None:
    with pytest.raises(TypeError, match="files and modules only, not 'work'"):
        read_files([work], BlobSource())


def test_a_name_for_the_list() -> None:
    with pytest.raises(TypeError, match=r"dispy_job_depends\[0\]"):
        read_job_depends([3], BlobSource())
    with pytest.raises(TypeError, match="dispy_job_depends must be a list, not 'x'"):
        read_job_depends("x", BlobSource())
    assert read_job_depends(None, BlobSource()).files == []
