"""A run's steps with what each needs, so that an engine may do them in any order that the needs allow."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from triune.errors import InputError
from triune.pipeline.evaluating import observe_part
from triune.pipeline.exam import VERDICTS, Exam
from triune.pipeline.planning import Planned, Run
from triune.pipeline.serving import observe_model
from triune.pipeline.verbs import Context
from triune.record import Step
from triune.served_settings import Served

Work = Callable[[], Path]
# What a step reads that does not stand among its arguments.
BESIDE: Mapping[str, tuple[str, ...]] = {"scores": (VERDICTS,)}
ALONE = "costs/"  # steps that measure time: nothing else of the run is done beside them


@dataclass(frozen=True)
class Task:
    """One step as an engine sees it.

    needs: the tasks whose folders it reads; alone: no other task at the same time; shelf: folders in which the same
    result may stand already; part: it does a part of the step in `folder`, which another task finishes.
    """

    work: Work
    folder: Path
    needs: tuple[str, ...] = ()
    alone: bool = False
    shelf: tuple[Path, ...] = ()
    part: bool = False


def tasks_of(steps: Planned, out: Path, shards: int = 1) -> dict[str, Task]:
    """A run's steps in order, each with its needs; a model's prompts are asked by `shards` tasks before its step."""
    needs = needs_of(steps, out)
    found: dict[str, Task] = {}
    for name, work in steps.items():
        task = Task(work, out / name, needs[name], name.startswith(ALONE))
        parts = _parts(name, task, shards) if shards > 1 else {}
        found |= parts
        found[name] = replace(task, needs=(*task.needs, *parts))
    return found


def _parts(name: str, task: Task, n: int) -> dict[str, Task]:
    """The tasks that ask a model's prompts; none where the step asks no model of this machine."""
    work = task.work
    if not isinstance(work, partial) or work.func is not observe_model or isinstance(work.args[2], Served):
        return {}
    own = [partial(observe_part, *work.args, part=(i, n)) for i in range(n)]
    return {f"{name}, answers {i + 1} of {n}": replace(task, work=one, part=True) for i, one in enumerate(own)}


def needs_of(steps: Planned, out: Path) -> dict[str, tuple[str, ...]]:
    """The steps whose folders each step reads, by its arguments and `BESIDE`; in the plan's order.

    Only direct needs: what those read in turn, as an ensemble its experts, they name themselves. Raises InputError
    for a step that needs one after it.
    """
    owners = {_absolute(out / name): name for name in steps}
    found: dict[str, tuple[str, ...]] = {}
    for name, work in steps.items():
        read = {owners[place] for path in _places(work) for place in _around(path) if place in owners}
        read |= {other for other in BESIDE.get(name, ()) if other in steps}
        found[name] = tuple(other for other in steps if other in read - {name})
        late = [other for other in found[name] if other not in found]
        if late:
            raise InputError(f"the step {name} needs {late}, which the plan has after it; put it behind them")
    return found


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _around(path: Path) -> Iterator[Path]:
    """A path and the folders above it: a file in a step's folder is that step's."""
    yield (here := _absolute(path))
    yield from here.parents


def _places(value: Any) -> Iterator[Path]:
    """Every path that a step is given. A `Run` itself is none: what gets it whole reads no other step's folder."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, partial):
        yield from _places((value.args, value.keywords))
    elif isinstance(value, Context):
        yield from [] if value.base.path is None else [Path(value.base.path)]
    elif isinstance(value, Exam):
        yield value.data
    elif isinstance(value, Mapping):
        yield from _places(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _places(item)


def rebound(work: Work, **changes: Any) -> Work:
    """The step with fields of its context (`progress`, `dry`, `notice`) set otherwise."""
    if not isinstance(work, partial):
        return work

    def changed(value: Any) -> Any:
        return replace(value, **changes) if isinstance(value, Context | Run) else value

    own = {key: changed(value) for key, value in work.keywords.items()}
    return partial(work.func, *map(changed, work.args), **own)


def step_of(task: Task) -> Step | None:
    """The record's step of a task, by a dry run of it; None where it cannot be told, as before its needs are there."""
    found: list[Step] = []
    if not isinstance(task.work, partial):
        return None
    if not any(isinstance(value, Context | Run) for value in (*task.work.args, *task.work.keywords.values())):
        return None  # it could not be told to do nothing
    try:
        rebound(task.work, dry=True, notice=found.append)()
    except InputError:
        return None  # the step itself says what is wrong
    own = [step for step in found if _absolute(step.folder) == _absolute(task.folder)]
    return own[-1] if own else None
