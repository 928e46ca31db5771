"""Records that cannot be believed, results that lost files, clocks, disks and links."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.folders import closed_folder, finish, names, step
from triune import record
from triune.errors import InputError, TriuneError
from triune.experts import checkpoint
from triune.pipeline.verbs import Context, checkpoint_place, unless_finished
from triune.recipe import Base
from triune.record import LOCK, RECORD, finished, locked, lost, read_record, write_json, writing
from triune.record_checks import FORMAT, NoRoom, clear_parts, inside


def change(folder: Path, **changes: Any) -> None:
    found = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**found, **changes}))


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def task(self, title: str, total: int) -> Any: ...

    def say(self, text: str) -> None:
        self.said.append(text)


# Records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"record.json is not valid JSON \(.*\); delete .*a and run its verb again"),
        ('{"identity": "x", "sett', "is not valid JSON"),
        ("\x00\x01", "is not valid JSON"),
        ("[" * 100_000, r"is not valid JSON \(nested deeper than 100\)"),
        ("[]", r"is not a Triune record \(no identity\); choose another folder"),
        ("null", "is not a Triune record"),
        ('"identity"', "is not a Triune record"),
        ('{"verb": "train"}', "is not a Triune record"),
        ('{"identity": 5}', r"is damaged \('identity' is a int\); delete .*a and run its verb again"),
        ('{"identity": "x", "settings": []}', r"is damaged \('settings' is a list\)"),
        ('{"identity": "x", "inputs": "y"}', r"is damaged \('inputs' is a str\)"),
        ('{"identity": "x", "seconds": "long"}', r"is damaged \('seconds' is a str\)"),
        ('{"identity": "x", "peak_memory_bytes": null}', r"is damaged \('peak_memory_bytes' is a NoneType\)"),
        ('{"identity": "x", "files": ["a"]}', r"is damaged \('files' is a list\)"),
        ('{"identity": "x", "files": {"../b": 1}}', r"lists '../b', which is outside of its folder; a record lists"),
        ('{"identity": "x", "files": {"/etc/passwd": 1}}', "lists '/etc/passwd', which is outside"),
        (
            '{"format": 99}',
            r"written by a newer Triune \(version unknown, record format 99; .* up to 1\); update Triu",
        ),
        (
            '{"format": 2, "versions": {"triune": "9.0"}, "identity": "x"}',
            r"written by a newer Triune \(version 9.0, .*; update Triune, or choose another folder",
        ),
    ],
)
def test_a_record_that_cannot_be_believed_is_refused(tmp_path: Path, text: str, message: str) -> None:
    one = step(tmp_path / "a")
    finish(one)
    (one.folder / RECORD).write_text(text)
    before = names(tmp_path)
    for read in (lambda: read_record(one.folder), lambda: finished(one), lambda: lost(one)):
        with pytest.raises(InputError, match=message):
            read()
    assert names(tmp_path) == before


def test_a_record_that_may_not_be_read_is_refused() -> None:
    with closed_folder(RECORD) as closed, pytest.raises(InputError, match=r"cannot be read \(Permission denied\); me"):
        read_record(closed)


def test_a_record_says_its_format_and_its_files(tmp_path: Path) -> None:
    with writing(step(tmp_path / "a")) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "weights").write_bytes(b"12345")
        (draft / ".cache").mkdir()
        (draft / ".cache" / "x").write_text("x")
    found = read_record(tmp_path / "a")
    assert (found["format"], found["files"]) == (FORMAT, {"inner/weights": 5})


def test_a_record_of_an_older_triune_is_believed(tmp_path: Path) -> None:
    one = step(tmp_path / "a")
    finish(one)
    found = json.loads((one.folder / RECORD).read_text())
    del found["format"], found["files"]
    (one.folder / RECORD).write_text(json.dumps(found))
    (one.folder / "result.txt").unlink()  # nobody knows of it
    assert finished(one)
    assert lost(one) == []


@pytest.mark.parametrize(
    ("name", "stays"),
    [("a", True), ("a/b.c", True), ("..", False), ("a/../../b", False), ("/a", False), ("", False), ("a\0", False)],
)
def test_a_path_of_a_manifest_stays_inside(name: str, stays: bool) -> None:
    assert inside(name) == stays


def test_a_checkpoint_that_names_files_outside_of_it_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "step-1"
    place.mkdir()
    (tmp_path / "secret").write_text("x")
    write_json(place / checkpoint.MANIFEST, {"job": "j", "files": {"../secret": record.identify(tmp_path / "secret")}})
    with pytest.raises(InputError, match=r"'../secret' is no file of its own folder.* is not used; delete it"):
        checkpoint.read(place, "j")


# A result that lost files


def test_a_step_that_lost_files_is_done_again_and_says_so(tmp_path: Path) -> None:
    one = step(tmp_path / "a")
    finish(one, "result")
    context = Context(Base(path="base"), progress=(listener := Listener()))  # type: ignore[arg-type]
    (one.folder / "result.txt").unlink()
    assert not finished(one)
    with unless_finished(one, context) as draft:
        assert draft is not None
        (draft / "result.txt").write_text("result")
    assert listener.said == [f"{one.folder}: result.txt is missing; the step is done again"]
    assert finished(one)
    assert (tmp_path / ".superseded" / "a-1" / RECORD).is_file()
    (one.folder / "result.txt").write_text("res")
    assert lost(one) == ["result.txt has 3 bytes in place of 6"]
    assert not finished(one)


def test_a_step_of_other_settings_has_lost_nothing(tmp_path: Path) -> None:
    finish(step(tmp_path / "a"))
    (tmp_path / "a" / "result.txt").unlink()
    assert lost(step(tmp_path / "a", rate=1)) == []


def test_a_copied_result_is_the_result(tmp_path: Path) -> None:
    finish(step(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "else" / "b")
    shutil.rmtree(tmp_path / "a")
    assert finished(step(tmp_path / "else" / "b"))


# What a kill leaves


def test_checkpoints_older_than_the_result_are_removed_and_younger_ones_kept(tmp_path: Path) -> None:
    one, context = step(tmp_path / "a"), Context(Base(path="base"))
    finish(one)
    place = checkpoint_place(one)
    (place / "step-1").mkdir(parents=True)
    (place / "step-1" / "x").touch()
    (place / ".samples.partial.jsonl.999999999.part").touch()
    times = (one.folder / RECORD).stat().st_mtime
    with unless_finished(one, context) as draft:
        assert draft is None
    assert (place / "step-1").is_dir()  # of a run with other settings, begun later
    for path in place.rglob("*"):
        os.utime(path, (times - 9, times - 9))
    (place / "step-1" / "y").touch()
    (place / "step-1" / "y").unlink()  # the process was killed while it discarded them
    for path in (place, place / "step-1"):
        os.utime(path, (times + 9, times + 9))
    with unless_finished(one, context) as draft:
        assert draft is None
    assert not place.exists()


def test_half_written_files_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = os.getppid()
    for name in (f".a.json.{dead.pid}.part", f".b.json.{os.getpid()}.part", f".c.json.{living}.part", "d.part"):
        (tmp_path / name).touch()
    (tmp_path / ".notes.part").touch()
    with locked(tmp_path):
        assert names(tmp_path) == sorted([f".c.json.{living}.part", ".notes.part", LOCK, "d.part"])
    clear_parts(tmp_path / "nowhere")


def test_a_lock_of_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from triune.record import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(999)"
    environment = {**os.environ, "PYTHONPATH": str(Path(record.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is writing"), locked(tmp_path / "run"):
            pytest.fail("held twice")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(tmp_path / "run"):
        pass


# Disks


@contextmanager
def small_disk(place: Path, n_bytes: int) -> Iterator[Path]:
    """A disk of this size, where this process may mount one."""
    place.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(place)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def small_files(n_bytes: int) -> Iterator[None]:
    """No file may become larger (errno EFBIG), as under an exceeded quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def fill(draft: Path) -> None:
    (draft / "result.txt").write_bytes(bytes(1 << 20))


