"""Training that was stopped and goes on ends exactly as training that was not."""

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.experts.conftest import random_rows
from tests.experts.test_checkpoint import DAMAGES, flip
from tests.experts.test_fitting import Recorder
from tests.fusion.conftest import random_base
from triune.errors import InputError
from triune.experts import checkpoint, processes
from triune.experts.fitting import Batch, Curve, Job, Objective, StatefulObjective, answer_objective, fit
from triune.experts.training import with_adapters
from triune.progress import SILENT
from triune.recipe import Fit, Lora

ROOT = Path(__file__).parents[2]
LORA = Lora(rank=2, dropout=0.3, targets=("q_proj", "up_proj", "down_proj"))


def job(place: Path | None = None, seed: int = 0, rates: bool = False, **settings: Any) -> Job:
    """Ten rows in batches of two: five batches an epoch, in another order each."""
    own = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2, **settings}
    apart = (("layers.1.", 3e-3),) if rates else ()
    return Job("training", random_rows(10), Fit(**own), seed, 0, learning_rates=apart, checkpoint=place)


def adapted() -> Any:
    """A tiny model with adapters that drop out, and a parameter that never gets a gradient."""
    model = with_adapters(random_base("llama"), LORA, 0)
    model.idle = nn.Parameter(torch.ones(2))
    return model


