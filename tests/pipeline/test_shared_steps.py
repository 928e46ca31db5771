"""What runs have in common is made once: taken over by its identity, weights linked, and never twice at once."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline.toy_steps import diamond, identities, values
from triune.pipeline.engines import LOCAL, Engine, do_tasks
from triune.pipeline.sharing import SHARED, share
from triune.pipeline.tasks import Task, step_of
from triune.progress import SILENT
from triune.record import Step, identify, read_record, write_json, writing


def made(folder: Path, number: int = 1) -> Step:
    step = Step(folder, "toy", {"number": number, "seed": 3})
    with writing(step, 3) as draft:
        (draft / "model.safetensors").write_bytes(b"weights")
        (draft / "inner").mkdir()
        (draft / "inner" / "adapter.safetensors").write_bytes(b"more")
        write_json(draft / "curve.json", [1.0])
    return step


def test_a_result_is_taken_over_whole_with_a_record_of_its_own(tmp_path: Path) -> None:
    made(tmp_path / "a" / "step")
    step = Step(tmp_path / "b" / "step", "toy", {"number": 1, "seed": 3})
    assert share(step, [tmp_path / "none", tmp_path / "a" / "step"]) == tmp_path / "a" / "step"
    assert identify(step.folder) == identify(tmp_path / "a" / "step") == step.identity
    for name in ("model.safetensors", "inner/adapter.safetensors"):
        assert (step.folder / name).stat().st_ino == (tmp_path / "a" / "step" / name).stat().st_ino
    assert (step.folder / "curve.json").read_text() == (tmp_path / "a" / "step" / "curve.json").read_text()
    assert (step.folder / "curve.json").stat().st_nlink == 1
    assert read_record(step.folder)["seed"] == 3
    assert '"../../a/step"' in (step.folder / SHARED).read_text()
    third = replace(step, folder=tmp_path / "c" / "step")
    share(third, [step.folder])
    assert '"../../b/step"' in (third.folder / SHARED).read_text()


def test_only_a_finished_result_of_the_same_identity_is_taken(tmp_path: Path) -> None:
    made(tmp_path / "a" / "step", number=2)
    step = Step(tmp_path / "b" / "step", "toy", {"number": 1, "seed": 3})
    (tmp_path / "c" / "step").mkdir(parents=True)
    (tmp_path / "d" / "step").mkdir(parents=True)
    (tmp_path / "d" / "step" / "record.json").write_text("{")
    assert share(step, [tmp_path / name / "step" for name in "abcd"]) is None
    assert not step.folder.exists()


def two_points(out: Path) -> dict[str, Task]:
    """Two diamonds that differ in nothing but their place, each with the other for its shelf."""
    found = {}
    for here, there in (("x", "y"), ("y", "x")):
        for name, task in diamond(out / here).items():
            needs = tuple(f"{here}/{need}" for need in task.needs)
            found[f"{here}/{name}"] = replace(task, needs=needs, shelf=(out / there / name,))
    return found


@pytest.mark.parametrize("engine", [LOCAL, Engine("processes", workers=2, cpus=1)])
def test_points_that_are_alike_are_made_once(engine: Engine, tmp_path: Path) -> None:
    done: dict[str, bool] = {}
    do_tasks(two_points(tmp_path), engine, SILENT, done.__setitem__)
    assert values(tmp_path / "x") == values(tmp_path / "y") == {"a": 1, "b": 11, "c": 101, "d": 1112, "e": 5}
    assert identities(tmp_path / "x") == identities(tmp_path / "y")
    assert sorted(done.values()) == [False] * 5 + [True] * 5
    for name in "abcde":
        pair = [(tmp_path / point / name) for point in "xy"]
        assert sum((folder / SHARED).is_file() for folder in pair) == 1
        assert (pair[0] / "pid").read_text() == (pair[1] / "pid").read_text()


def test_the_step_of_a_task_is_the_one_that_its_work_records(tmp_path: Path) -> None:
    tasks = diamond(tmp_path)
    assert step_of(tasks["b"]) is None  # a is not there yet
    for task in tasks.values():
        told = step_of(task)
        task.work()
        assert told is not None
        assert told.identity == identify(task.folder)
