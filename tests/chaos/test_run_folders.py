"""What can befall a run's folder between two commands: others at work, no room, no rights, a move, losses."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.killing import RUN, Nursery, draft_of, steps_of, strike
from tests.chaos.outcomes import equal
from tests.folders import names

YEARS = 10 * 365 * 86400
ROOM = 400_000  # bytes: for the first steps, not for all


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A mount at `place`; skips where this process may not."""
    place.mkdir(exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount")
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount refused: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def cut_short(starter: Nursery, out: Path, step: str) -> None:
    """A run that was killed when the first checkpoint of a step that trains was whole."""
    draft = draft_of(out, step)
    checkpoints = draft.with_name(f".{Path(step).name}.checkpoint")
    child = starter.start(*RUN)
    killed = strike(child, lambda: any(checkpoints.glob("step-*")), signal.SIGKILL)
    assert killed == -signal.SIGKILL, child.said()
    assert not (out / step).exists()


def ends(starter: Nursery) -> str:
    """The run goes on to its end; what it said."""
    child = starter.start(*RUN)
    assert child.wait() == 0, child.said()
    return child.said()


def test_the_second_of_two_processes_is_refused(whole: Path, again: Path, warm: Nursery) -> None:
    out = again / "out"
    first = warm.start(*RUN)
    while not draft_of(out, "experts/helpful").is_dir():
        assert not first.ended.is_set(), first.said()
        time.sleep(0.001)
    first.send(signal.SIGSTOP)  # in the middle of a step, however long the second takes
    before = names(out)
    second = warm.start(*RUN, beside=True)
    code = second.wait()
    left = names(out)
    first.send(signal.SIGCONT)
    assert (code, first.wait()) == (2, 0), second.said()
    assert left == before
    assert "another process is writing out; wait for it or choose another --out" in second.said()
    equal(out, whole / "out")


def test_a_killed_run_holds_nothing_against_the_next(again: Path, warm: Nursery) -> None:
    out = again / "out"
    for sign in (".triune.lock", "data/record.json"):  # the second process gets beyond the lock
        child = warm.start(*RUN)
        assert strike(child, (out / sign).is_file, signal.SIGKILL) == -signal.SIGKILL, child.said()
    assert (out / ".triune.lock").is_file()


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(whole: Path, again: Path, warm: Nursery) -> None:
    out = again / "out"
    with mounted(out, "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs"):
        for _ in range(2):  # a second try is no better, and does no harm
            child = warm.start(*RUN)
            assert child.wait() == 1, child.said()
            assert "Traceback" not in child.said()
            assert "make room" in child.said()
            assert "the same command goes on from" in child.said()
            assert [name for name in names(out) if name.endswith((".draft", ".part"))] == []
        done = [step for step in steps_of(whole / "out") if (out / step).is_dir()]
        assert done
        subprocess.run(["mount", "-o", "remount,size=100m", str(out)], check=True)
        said = ends(warm)
        assert all(f"out/{step}: finished before, skipped" in said for step in done)
        equal(out, whole / "out")


def test_a_read_only_folder_is_refused(whole: Path, again: Path, warm: Nursery) -> None:
    out = again / "out"
    shutil.copytree(whole / "out", out)
    before = names(out)
    with mounted(out, "--bind", str(out)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(out)], check=True)
        for words in (RUN, ("report", "out")):
            child = warm.start(*words)
            assert child.wait() == 2, child.said()
            assert "Read-only file system" in child.said()
            assert "Traceback" not in child.said()
    assert names(out) == before
    equal(out, whole / "out")


def test_a_clock_that_went_back_changes_no_result(whole: Path, again: Path, warm: Nursery) -> None:
    out = again / "out"
    cut_short(warm, out, "experts/honest")
    later = time.time() + YEARS  # what is there was written then, and now it is earlier
    for path in (out, *out.rglob("*")):
        os.utime(path, (later, later), follow_symlinks=False)
    said = ends(warm)
    assert "out/experts/helpful: finished before, skipped" in said
    equal(out, whole / "out")


def test_a_run_copied_elsewhere_goes_on_there(whole: Path, again: Path, warm: Nursery, tmp_path: Path) -> None:
    cut_short(warm, again / "out", "experts/honest")
    place = shutil.copytree(again, tmp_path / "far" / "away")
    shutil.rmtree(again)
    warm.folder = place
    said = ends(warm)
    assert "out/experts/helpful: finished before, skipped" in said
    assert "going on after step" in said
    equal(place / "out", whole / "out")


def test_a_half_deleted_copy_is_made_whole(whole: Path, again: Path, warm: Nursery) -> None:
    out = again / "out"
    shutil.copytree(whole / "out", out)
    (out / "experts" / "helpful" / "adapter_model.safetensors").unlink()
    shutil.rmtree(out / "samples" / "base")
    weighty = out / "fused" / "model.safetensors"
    weighty.write_bytes(weighty.read_bytes()[:100])
    said = ends(warm)
    assert "out/experts/helpful: adapter_model.safetensors is missing; the step is done again" in said
    assert "out/fused: model.safetensors has 100 bytes in place of" in said
    redone = {"experts/helpful", "fused", "samples/base"}
    skipped = {name for name in steps_of(out) if f"out/{name}: finished before, skipped" in said}
    assert skipped == set(steps_of(out)) - redone
    for kept in out.rglob(".superseded"):  # the damaged ones
        shutil.rmtree(kept)
    equal(out, whole / "out")


def test_a_record_of_a_newer_version_is_refused(whole: Path, again: Path, warm: Nursery) -> None:
    out = again / "out"
    shutil.copytree(whole / "out", out)
    place = out / "fused" / "record.json"
    place.write_text('{"format": 99, "versions": {"triune": "9.0"}}')
    before = names(out)
    child = warm.start(*RUN)
    assert child.wait() == 2, child.said()
    assert "out/fused/record.json was written by a newer Triune (version 9.0, record format 99" in child.said()
    assert names(out) == before
    assert place.read_text() == '{"format": 99, "versions": {"triune": "9.0"}}'
