"""Steps of a moment, of the form that real ones have: recorded, locked, skipped where finished."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from triune.errors import InputError
from triune.pipeline.tasks import Task
from triune.pipeline.verbs import Context, unless_finished
from triune.progress import SILENT
from triune.recipe import Base
from triune.record import Step, identify, read_record, write_text

BASE = Base(path="nowhere")


def add(context: Context, inputs: Sequence[Path], out: Path, number: int, traps: Path | None = None) -> Path:
    """Writes its number plus the sum of its inputs' values.

    `traps`: a folder; while it holds a file `<name of out>-kill` the step takes the file away and dies, and with
    `<name of out>-refuse` it raises; with `<name of out>-orphan` it kills the process whose number the file
    `starter` has, and waits.
    """
    step = Step(out, "add", {"number": number}, {str(i): identify(folder) for i, folder in enumerate(inputs)})
    with unless_finished(step, context) as draft:
        if draft is not None:
            if traps is not None:
                _spring(traps, out.name)
            context.progress.say(f"adding {number}")
            total = number + sum(int((folder / "value").read_text()) for folder in inputs)
            write_text(draft / "value", str(total))
            write_text(draft / "pid", str(os.getpid()))
    return out


def _spring(traps: Path, name: str) -> None:
    deadly = sorted(traps.glob(f"{name}-kill*"))
    if deadly:
        deadly[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (traps / f"{name}-orphan").is_file():
        (traps / f"{name}-orphan").unlink()
        os.kill(int((traps / "starter").read_text()), signal.SIGKILL)
        signal.pause()  # ended with whoever started it
    if (traps / f"{name}-refuse").is_file():
        raise InputError("no such luck; try another")
    if (traps / f"{name}-break").is_file():
        raise RuntimeError("broken")


def diamond(out: Path, traps: Path | None = None, *, first: int = 1) -> dict[str, Task]:
    """a; b and c of a; d of b and c: 1, 11, 101 and 1112 where a is 1. e stands alone."""
    made = {name: out / name for name in "abcde"}
    context = Context(BASE, progress=SILENT)

    def task(name: str, number: int, needs: str = "", *, alone: bool = False) -> Task:
        work = partial(add, context, [made[need] for need in needs], made[name], number, traps)
        return Task(work, made[name], tuple(needs), alone)

    return {
        "a": task("a", first),
        "b": task("b", 10, "a"),
        "c": task("c", 100, "a"),
        "d": task("d", 1000, "bc"),
        "e": task("e", 5, alone=True),
    }


def values(out: Path) -> dict[str, int]:
    """The values of the finished steps."""
    return {path.parent.name: int(path.read_text()) for path in sorted(out.glob("[a-z]/value"))}


def identities(out: Path) -> dict[str, str]:
    """The identities of all finished steps under a folder, by their place."""
    found = sorted(path.parent for path in out.rglob("record.json") if ".superseded" not in path.parts)
    return {str(folder.relative_to(out)): read_record(folder)["identity"] for folder in found}
