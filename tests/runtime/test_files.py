"""Two who write one file, and what is left of those who were killed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from cfgdiff.runtime import files
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import partial_file, partial_files, remove_abandoned, write_whole

LEFT = ".a.bin.0123abcd.partial"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_of_two_who_write_one_file_the_later_wins_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with partial_file(target) as first:
        first.write(b"1")
        with partial_file(target) as second:
            second.write(b"2" * 9000)
            first.write(b"1" * 9000)
            remove_abandoned(target)  # takes neither
        assert target.read_bytes() == b"2" * 9000
    assert target.read_bytes() == b"1" * 9001 and names(tmp_path) == ["a.bin"]


def test_what_a_killed_process_left_goes_with_the_next_call_and_nothing_else(tmp_path: Path) -> None:
    others = [".a.bin.partial", ".a.bin.tar.0123abcd.partial", ".b.bin.0123abcd.partial", "x.a.bin.0123abcd.partial"]
    for name in (LEFT, *others):
        (tmp_path / name).write_bytes(b"half")
    with partial_file(tmp_path / "a.bin") as living:
        living.write(b"1")
        write_whole(tmp_path / "a.bin", b"2")
        assert names(tmp_path) == sorted([*others, "a.bin", Path(living.name).name])
    assert (tmp_path / "a.bin").read_bytes() == b"1" and names(tmp_path) == sorted([*others, "a.bin"])


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from cfgdiff.runtime.files import partial_file\n"
    code += (
        "with partial_file(Path(sys.argv[1])) as file: file.write(b'x' * 9999); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.bin")]).returncode == -9
    (left,) = partial_files(tmp_path / "a.bin")
    assert left.stat().st_size == 9999
    write_whole(tmp_path / "a.bin", b"whole")
    assert names(tmp_path) == ["a.bin"]


def test_what_was_interrupted_is_continued_where_asked(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    for part in (b"one, ", b"two, "):
        with pytest.raises(KeyboardInterrupt), partial_file(target, resume=True) as file:
            file.seek(0, os.SEEK_END)
            file.write(part)
            raise KeyboardInterrupt
    (tmp_path / LEFT).write_bytes(b"less")
    with partial_file(target, resume=True) as file:
        assert file.read() == b"one, two, "
        file.write(b"three")
    assert target.read_bytes() == b"one, two, three"
    remove_abandoned(target)
    with pytest.raises(KeyboardInterrupt), partial_file(target, resume=True):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a.bin"]  # one that is empty does not stay


def test_a_file_has_the_rights_that_the_user_gives_to_files(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.bin", b"")
    (tmp_path / "b.bin").write_bytes(b"")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "b.bin").stat().st_mode


def test_without_locks_files_are_written_and_none_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    (tmp_path / LEFT).write_bytes(b"half")
    write_whole(tmp_path / "a.bin", b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole" and names(tmp_path) == [LEFT, "a.bin"]


def test_where_open_files_cannot_be_renamed_they_are_closed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, opened = list[bool](), list[IO[bytes]]()
    replace = os.replace

    def strict(source: Path, target: Path) -> None:
        replaced.append(opened[0].closed)
        replace(source, target)

    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    monkeypatch.setattr(os, "replace", strict)
    (tmp_path / LEFT).write_bytes(b"half")
    remove_abandoned(tmp_path / "a.bin")
    with partial_file(tmp_path / "a.bin") as file:
        opened.append(file)
        file.write(b"whole")
    assert replaced == [True] and (tmp_path / "a.bin").read_bytes() == b"whole" and names(tmp_path) == ["a.bin"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        Failure, match=r"a\.png: cannot be written \(No space left on device\); make room or choose another place"
    ):
        write_whole(tmp_path / "a.png", b"picture")
    assert names(tmp_path) == []
