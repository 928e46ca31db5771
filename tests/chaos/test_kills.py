"""A run that is killed again and again ends as one that was not: the same numbers, the same weights, nothing left."""

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.killing import (
    RECIPE,
    Moment,
    Nursery,
    draft_of,
    moment_in,
    numbers,
    nursery,
    reported,
    steps_of,
    strike,
    weights,
)
from tests.folders import names
from tests.spoiling import make_world

RUN = ("run", "recipe.yaml", "--out", "out")
FEW = 5
MANY = 60


@pytest.fixture(scope="module")
def warm() -> Iterator[Nursery]:
    """Importing Triune takes longer than a run of this recipe: once for all tests."""
    with nursery() as own:
        yield own


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, warm: Nursery) -> Path:
    """A folder with the recipe, its data, and `out`: a run that nobody stopped."""
    place = tmp_path_factory.mktemp("chaos") / "whole"
    place.mkdir()
    make_world(place)
    (place / "recipe.yaml").write_text(RECIPE)
    warm.folder = place
    child = warm.start(*RUN)
    assert child.wait() == 0, child.said()
    return place


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> Path:
    """A copy of the folder without the run."""
    return shutil.copytree(whole, tmp_path / "again", ignore=lambda place, found: {"out"} & set(found))


@pytest.fixture
def starter(again: Path, warm: Nursery) -> Nursery:
    """Starts command lines in `again`."""
    warm.folder = again
    return warm


def equal(out: Path, whole: Path) -> None:
    """The run ended as the one that nobody stopped, and left nothing beside."""
    assert names(out) == names(whole)
    assert weights(out) == weights(whole)
    found, wanted = numbers(out), numbers(whole)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert {"scores.json", "scores.csv"} <= wanted.keys()
    assert reported(out) == reported(whole) != []


Aim = tuple[str, str, Moment]  # what must not be there yet when the process begins, the moment in words, the moment


