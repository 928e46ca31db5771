"""Training verbs that were stopped go on from their checkpoint, which stands beside the step's folder."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.experts.conftest import light_training
from tests.folders import names
from tests.spoiling import context, experts, make_world, rows
from triune import pipeline
from triune.pipeline.verbs import checkpoint_place
from triune.progress import Advance, Progress
from triune.recipe import Align, Fit, Fuse, Train
from triune.record import Step

PLACE = Path(".out.checkpoint")
Verb = Callable[..., Path]


class Watcher:
    """Keeps what is said, and presses Ctrl-C at the given step."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.said, self.steps = stop, list[str](), list[int]()

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        done = [0]

        def advance(steps: int = 1, note: str = "") -> None:
            done[0] += steps
            self.steps.append(done[0])
            if done[0] == self.stop:
                raise KeyboardInterrupt

        yield advance

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    with light_training():
        yield tmp_path


def fit(save_every: int | None = 2, **settings: Any) -> Fit:
    return Fit(**{"steps": 7, "batch_size": 4, "learning_rate": 1e-2, "save_every": save_every, **settings})


def train(out: str, own: Fit, progress: Progress) -> Path:
    return pipeline.train(context(progress), rows("helpful"), Path(out), Train(fit=own))


def align(out: str, own: Fit, progress: Progress) -> Path:
    if not Path("fused").is_dir():
        pipeline.fuse(context(), experts(), Path("fused"), Fuse(router_init="zeros"), [])
    settings = Align(
        trainable="routers+experts+attention",
        drift={"helpful": 0.1, "honest": 0.2},
        representation=0.1,
        running=0.5,
        fit=own,
    )
    return pipeline.align(context(progress), Path("fused"), rows("helpful", "honest"), Path(out), settings)


VERBS = [train, align]


def outcome(out: Path) -> tuple[dict[str, bytes], list[dict[str, float]], dict[str, Any]]:
    """(the weights, the curve, the settings) of a finished step."""
    record = json.loads((out / "record.json").read_text())
    # Not the file's bytes: safetensors writes its metadata in any order.
    weights = {n: t.numpy().tobytes() for path in out.glob("*.safetensors") for n, t in load_file(path).items()}
    assert weights
    return weights, json.loads((out / "curve.json").read_text()), record["settings"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_stopped_verb_ends_as_one_that_was_not(world: Path, verb: Verb) -> None:
    with pytest.raises(KeyboardInterrupt):
        verb("out", fit(), Watcher(stop=5))
    assert not Path("out").exists()
    assert not Path(".out.draft").exists()
    assert [path.name for path in PLACE.iterdir()] == ["step-4"]
    again = Watcher()
    verb("out", fit(), again)
    assert again.steps == [4, 5, 6, 7]
    assert any("going on after step 4 of 7" in line for line in again.said)
    assert not PLACE.exists()
    verb("whole", fit(None), Watcher())
    assert outcome(Path("out")) == outcome(Path("whole"))
    curve = outcome(Path("out"))[1]
    assert [row["step"] for row in curve] == list(range(1, 8))
    # Measured from the untrained factors: zero at the first step, and not again where training went on.
    assert [row.get("drift:helpful", 0) > 0 for row in curve] == [verb is align and row["step"] > 1 for row in curve]
    assert not [name for name in names(world) if "checkpoint" in name]
    skipped = Watcher()
    verb("out", fit(None), skipped)
    assert skipped.said == ["out: finished before, skipped"]


def test_another_setting_is_another_job(world: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("out", fit(), Watcher(stop=5))
    kept = names(PLACE)
    other = Watcher(stop=1)
    with pytest.raises(KeyboardInterrupt):
        train("out", fit(weight_decay=0.1), other)
    assert other.steps == [1]
    assert any("of another job" in line for line in other.said)
    assert names(PLACE) == kept  # until the other job writes its own
    watcher = Watcher()
    train("out", fit(), watcher)
    assert watcher.steps == [4, 5, 6, 7]


def test_settings_of_the_objective_and_other_weights_are_another_job(world: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        align("out", fit(), Watcher(stop=5))
    other = Watcher(stop=1)
    settings = Align(trainable="routers+experts+attention", fit=fit())
    with pytest.raises(KeyboardInterrupt):
        pipeline.align(context(other), Path("fused"), rows("helpful", "honest"), Path("out"), settings)
    assert any("of another job" in line for line in other.said)
    shutil.rmtree("fused")
    pipeline.fuse(context(), experts(), Path("fused"), Fuse(router_init="zeros", temperature=2.0), [])
    other = Watcher(stop=1)
    with pytest.raises(KeyboardInterrupt):
        align("out", fit(), other)
    assert any("of another job" in line for line in other.said)


def test_a_damaged_checkpoint_does_not_stop_the_verb(world: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("out", fit(), Watcher(stop=5))
    path = PLACE / "step-4" / "parameters.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    watcher = Watcher()
    train("out", fit(), watcher)
    assert watcher.steps == [1, 2, 3, 4, 5, 6, 7]
    assert any("step-4 is damaged" in line for line in watcher.said)
    assert not PLACE.exists()


def test_without_save_every_nothing_is_kept(world: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("out", fit(None), Watcher(stop=5))
    assert not PLACE.exists()
    train("out", fit(None), Watcher())
    assert "save_every" not in outcome(Path("out"))[2]["train"]["fit"]


def test_the_checkpoint_of_what_is_kept_is_in_the_place_of_the_real_folder(world: Path) -> None:
    Path("disk").mkdir()
    Path("link").symlink_to("disk")
    assert checkpoint_place(Step(Path("link/out"), "train", {})) == world / "disk" / ".out.checkpoint"


def test_a_checkpoint_holds_only_what_learns(world: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("out", fit(), Watcher(stop=3))
    kept = load_file(PLACE / "step-2" / "parameters.safetensors")
    assert kept
    assert all("lora_" in name for name in kept)
