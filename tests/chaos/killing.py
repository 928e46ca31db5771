"""A small recipe, processes that run it and are killed, and what a run folder comes to."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triune.models.store import INDEX_FILE, hash_weights, load_tensors

PATIENCE = 900  # seconds for anything, on a busy machine
POLL = 0.0005
RECIPE = """\
title: Tiny
base: {path: base, template: plain, max_length: 32}
axes:
  helpful: {train: {source: helpful.jsonl, stop: 0.5}, test: {source: helpful.jsonl, start: 0.5}}
  honest: {train: {source: honest.jsonl, stop: 0.5}, test: {source: honest.jsonl, start: 0.5}}
train: {lora: {rank: 2, alpha: 4}, fit: {steps: 2, batch_size: 2, save_every: 1}}
fuse: {top_k: 1, router_init: means}
align: {gating: 0.01, fit: {steps: 2, batch_size: 2, save_every: 1}}
compare: [base, experts, average, fused]
evaluate: [{kind: nll}]
batch_size: 8
new_tokens: 2
"""
# What says how long things took, or how much memory, and so differs from run to run.
MEASURED = {"timings.json", "models.json", "report.html", "report.md", "record.json", "latency.json"}


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
    """Starts command lines one after the other (see nursery.py), in the folder that was last set."""

    def __init__(self) -> None:
        self.folder, self.count = Path(), 0
        self.last: Child | None = None
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, *words: str) -> Child:
        """Begin a command line; the one before it is ended, should a test have left it."""
        self._clear()
        self.count += 1
        log = self.folder.parent / f"{self.folder.name}-{id(self)}-{self.count}.log"
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps({"words": list(words), "folder": str(self.folder), "log": str(log)}) + "\n"
        )
        self.process.stdin.flush()
        child = Child(int(self._line()), log)

        def watch() -> None:
            child.code = int(self._line())
            child.ended.set()

        threading.Thread(target=watch, daemon=True).start()
        self.last = child
        return child

    def _clear(self) -> None:
        if self.last is not None and not self.last.ended.is_set():
            self.last.send(signal.SIGKILL)
            self.last.wait()

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


Moment = Callable[[], bool]


def steps_of(out: Path) -> dict[str, float]:
    """Every step's seconds, by its folder in the run, in order."""
    return {row["name"]: row["seconds"] for row in json.loads((out / "timings.json").read_text())["steps"]}


def draft_of(out: Path, step: str) -> Path:
    """Where a step is written while it is not finished."""
    place = out / step
    return place.with_name(f".{place.name}.draft")


def moment_in(out: Path, step: str, seconds: float, rng: random.Random) -> tuple[str, Moment]:
    """A moment at random while a step is worked on: by time, by the files that it has written, or at its end."""
    draft, finished = draft_of(out, step), (out / step / "record.json").is_file
    how = rng.choice(("time", "time", "file", "end"))
    if how == "end":
        return f"{step} finished", finished
    if how == "file":
        wanted = rng.randint(1, 8)

        def written() -> bool:
            return finished() or (draft / "record.json").is_file() or len(list(draft.rglob("*"))) > wanted

        return f"{step} with {wanted} files", written
    delay, begun = rng.random() * seconds, list[float]()

    def late() -> bool:
        if not begun and draft.is_dir():
            begun.append(time.monotonic())
        return finished() or (bool(begun) and time.monotonic() - begun[0] >= delay)

    return f"{step} after {delay:.3f} s", late


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


# What a run comes to


def weights(out: Path) -> dict[str, Any]:
    """The hash of every weight file below a run's folder, by its path; tensors, whose order in a file may differ."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.safetensors")):
        name = path.relative_to(out).as_posix()
        if path.name == "model.safetensors" or (path.parent / INDEX_FILE).is_file():
            found[name] = hash_weights(path.parent)
        else:
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_tensors(path).items()}
    return found


def numbers(out: Path) -> dict[str, bytes]:
    """Every other file that does not say how long something took, byte for byte."""
    return {
        path.relative_to(out).as_posix(): _settled(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".safetensors" and path.name not in MEASURED
    }


def _settled(path: Path) -> bytes:
    """A file's bytes; PEFT writes a set as a list, in the order of this process's hashes."""
    if path.name != "adapter_config.json":
        return path.read_bytes()
    found = json.loads(path.read_text(encoding="utf-8"))
    return json.dumps({**found, "target_modules": sorted(found["target_modules"])}, sort_keys=True).encode()


def reported(out: Path) -> list[str]:
    """The tables of report.md whose numbers are scores: its rows without those of time and memory."""
    text = (out / "report.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if (line.startswith("|") and "%" in line) or "nats" in line]
