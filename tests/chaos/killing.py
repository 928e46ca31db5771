"""Small recipes, and processes that run them and are killed at chosen moments."""

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.spoiling import AXES, make_world
from triune.record import LOCK, RECORD

PATIENCE = 900  # seconds for anything, on a busy machine
POLL = 0.001
N_ROWS = 12  # an axis
RUN = ("run", "recipe.yaml", "--out", "out")
HEAD = """\
title: Tiny
base: {path: base, template: plain, max_length: 32}
axes:
  helpful:
    train: {source: helpful.jsonl, stop: 0.5}
    calibration: {source: helpful.jsonl, start: 0.5, stop: 0.75}
    test: {source: helpful.jsonl, start: 0.75}
  honest:
    train: {source: honest.jsonl, stop: 0.5}
    calibration: {source: honest.jsonl, start: 0.5, stop: 0.75}
    test: {source: honest.jsonl, start: 0.75}
train: {lora: {rank: 2, alpha: 4}, fit: {steps: 2, batch_size: 2, save_every: 1}}
fuse: {top_k: 1, router_init: means}
align: {gating: 0.01, fit: {steps: 2, batch_size: 2, save_every: 1}}
batch_size: 8
new_tokens: 2
"""
FEW_STEPS = f"""{HEAD}
compare: [base, experts, average, fused]
evaluate: [{{kind: nll}}]
"""
# A step of every kind that needs neither a package of its own nor hours.
MANY_STEPS = f"""{HEAD}
mixture: {{lora: {{rank: 2, alpha: 4}}, fit: {{steps: 2, batch_size: 2, save_every: 1}}}}
calibrate: {{least: 2}}
variants: {{zero: {{fuse.router_init: zeros}}}}
scarce:
  examples: 2
  train: {{lora: {{rank: 2, alpha: 4}}, fit: {{steps: 2, batch_size: 2, save_every: 1}}}}
  mixture: {{lora: {{rank: 2, alpha: 4}}, fit: {{steps: 2, batch_size: 2, save_every: 1}}}}
  align: {{fit: {{steps: 2, batch_size: 2, save_every: 1}}}}
compare: [base, experts, mixture, sequential, average, ties, ensemble, arrow, variants, fused, calibrated]
evaluate:
  - {{kind: nll}}
  - {{kind: generative, benchmark: local, name: mine, data: {{source: asked.jsonl}}, judge: refusal}}
judges: {{refusal: {{kind: rule, rule: no_refusal}}}}
"""


@dataclass
class Child:
    """A command line under way."""

    number: int
    log: Path
    ended: threading.Event = field(default_factory=threading.Event)
    code: int | None = None

    def wait(self) -> int:
        """Its exit code; negative for the signal that ended it."""
        assert self.ended.wait(PATIENCE), f"it did not end: {self.said()}"
        assert self.code is not None
        return self.code

    def send(self, how: signal.Signals) -> None:
        """Send a signal, if it still lives (its number is kept until the nursery has seen it end)."""
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.number, how)

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.is_file() else ""


