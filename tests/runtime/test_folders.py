"""A folder is replaced whole or not at all, also by a process that is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfgdiff.runtime.files import remove_folder, remove_partial, replace_folder, restore_folder, restore_folders

TESTS = Path(__file__).parents[1]


def write(folder: Path, text: str) -> None:
    with replace_folder(folder) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


def texts(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a", "b")]


def test_a_folder_is_made_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "f"
    write(target, "old")
    write(target, "new")
    assert texts(target) == ["new", "new"] and [p.name for p in target.parent.iterdir()] == ["f"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_what_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    for there in (False, True):
        with pytest.raises(error), replace_folder(tmp_path / "f") as new:
            (new / "a").write_text("new")
            raise error
        assert [p.name for p in tmp_path.iterdir()] == ["f"] * there
        write(tmp_path / "f", "old")
    assert texts(tmp_path / "f") == ["old", "old"]


def test_a_folder_of_folders_is_replaced_and_every_file_of_it_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    synced = list[bytes]()
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(os.pread(handle, 9, 0)))
    with replace_folder(tmp_path / "f") as new:
        (new / "a" / "b").mkdir(parents=True)
        (new / "a" / "b" / "deep").write_text("1")
        (new / "flat").write_text("2")
    assert sorted(synced) == [b"1", b"2"] and (tmp_path / "f" / "a" / "b" / "deep").read_text() == "1"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "f")
    write(tmp_path / "link", "old")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and texts(tmp_path / "disk" / "f") == ["new", "new"]
    (tmp_path / "disk" / "f").rename(tmp_path / "disk" / ".f.old")
    restore_folder(tmp_path / "link")
    assert texts(tmp_path / "link") == ["new", "new"]


def test_what_was_set_aside_comes_back_only_where_nothing_is(tmp_path: Path) -> None:
    write(tmp_path / "f", "new")
    write(tmp_path / ".f.old", "old")
    restore_folders(tmp_path)
    assert texts(tmp_path / "f") == ["new", "new"] and texts(tmp_path / ".f.old") == ["old", "old"]
    (tmp_path / "f").rename(tmp_path / "g")
    restore_folders(tmp_path)
    assert texts(tmp_path / "f") == ["old", "old"] and sorted(p.name for p in tmp_path.iterdir()) == ["f", "g"]


def test_removal_by_another_name_first(tmp_path: Path) -> None:
    write(tmp_path / "f", "old")
    (tmp_path / ".f.partial").mkdir()
    remove_folder(tmp_path / "f")
    (tmp_path / ".g.partial").mkdir()
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_before_any_file_operation_loses_nothing(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "runtime")!r}]
from faults import every_kill, outcome
from test_folders import texts, write
from cfgdiff.runtime.files import restore_folder
target = Path({str(tmp_path)!r}) / "f"

def check():
    restore_folder(target)
    assert texts(target) in (["old", "old"], ["new", "new"]), texts(target)

def after():
    assert texts(target) == ["new", "new"] and [p.name for p in target.parent.iterdir()] == ["f"]

def again(k):
    outcome(lambda: (check(), write(target, "new"), after()))

print(every_kill(lambda: write(target, "old"), lambda: write(target, "new"), target.parent, again))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 9  # mkdir, two files, three renames, and the old one removed
