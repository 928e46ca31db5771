"""Who does a run's steps: one after the other here, in several processes of this machine, or on Ray."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from triune.errors import InputError
from triune.pipeline.pools import Pool
from triune.pipeline.process_pool import open_processes
from triune.pipeline.ray_pool import check_cluster, open_ray
from triune.pipeline.scheduling import Done, in_parallel
from triune.pipeline.sharing import share
from triune.pipeline.tasks import Task, step_of
from triune.progress import Progress
from triune.record import RECORD, finished, read_record


@dataclass(frozen=True)
class Engine:
    """How a run's steps are done.

    workers: steps at once (None: as many as the cores, or Ray's cluster, allow); cpus: cores and torch threads a
    step (None: the cores shared out among the workers, and 1 on Ray); gpus: GPUs a step, on Ray only; retries: how
    often a step is begun again whose worker died; shards: tasks that share the prompts of each model.
    """

    kind: str = "local"
    workers: int | None = None
    cpus: int | None = None
    gpus: float = 0.0
    retries: int = 2
    shards: int = 1

    @property
    def parallel(self) -> bool:
        """Whether several steps may be under way at once."""
        return self.kind != "local"


LOCAL = Engine()
# What opens the pool of workers; None: the steps are done in this process.
ENGINES: Mapping[str, Callable[[int | None, int | None, float], Pool] | None] = {
    "local": None,
    "processes": open_processes,
    "ray": open_ray,
}


def check_engine(engine: Engine) -> None:
    """Raise InputError for an unknown engine, one that is not installed, and resources that it has not."""
    if engine.kind not in ENGINES:
        raise InputError(f"the engine {engine.kind!r} is unknown; known: {', '.join(ENGINES)}")
    if engine.kind == "ray" and find_spec("ray") is None:
        raise InputError(
            "--engine ray needs Ray, which is not installed: pip install 'triune[ray]'; --engine processes needs "
            "nothing more"
        )
    counts = (engine.workers, engine.cpus, engine.shards)
    if any(value is not None and value < 1 for value in counts) or engine.gpus < 0 or engine.retries < 0:
        raise InputError("workers, cpus and shards are 1 or more, gpus and retries 0 or more; give others")
    if not engine.parallel and (engine.workers, engine.cpus, engine.gpus, engine.shards) != (None, None, 0.0, 1):
        raise InputError(
            "--workers, --cpus, --gpus and --shards are of --engine processes or ray; the local engine does one step "
            "after the other in this process"
        )
    if engine.kind == "processes" and engine.gpus:
        raise InputError("--gpus is of --engine ray, which hands out GPUs; leave it out, or choose ray")
    if engine.kind == "ray":
        check_cluster()


def do_tasks(tasks: Mapping[str, Task], engine: Engine, progress: Progress, done: Done) -> None:
    """Do every task once all that it needs is done; `done` hears of each, and whether it had been done before.

    Raises InputError and TriuneError of the steps; with several at once, when those under way have ended.
    """
    opened = ENGINES[engine.kind]
    if opened is None:
        for name, task in tasks.items():
            done(name, _do_here(name, task, progress))
        return
    pool = opened(engine.workers, engine.cpus, engine.gpus)
    try:
        in_parallel(tasks, pool, engine.retries, progress, done)
    finally:
        pool.stop()


def _do_here(name: str, task: Task, progress: Progress) -> bool:
    """Do a task in this process; whether its result was there before, of this run or of one beside it."""
    step = step_of(task) if task.shelf else None
    if step is not None and not finished(step) and (source := share(step, task.shelf)) is not None:
        progress.say(f"{name}: the same as {source}, taken from there")
        return True
    before = _record(task.folder)
    task.work()
    return before is not None and before == _record(task.folder)


def _record(folder: Path) -> dict[str, Any] | None:
    return read_record(folder) if (folder / RECORD).is_file() else None