class Nursery:
    """Starts command lines (see nursery.py), in the folder that was last set."""

    def __init__(self) -> None:
        self.folder, self.count = Path(), 0
        self.children: dict[int, Child] = {}
        self.begun: queue.Queue[int] = queue.Queue()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"
        self.told = threading.Condition()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if "begun" in told:
                self.begun.put(told["begun"])
                continue
            with self.told:
                self.told.wait_for(lambda number=told["ended"]: number in self.children, PATIENCE)
            child = self.children.pop(told["ended"])
            child.code = told["code"]
            child.ended.set()

    def start(self, *words: str, beside: bool = False) -> Child:
        """Begin a command line; those before it are ended, should a test have left any, unless it is `beside` them."""
        if not beside:
            self._clear()
        self.count += 1
        log = self.folder.parent / f"{self.folder.name}-{id(self)}-{self.count}.log"
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps({"words": list(words), "folder": str(self.folder), "log": str(log)}) + "\n"
        )
        self.process.stdin.flush()
        child = Child(self.begun.get(timeout=PATIENCE), log)
        with self.told:
            self.children[child.number] = child
            self.told.notify_all()
        return child

    def _clear(self) -> None:
        for child in list(self.children.values()):
            child.send(signal.SIGKILL)
            child.wait()

    def close(self) -> None:
        """End the nursery and what it has started."""
        self._clear()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.listener.join(PATIENCE)
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery that is closed at the end."""
    own = Nursery()
    try:
        yield own
    finally:
        own.close()


def make_chaos_world(place: Path, recipe: str) -> None:
    """A base, the axes' rows, prompts to answer, and the recipe."""
    place.mkdir(parents=True)
    make_world(place)
    for axis in AXES:
        shutil.rmtree(place / axis)  # the run trains its own
        rows = [{"prompt": f"{axis} {i}?", "response": f"answer {i}"} for i in range(N_ROWS)]
        (place / f"{axis}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "asked.jsonl").write_text("".join(json.dumps({"prompt": f"asked {i}?"}) + "\n" for i in range(4)))
    (place / "recipe.yaml").write_text(recipe)


Moment = Callable[[], bool]


def steps_of(out: Path) -> dict[str, float]:
    """Every step's seconds, by its folder in the run, in order."""
    return {row["name"]: row["seconds"] for row in json.loads((out / "timings.json").read_text())["steps"]}


def draft_of(out: Path, step: str) -> Path:
    """Where a step is written while it is not finished."""
    place = out / step
    return place.with_name(f".{place.name}.draft")


def stamps(out: Path, steps: Iterable[str]) -> dict[str, int]:
    """When each step's draft was last begun; drafts that a killed process left are among them."""
    found = {}
    for step in steps:
        with suppress(FileNotFoundError):  # not begun, or just renamed
            found[step] = (draft_of(out, step) / LOCK).stat().st_mtime_ns
    return found


def moment_in(out: Path, step: str, seconds: float, rng: random.Random) -> tuple[str, Moment]:
    """A moment at random while a step is worked on: by time, by the files that it has written, or at its end."""
    how = rng.choice((at_time, at_time, at_file, at_end))
    return how(out, step, seconds, rng)


def at_time(out: Path, step: str, seconds: float, rng: random.Random) -> tuple[str, Moment]:
    """A moment of the step's own time."""
    draft, finished = draft_of(out, step), (out / step / RECORD).is_file
    before, delay, begun = stamps(out, [step]), rng.random() * seconds, list[float]()

    def late() -> bool:
        if not begun and draft.is_dir() and stamps(out, [step]) != before:
            begun.append(time.monotonic())
        return finished() or (bool(begun) and time.monotonic() - begun[0] >= delay)

    return f"{step} after {delay:.3f} s", late


def at_file(out: Path, step: str, seconds: float, rng: random.Random) -> tuple[str, Moment]:
    """When the step has written so many files."""
    draft, finished = draft_of(out, step), (out / step / RECORD).is_file
    before, wanted = stamps(out, [step]), rng.randint(1, 8)

    def written() -> bool:
        own = stamps(out, [step]) != before
        return finished() or (own and ((draft / RECORD).is_file() or _count(draft) > wanted))

    return f"{step} with {wanted} files", written


def _count(draft: Path) -> int:
    """Its files and folders; none where it is renamed while they are counted."""
    try:
        return len(list(draft.rglob("*")))
    except FileNotFoundError:
        return 0


def at_end(out: Path, step: str, seconds: float, rng: random.Random) -> tuple[str, Moment]:
    """When its result is there."""
    return f"{step} finished", (out / step / RECORD).is_file


def strike(child: Child, moment: Moment, how: signal.Signals) -> int:
    """Send the signal at the moment, unless the process has ended before; gives its exit code."""
    end = time.monotonic() + PATIENCE
    while not child.ended.is_set():
        if moment():
            child.send(how)
            break
        assert time.monotonic() < end, f"the moment never came: {child.said()}"
        time.sleep(POLL)
    return child.wait()
