"""Tasks in any order that their needs allow, several at once: what is started when, begun again, or given up."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from triune.errors import InputError, TriuneError
from triune.pipeline.pools import Outcome, Pool
from triune.pipeline.sharing import holds, share
from triune.pipeline.tasks import Task, step_of
from triune.progress import Progress
from triune.record import RECORD, Step, finished

Done = Callable[[str, bool], None]


class Failure(NamedTuple):
    """A step that was given up."""

    name: str
    why: str
    bad_input: bool


@dataclass
class _State:
    """Who is where. `running` has the identity of each task under way, "" where it is not known."""

    tasks: Mapping[str, Task]
    todo: list[str]
    running: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    known: dict[str, Step | None] = field(default_factory=dict)

    def count(self) -> str:
        return f"{len(self.done)} of {len(self.tasks)} done, {len(self.running)} under way"


def in_parallel(tasks: Mapping[str, Task], pool: Pool, retries: int, progress: Progress, done: Done) -> None:
    """Do all tasks in the pool; `done` hears of each, and whether it had been done before.

    A task whose worker died is begun again, `retries` times at most. Where one fails nothing new is started, and what
    is under way is finished. Raises InputError or TriuneError, which name the steps that failed.
    """
    state = _State(tasks, list(tasks))
    while state.todo or state.running:
        if not state.failures:
            _start_ready(state, pool, progress, done)
        if not state.running:
            break
        for name, outcome in pool.wait().items():
            del state.running[name]
            for line in outcome.said:
                progress.say(f"{name}: {line.strip()}")
            _settle(state, name, outcome, retries, progress)
            if name in state.done:
                done(name, False)
                progress.say(f"{name}: done ({state.count()})")
    _raise(state)


def _start_ready(state: _State, pool: Pool, progress: Progress, done: Done) -> None:
    """Start what can be started. A result that is there already makes others ready: until nothing changes."""
    changed = True
    while changed:
        changed = False
        for name in list(state.todo):
            task = state.tasks[name]
            if not state.done.issuperset(task.needs) or not _may_start(state, task, pool):
                continue
            step = _step(state, name)
            if step is not None and _under_way(state, step):
                continue  # the same is under way elsewhere, and will be taken from there
            state.todo.remove(name)
            changed = True
            if step is not None and _is_there(name, step, task, progress):
                state.done.add(name)
                done(name, True)
            else:
                pool.start(name, task.work)
                state.running[name] = "" if step is None else step.identity
                progress.say(f"{name}: begun ({state.count()})")


def _step(state: _State, name: str) -> Step | None:
    """What a task would write, where it may be there already. Looked up once: its needs are done."""
    task = state.tasks[name]
    if name not in state.known:
        state.known[name] = step_of(task) if task.shelf or (task.folder / RECORD).is_file() else None
    return state.known[name]


def _under_way(state: _State, step: Step) -> bool:
    """Whether another folder's task is at work on the same step. Parts of a step are of one folder."""
    others = (state.tasks[name] for name, identity in state.running.items() if identity == step.identity)
    return any(other.folder != step.folder for other in others)


def _may_start(state: _State, task: Task, pool: Pool) -> bool:
    alone = any(state.tasks[name].alone for name in state.running)
    return pool.has_room() and not alone and not (task.alone and state.running)


def _is_there(name: str, step: Step, task: Task, progress: Progress) -> bool:
    if finished(step):
        progress.say(f"{name}: finished before, skipped")
        return True
    if task.part:
        return any(holds(folder, step) for folder in task.shelf)  # which the step itself takes over
    source = share(step, task.shelf)
    if source is not None:
        progress.say(f"{name}: the same as {source}, taken from there")
    return source is not None


def _settle(state: _State, name: str, outcome: Outcome, retries: int, progress: Progress) -> None:
    if outcome.died:
        state.deaths[name] += 1
        if state.deaths[name] <= retries:
            state.todo.insert(0, name)
            progress.say(f"{name}: its worker died ({outcome.died}); begun again, {state.deaths[name]} of {retries}")
        else:
            times = state.deaths[name]
            state.failures.append(Failure(name, f"its worker died {times} times, last: {outcome.died}", False))
    elif outcome.error:
        state.failures.append(Failure(name, outcome.error, outcome.bad_input))
    else:
        state.done.add(name)


def _raise(state: _State) -> None:
    if not state.failures:
        return
    told = "; ".join(f"the step {failure.name} failed: {failure.why}" for failure in state.failures)
    kind = InputError if all(failure.bad_input for failure in state.failures) else TriuneError
    raise kind(f"{told}. Finished steps are kept, the same command goes on from there")