def moments(out: Path, whole: Path, n: int, rng: random.Random) -> list[Aim]:
    """`n` moments in the order of the run's steps, as many in each as in any other."""
    seconds = steps_of(whole / "out")
    chosen = list(seconds) * (n // len(seconds)) + rng.sample(list(seconds), n % len(seconds))
    ordered = sorted(chosen, key=list(seconds).index)
    return [(step, *moment_in(out, step, seconds[step], rng)) for step in ordered]


def after_the_steps(out: Path, n: int, rng: random.Random) -> list[Aim]:
    """`n` moments between the last step and the end, where the run's own files and its report are written."""
    files = ("scores.json", "models.json", "curves.json", "timings.json", "report.md", "report.html")
    chosen = [rng.choice(files) for _ in range(n)]
    return [(name, f"{name} written", (out / name).is_file) for name in sorted(chosen, key=files.index)]


def kill_often(starter: Nursery, out: Path, aims: list[Aim], how: signal.Signals) -> list[str]:
    """Strike once at each moment; says which ones met their aim.

    What the moment waits for is taken away first, where an earlier process got that far: it is then made again.
    """
    met = []
    for name, aim, moment in aims:
        place = out / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        child = starter.start(*RUN)
        code = strike(child, moment, how)
        if code == -how:
            met.append(aim)
        elif code == 130 and how is signal.SIGTERM:
            assert "Traceback" not in child.said()
            met.append(aim)
        else:
            assert code == 0, (aim, child.said())
    return met


def test_a_run_killed_a_few_times_ends_as_one_that_was_not(whole: Path, again: Path, starter: Nursery) -> None:
    rng, out = random.Random(0), again / "out"
    met = kill_often(starter, out, moments(out, whole, FEW, rng), signal.SIGKILL)
    print(f"{len(met)} kills: {met}")
    assert len(met) >= FEW - 1
    last = starter.start(*RUN)
    assert last.wait() == 0, last.said()
    equal(out, whole / "out")


@pytest.mark.slow
def test_a_run_killed_at_every_step_ends_as_one_that_was_not(whole: Path, again: Path, starter: Nursery) -> None:
    rng, out = random.Random(1), again / "out"
    met = kill_often(starter, out, moments(out, whole, MANY, rng), signal.SIGKILL)
    met += kill_often(starter, out, after_the_steps(out, 6, rng), signal.SIGKILL)
    print(f"{len(met)} kills: {met}")
    assert len(met) >= 50
    assert {aim.split()[0] for aim in met} >= set(steps_of(whole / "out"))
    last = starter.start(*RUN)
    assert last.wait() == 0, last.said()
    equal(out, whole / "out")


@pytest.mark.slow
def test_sigterm_at_random_moments_leaves_no_draft(whole: Path, again: Path, starter: Nursery) -> None:
    rng, out = random.Random(2), again / "out"
    for aim in moments(out, whole, 12, rng):
        kill_often(starter, out, [aim], signal.SIGTERM)
        left = [name for name in names(out) if name.endswith((".draft", ".part"))] if out.is_dir() else []
        assert left == [], aim[1]
    last = starter.start(*RUN)
    assert last.wait() == 0, last.said()
    equal(out, whole / "out")


def test_sigterm_in_the_middle_of_a_save_leaves_no_half_folder(whole: Path, again: Path, starter: Nursery) -> None:
    out = again / "out"
    draft = draft_of(out, "experts/helpful")
    child = starter.start(*RUN)
    code = strike(child, lambda: (draft / "adapter_model.safetensors").exists(), signal.SIGTERM)
    assert code == 130, child.said()
    assert "finished steps are kept, the same command goes on from there" in child.said()
    assert not (out / "experts" / "helpful").exists()
    assert not draft.exists()


def test_a_killed_run_holds_nothing_against_the_next(whole: Path, again: Path, starter: Nursery) -> None:
    out = again / "out"
    child = starter.start(*RUN)
    assert strike(child, (out / ".triune.lock").is_file, signal.SIGKILL) == -signal.SIGKILL
    assert (out / ".triune.lock").is_file()
    assert starter.start(*RUN).wait() == 0


def test_the_second_of_two_processes_is_refused(whole: Path, again: Path, starter: Nursery) -> None:
    out = again / "out"
    with nursery() as other:
        other.folder = again
        first = starter.start(*RUN)
        while not draft_of(out, "experts/helpful").is_dir():
            assert not first.ended.is_set(), first.said()
        first.send(signal.SIGSTOP)  # in the middle of a step, however long the second takes
        second = other.start(*RUN)
        code = second.wait()
        first.send(signal.SIGCONT)
        assert (code, first.wait()) == (2, 0), second.said()
    assert "another process is writing out; wait for it or choose another --out" in second.said()
    equal(out, whole / "out")


def test_a_half_deleted_copy_is_made_whole(whole: Path, again: Path, starter: Nursery) -> None:
    out = again / "out"
    shutil.copytree(whole / "out", out)
    (out / "experts" / "helpful" / "adapter_model.safetensors").unlink()
    shutil.rmtree(out / "samples" / "base")
    weighty = out / "fused" / "model.safetensors"
    weighty.write_bytes(weighty.read_bytes()[:100])
    child = starter.start(*RUN)
    assert child.wait() == 0, child.said()
    assert "out/experts/helpful: adapter_model.safetensors is missing; the step is done again" in child.said()
    assert "out/fused: model.safetensors has 100 bytes in place of" in child.said()
    redone = {"experts/helpful", "fused", "samples/base"}
    skipped = {name for name in steps_of(out) if f"out/{name}: finished before, skipped" in child.said()}
    assert skipped == set(steps_of(out)) - redone
    for kept in out.rglob(".superseded"):  # the damaged ones
        shutil.rmtree(kept)
    equal(out, whole / "out")
