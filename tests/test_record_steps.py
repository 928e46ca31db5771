"""Steps that appear whole or not at all, and the locks that keep two processes apart."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.folders import closed_folder, finish, foreign, names, step
from triune import record
from triune.errors import InputError, TriuneError
from triune.record import (
    LOCK,
    RECORD,
    finished,
    locked,
    writing,
)

# Steps


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_step_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with writing(step(tmp_path / "a")) as draft:
            (draft / "half").write_text("half")
            (draft / "folder").mkdir()
            raise error

    with pytest.raises(error):
        work()
    assert names(tmp_path) == []


def test_a_step_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    finish(step(tmp_path / "a"), "old")
    with pytest.raises(ValueError, match="broke"), writing(step(tmp_path / "a", rate=1)):
        raise ValueError("broke")
    assert (tmp_path / "a" / "result.txt").read_text() == "old"
    assert finished(step(tmp_path / "a"))


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "write_json", full)
    with pytest.raises(TriuneError, match=r"the disk of .* is full \(.*No space.*\); make room"):
        finish(step(tmp_path / "a"))
    assert names(tmp_path) == []


def test_results_of_other_settings_are_kept(tmp_path: Path) -> None:
    for number in range(4):
        finish(step(tmp_path / "a", number=number), str(number))
        if number == 2:
            (tmp_path / ".superseded" / "a-1" / "result.txt").unlink()
            (tmp_path / ".superseded" / "a-1" / RECORD).unlink()
            (tmp_path / ".superseded" / "a-1").rmdir()
    assert (tmp_path / "a" / "result.txt").read_text() == "3"
    kept = {p.name: (p / "result.txt").read_text() for p in (tmp_path / ".superseded").iterdir()}
    assert kept == {"a-1": "2", "a-2": "1"}


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".a.draft"
    (left / "folder" / "inner").mkdir(parents=True)
    (left / "half").write_text("half")
    (left / "link").symlink_to(tmp_path)
    (left / LOCK).touch()
    finish(step(tmp_path / "a"))
    assert names(tmp_path) == ["a", f"a/{RECORD}", "a/result.txt"]


def test_two_processes_do_not_write_one_step(tmp_path: Path) -> None:
    with writing(step(tmp_path / "a")) as draft:
        (draft / "result.txt").write_text("first")
        with (
            pytest.raises(InputError, match=r"another process is writing .*a; wait for it or choose another --out"),
            writing(step(tmp_path / "a")),
        ):
            pytest.fail("the second began")
        assert (draft / "result.txt").read_text() == "first"
    assert finished(step(tmp_path / "a"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "exists and was not written by Triune"),
        (lambda p: [p.mkdir(), (p / LOCK).touch()], "holds a whole run; choose a new folder with --out"),
        (lambda p: p.write_text("x"), "is a file"),
    ],
    ids=["foreign files", "a run", "a file"],
)
def test_a_step_replaces_only_steps(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "a")
    before = names(tmp_path)
    with pytest.raises(InputError, match=message), writing(step(tmp_path / "a")):
        pytest.fail("the work began")
    assert names(tmp_path) == before


def test_a_step_replaces_neither_mount_points_nor_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    message = "is a mount point or the working folder; choose a new folder inside it"
    monkeypatch.chdir(tmp_path / "a" / "inner")
    for out in (Path(), Path(".."), tmp_path / "a"):
        with pytest.raises(InputError, match=message), writing(step(out)):
            pytest.fail("the work began")
    monkeypatch.chdir(tmp_path)
    finish(step(Path("a/fresh")))
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith("/a"))
    with pytest.raises(InputError, match=message), writing(step(Path("a"))):
        pytest.fail("the work began")


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "big")
    finish(step(tmp_path / "out"))
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "big" / "result.txt").read_text() == "result"


# Locks


def test_a_run_is_held_by_one_process(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(InputError, match=r"another process is writing .*run; wait for it"),
        locked(tmp_path / "run"),
    ):
        pytest.fail("held twice")
    with locked(tmp_path / "run"):
        assert names(tmp_path / "run") == [LOCK]


def test_a_lock_that_was_moved_away_meanwhile_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(file: object, how: int) -> None:
        (tmp_path / "run" / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="another process is writing"), locked(tmp_path / "run"):
        pytest.fail("held")

    def replaced(file: object, how: int) -> None:
        (tmp_path / "run" / LOCK).rename(tmp_path / "old")
        (tmp_path / "run" / LOCK).touch()

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(InputError, match="another process is writing"), locked(tmp_path / "run"):
        pytest.fail("held")


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.raises(InputError, match=r"without file locks \(.*No locks available\); choose another --out"),
        locked(tmp_path / "run"),
    ):
        pytest.fail("held")


def test_a_lock_that_is_not_ours_to_write() -> None:
    with (
        closed_folder() as closed,
        pytest.raises(InputError, match=r"cannot write in .*closed"),
        locked(closed),
    ):
        pytest.fail("held")
