"""A run that is killed again and again ends as one that was not: the same numbers, the same weights, nothing left."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.killing import (
    RUN,
    Moment,
    Nursery,
    at_time,
    draft_of,
    moment_in,
    stamps,
    steps_of,
    strike,
)
from tests.chaos.outcomes import equal
from tests.folders import names

FEW = 5
LEAST = 50  # kills that the whole test must come to
SHORT = 0.1  # seconds
ROUNDS = 40  # how often a step that lasts a millisecond is aimed at
Aim = tuple[str, str, Moment]  # what must not be there yet when the process begins, the moment in words, the moment


@dataclass(frozen=True)
class Hit:
    """A process that was ended: what was aimed at, and the step that was under way ("" between two)."""

    aim: str
    step: str


def aims_in(out: Path, whole: Path, n: int, rng: random.Random) -> Iterator[Aim]:
    """`n` moments in the order of the run's steps, spread evenly over them; each is made when it is asked for."""
    seconds = steps_of(whole / "out")
    chosen = list(seconds) * (n // len(seconds)) + rng.sample(list(seconds), n % len(seconds))
    ordered = sorted(chosen, key=list(seconds).index)
    yield from ((step, *moment_in(out, step, seconds[step], rng)) for step in ordered)


def after_the_steps(out: Path, n: int, rng: random.Random) -> list[Aim]:
    """`n` moments between the last step and the end, where the run's own files and its report are written."""
    files = ("scores.json", "models.json", "curves.json", "timings.json", "report.md", "report.html")
    chosen = [rng.choice(files) for _ in range(n)]
    return [(name, f"{name} written", (out / name).is_file) for name in sorted(chosen, key=files.index)]


def kill_at(starter: Nursery, out: Path, aim: Aim, steps: Sequence[str], how: signal.Signals) -> Hit | None:
    """Begin the run, strike at the moment; None where the run had ended before.

    What the moment waits for is taken away first, where an earlier process got that far: it is then made again.
    """
    name, words, moment = aim
    place = out / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    before = stamps(out, steps)
    child = starter.start(*RUN)
    code = strike(child, moment, how)
    if code == 0:
        return None
    assert code == -how or (code == 130 and how is signal.SIGTERM), (words, code, child.said())
    assert "Traceback" not in child.said()
    begun = [step for step, when in stamps(out, steps).items() if before.get(step) != when]
    assert len(begun) <= 1, begun
    return Hit(words, "".join(begun))


def kill_often(
    starter: Nursery, out: Path, aims: Iterable[Aim], steps: Sequence[str], how: signal.Signals = signal.SIGKILL
) -> list[Hit]:
    """Strike once at each moment; the hits."""
    hits = [kill_at(starter, out, aim, steps, how) for aim in aims]
    return [hit for hit in hits if hit is not None]


def hit_each(starter: Nursery, out: Path, hits: list[Hit], seconds: dict[str, float], rng: random.Random) -> list[Hit]:
    """Kill in the middle of each of these steps that no hit is of yet; the hits with the new ones."""
    found = list(hits)
    for step, length in seconds.items():
        for _ in range(ROUNDS):
            if step in {hit.step for hit in found}:
                break
            # A step of some milliseconds ends before a kill arrives that is sent at a moment of its own time.
            aim = (step, *at_time(out, step, length / 2 if length > SHORT else 0, rng))
            found += kill_often(starter, out, [aim], list(seconds))
    return found


def ends_equal(starter: Nursery, out: Path, whole: Path) -> None:
    """Without a kill the run ends, and as the one that nobody stopped."""
    last = starter.start(*RUN)
    assert last.wait() == 0, last.said()
    equal(out, whole / "out")


def tell(hits: Sequence[Hit], begun: float) -> None:
    """Print what was hit."""
    counts = Counter(hit.step or "between steps" for hit in hits)
    print(f"{len(hits)} kills in {time.monotonic() - begun:.0f} s; under way: {dict(counts)}")


def test_a_run_killed_a_few_times_ends_as_one_that_was_not(whole: Path, again: Path, warm: Nursery) -> None:
    rng, out, begun = random.Random(0), again / "out", time.monotonic()
    seconds = {step: length for step, length in steps_of(whole / "out").items() if length > SHORT}
    chosen = sorted(rng.sample(list(seconds), FEW), key=list(seconds).index)
    hits = hit_each(warm, out, [], {step: seconds[step] for step in chosen}, rng)
    tell(hits, begun)
    assert {hit.step for hit in hits} - {""} == set(chosen)
    assert len(hits) >= FEW
    ends_equal(warm, out, whole)


@pytest.mark.slow
def test_a_run_killed_at_every_step_ends_as_one_that_was_not(wide: Path, wide_again: Path, warm: Nursery) -> None:
    rng, out, begun = random.Random(1), wide_again / "out", time.monotonic()
    seconds = steps_of(wide / "out")
    hits = kill_often(warm, out, aims_in(out, wide, len(seconds) + 10, rng), list(seconds))
    hits += kill_often(warm, out, after_the_steps(out, 6, rng), list(seconds))
    hits = hit_each(warm, out, hits, seconds, rng)
    tell(hits, begun)
    assert len(hits) >= LEAST
    assert {hit.step for hit in hits} - {""} == set(seconds)
    ends_equal(warm, out, wide)


@pytest.mark.slow
def test_sigterm_at_random_moments_leaves_no_draft(whole: Path, again: Path, warm: Nursery) -> None:
    rng, out, steps = random.Random(2), again / "out", list(steps_of(whole / "out"))
    for aim in aims_in(out, whole, 12, rng):
        kill_often(warm, out, [aim], steps, signal.SIGTERM)
        left = [name for name in names(out) if name.endswith((".draft", ".part"))] if out.is_dir() else []
        assert left == [], aim[1]
    ends_equal(warm, out, whole)


def test_sigterm_in_the_middle_of_a_save_leaves_no_half_folder(again: Path, warm: Nursery) -> None:
    out = again / "out"
    draft = draft_of(out, "experts/helpful")
    child = warm.start(*RUN)
    code = strike(child, lambda: (draft / "adapter_model.safetensors").exists(), signal.SIGTERM)
    assert code == 130, child.said()
    assert "finished steps are kept, the same command goes on from there" in child.said()
    assert not (out / "experts" / "helpful").exists()
    assert not draft.exists()