def fill_by_safetensors(draft: Path) -> None:
    save_file({"x": torch.zeros(1 << 18)}, draft / "x.safetensors")


@pytest.mark.parametrize("work", [fill, fill_by_safetensors])
def test_a_full_disk_keeps_what_was_there_and_says_the_way_out(tmp_path: Path, work: Any) -> None:
    with small_disk(tmp_path / "disk", 1 << 19) as disk:
        finish(step(disk / "a"), "old")
        full = pytest.raises(NoRoom, match=r"the disk of .*disk is full \(.*\); make room, then the same command goes")
        with full, writing(step(disk / "a", rate=1)) as draft:
            work(draft)
        assert names(disk) == ["a", f"a/{RECORD}", "a/result.txt"]
        assert finished(step(disk / "a"))


@pytest.mark.parametrize("work", [fill, fill_by_safetensors])
def test_a_file_size_limit_is_a_full_disk(tmp_path: Path, work: Any) -> None:
    full = pytest.raises(NoRoom, match=r"is full \(.*\); make room")
    with small_files(1 << 19), full, writing(step(tmp_path / "a")) as draft:
        work(draft)
    assert names(tmp_path) == []


def test_other_errors_of_the_system_keep_their_trace(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "no"), ValueError("the disk")):
        with pytest.raises(type(error)), writing(step(tmp_path / "a")):
            raise error
    with pytest.raises(TriuneError, match="of ours"), writing(step(tmp_path / "a")):
        raise TriuneError("of ours")


# Clocks and links


def test_a_clock_that_goes_backwards_changes_no_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(datetime):
        hours = 0

        @classmethod
        def now(cls, tz: Any = None) -> "datetime":
            cls.hours += 1
            return datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=cls.hours)

    monkeypatch.setattr(record, "datetime", Backwards)
    for name in ("a", "b"):
        finish(step(tmp_path / name))
    found = [read_record(tmp_path / name) for name in ("a", "b")]
    assert found[0]["begun"] > found[1]["begun"]
    assert all(0 <= one["seconds"] < 60 for one in found)
    assert all(finished(step(tmp_path / name)) for name in ("a", "b"))


def test_a_result_under_a_link_is_replaced_in_its_real_place(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    for rate in (1, 2):
        finish(step(tmp_path / "run" / "a", rate=rate), str(rate))
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "disk" / "a" / "result.txt").read_text() == "2"
    assert finished(step(tmp_path / "disk" / "a", rate=2))
    (tmp_path / "disk" / "a").rename(tmp_path / "far")
    (tmp_path / "disk" / "a").symlink_to(tmp_path / "far")
    finish(step(tmp_path / "run" / "a", rate=3), "3")
    assert (tmp_path / "disk" / "a").is_symlink()
    assert (tmp_path / "far" / "result.txt").read_text() == "3"


def test_two_links_to_one_run_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        locked(tmp_path / "run"),
        pytest.raises(InputError, match="another process is writing"),
        locked(tmp_path / "link"),
    ):
        pytest.fail("held twice")