class Remembering:
    """A loss that depends on what it was before: its running average enters it."""

    def __init__(self) -> None:
        self.average = torch.tensor(0.0)
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        self.calls += 1
        loss, _ = answer_objective(model, batch)
        self.average = 0.7 * self.average + 0.3 * loss.detach()
        return loss + (loss - self.average).square(), {"average": float(self.average)}

    def state(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.average = state["average"]


class Stopped(Exception):
    """Somebody pulled the plug."""


class Stopping:
    """An objective that stops the program at its n-th call."""

    def __init__(self, objective: Any, calls: int, how: Any = Stopped) -> None:
        self.objective, self.left, self.how = objective, calls, how
        self.state, self.load_state = objective.state, objective.load_state

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        self.left -= 1
        if self.left < 0:
            raise self.how()
        result: tuple[Tensor, dict[str, float]] = self.objective(model, batch)
        return result


def trained(job: Job, objective: Objective | None = None, progress: Any = SILENT) -> tuple[list[Tensor], Curve]:
    model = adapted()
    curve = fit(model, job, objective or Remembering(), progress)
    return [p.detach().clone() for p in model.parameters() if p.requires_grad], curve


def assert_same(one: tuple[list[Tensor], Curve], other: tuple[list[Tensor], Curve]) -> None:
    assert one[1] == other[1]
    assert len(one[0]) > 1
    assert all(torch.equal(p, q) for p, q in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize(
    ("settings", "calls", "steps"),
    [
        ({"save_every": 3}, 8, 6),  # in the second epoch
        ({"save_every": 5}, 7, 5),  # between two epochs
        ({"save_every": 2, "accumulation": 2}, 8, 4),  # three steps an epoch, the last of one batch
        ({"save_every": 1, "accumulation": 3, "rates": True}, 10, 4),  # at an epoch's end
        ({"save_every": 4, "steps": 7, "schedule": "linear", "weight_decay": 0.1}, 6, 4),
        ({"save_every": 2, "precision": "bfloat16"}, 3, 2),
        ({"save_every": 2, "checkpointing": True}, 3, 2),
        ({"save_every": 50}, 12, None),  # stopped before the first one
    ],
)
def test_a_stopped_job_ends_as_one_that_was_not(
    tmp_path: Path, settings: dict[str, Any], calls: int, steps: int | None
) -> None:
    place, mine = tmp_path / "place", Remembering()
    with pytest.raises(Stopped):
        trained(job(place, **settings), Stopping(Remembering(), calls))
    assert [path.name for path in place.iterdir()] == ([] if steps is None else [f"step-{steps}"])
    resumed = trained(job(place, **settings), mine)
    assert_same(resumed, trained(job(**{**settings, "save_every": None})))
    assert mine.calls < len(resumed[1]) * settings.get("accumulation", 1) or steps is None


def test_stopped_again_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(Stopped):
            trained(job(tmp_path, save_every=6), Stopping(Remembering(), 7))
    watcher = Recorder()
    said: list[str] = []
    watcher.say = said.append  # type: ignore[method-assign]
    assert_same(trained(job(tmp_path, save_every=6), None, watcher), trained(job()))
    assert said == ["  training: going on after step 12 of 15"]
    assert (watcher.totals, watcher.done) == ([15], 15)


def test_a_job_stopped_after_its_last_step_does_no_further_one(tmp_path: Path) -> None:
    first, mine = trained(job(tmp_path, save_every=4)), Remembering()
    assert [path.name for path in tmp_path.iterdir()] == ["step-15"]
    assert_same(trained(job(tmp_path, save_every=4), mine), first)
    assert mine.calls == 0
    assert float(mine.average) == first[1][-1]["average"]
    assert_same(first, trained(job()))


def test_how_often_it_is_saved_does_not_matter(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(job(tmp_path, save_every=2), Stopping(Remembering(), 5))
    mine = Remembering()
    # Without save_every: it goes on from what is there, and writes nothing.
    assert_same(trained(job(tmp_path), mine), trained(job()))
    assert mine.calls == 11
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]
    with pytest.raises(Stopped):
        trained(job(tmp_path, save_every=3), Stopping(Remembering(), 3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-6"]


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a pickle")

    for module, names in ((torch, ("save", "load")), (pickle, ("dump", "dumps", "load", "loads", "Pickler"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    with pytest.raises(Stopped):
        trained(job(tmp_path, save_every=2), Stopping(Remembering(), 3))
    trained(job(tmp_path, save_every=2))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {path.suffix for path in files} == {".json", ".safetensors"}


@pytest.mark.parametrize("damage", [flip, DAMAGES[-1]])
def test_a_damaged_checkpoint_is_said_and_training_begins_again(tmp_path: Path, damage: Any) -> None:
    with pytest.raises(Stopped):
        trained(job(tmp_path, save_every=2), Stopping(Remembering(), 3))
    damage(tmp_path / "step-2")
    watcher, said, mine = Recorder(), list[str](), Remembering()
    watcher.say = said.append  # type: ignore[method-assign]
    assert_same(trained(job(tmp_path, save_every=2), mine, watcher), trained(job()))
    assert mine.calls == 15
    assert len(said) == 1
    assert "step-2 is damaged" in said[0]


def other_model() -> Any:
    return with_adapters(random_base("llama"), LORA.model_copy(update={"rank": 3}), 0)


def test_what_makes_another_job() -> None:
    own, model = job(), adapted()
    changed = [
        replace(own, seed=1),
        replace(own, pad_id=2),
        replace(own, identity="of other frozen weights"),
        replace(own, axes=("helpful",)),
        replace(own, rows=random_rows(10, seed=1)),
        replace(own, rows=own.rows[::-1]),
        replace(own, rows=[replace(own.rows[0], n_prompt=5), *own.rows[1:]]),
        replace(own, settings=own.settings.model_copy(update={"learning_rate": 2e-2})),
        replace(own, learning_rates=(("layers.1.", 1e-2),)),
        replace(own, targets=torch.ones(10, 2)),
    ]
    prints = [each.fingerprint(model) for each in (own, *changed)]
    prints += [own.fingerprint(other_model()), own.fingerprint(adapted().double())]
    assert len(set(prints)) == len(prints)
    same = [
        replace(own, settings=own.settings.model_copy(update={"save_every": 7})),
        replace(own, checkpoint=Path("elsewhere")),
        replace(own, title="by another name"),
    ]
    assert {each.fingerprint(adapted()) for each in same} == {prints[0]}


def test_another_jobs_checkpoint_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(job(tmp_path, save_every=2), Stopping(Remembering(), 3))
    mine = Remembering()
    assert_same(trained(job(tmp_path, seed=1, save_every=2), mine), trained(job(seed=1)))
    assert mine.calls == 15


def test_a_plain_function_has_no_state(tmp_path: Path) -> None:
    assert isinstance(Remembering(), StatefulObjective)
    assert not isinstance(answer_objective, StatefulObjective)
    trained(job(tmp_path, save_every=2, steps=2), answer_objective)
    (folder,) = tmp_path.iterdir()
    assert checkpoint.newest(tmp_path, job(steps=2).fingerprint(adapted()), pytest.fail) is not None  # type: ignore[arg-type]
    assert_same(
        trained(job(tmp_path, save_every=2, steps=2), answer_objective), trained(job(steps=2), answer_objective)
    )
    assert folder.is_dir()


def test_no_place_for_checkpoints_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mine = Remembering()
    with pytest.raises(InputError, match="checkpoints cannot be kept in"):
        trained(job(tmp_path / "file", save_every=1), mine)
    assert mine.calls == 0
    trained(job(save_every=1, steps=1))  # without a place nothing is written


def test_processes_that_see_different_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(job(tmp_path, save_every=2, steps=2), answer_objective)
    monkeypatch.setattr(processes, "agreed", lambda _own: 0)  # the first one sees none
    with pytest.raises(InputError, match=r"see different checkpoints in .*the first sees step 0.*disk that all"):
        trained(job(tmp_path, save_every=2, steps=2), answer_objective)


def die() -> BaseException:
    os.kill(os.getpid(), signal.SIGKILL)
    return Stopped()


def train_and_die(place: str, where: str) -> None:
    """What the child does: dies in a step, or while it writes its second checkpoint."""
    if where == "writing":
        real = checkpoint.write_json

        def write_json(path: Path, value: Any) -> None:
            if path.name == checkpoint.MANIFEST and value["files"] and (Path(place) / "step-3").exists():
                die()
            real(path, value)

        checkpoint.write_json = write_json
    trained(job(Path(place), save_every=3), Stopping(Remembering(), 5 if where == "training" else 99, die))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["training", "writing"])
def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path, where: str) -> None:
    code = f"from tests.experts.test_fitting_resumed import train_and_die; train_and_die({str(tmp_path)!r}, {where!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"step-3"} | ({".draft"} if where == "writing" else set())
    mine = Remembering()
    assert_same(trained(job(tmp_path, save_every=3), mine), trained(job()))
    assert mine.calls == 12
    assert [path.name for path in tmp_path.iterdir()] == ["step-15"]
