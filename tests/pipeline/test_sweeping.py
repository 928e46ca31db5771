"""A sweep with tiny numbers: equal to single runs, what is equal made once, resumed, in parallel, and on one page."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.toy_steps import identities
from triune.errors import InputError
from triune.models.store import hash_weights
from triune.pipeline import report, run, sweep
from triune.pipeline.engines import LOCAL, Engine
from triune.pipeline.grids import Point, expand
from triune.pipeline.running import demo_recipe
from triune.pipeline.sharing import SHARED
from triune.recipe_file import parse_recipe, to_yaml

TINY: dict[str, Any] = {
    "compare": ["base", "experts", "average", "fused"],
    "scarce": None,
    "base.miniature.steps": 2,
    "base.miniature.batch_size": 2,
    "base.miniature.hidden_size": 8,
    "base.miniature.intermediate_size": 8,
    "base.miniature.layers": 1,
    "base.miniature.heads": 1,
    "train.fit.steps": 1,
    "align.fit.steps": 1,
    "evaluate.0.limit": 2,
    "new_tokens": 2,
}
PROCESSES = Engine("processes", workers=2, cpus=1)


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def task(self, title: str, total: int):  # type: ignore[no-untyped-def]
        from triune.progress import SILENT

        return SILENT.task(title, total)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> tuple[Point, ...]:
    path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    overrides = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    path.write_text(to_yaml(parse_recipe(to_yaml(demo_recipe()), "the demo", overrides=overrides)))
    return expand(path, ["align.gating=0,0.5"])


def test_a_dry_run_writes_nothing_and_names_every_point(points: tuple[Point, ...], tmp_path: Path) -> None:
    listener = Listener()
    sweep(points, tmp_path / "new", listener, dry=True)
    assert not (tmp_path / "new").exists()
    assert {"gating=0", "gating=0.5"} <= set(listener.said)


def test_a_folder_of_something_else_is_refused(points: tuple[Point, ...], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="was not written by Triune"):
        sweep(points, tmp_path)
    one = tmp_path / "one"
    one.mkdir()
    for name in (".triune.lock", "recipe.yaml"):
        (one / name).touch()
    with pytest.raises(InputError, match="holds a run of one recipe, not a sweep"):
        sweep(points, one)


def test_all_points_are_checked_before_the_first_is_run(points: tuple[Point, ...], tmp_path: Path) -> None:
    wrong = points[1].recipe.model_copy(
        update={"train": points[1].recipe.train.model_copy(update={"lora": _strange(points[1])})}
    )
    with pytest.raises(InputError, match=r"train.lora.targets names \['w1'\]"):
        sweep([points[0], replace(points[1], recipe=wrong)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _strange(point: Point) -> Any:
    return point.recipe.train.lora.model_copy(update={"targets": ("w1",)})


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("engine", [LOCAL, PROCESSES], ids=["local", "processes"])
def test_a_sweep_is_its_single_runs_with_the_equal_parts_made_once(
    engine: Engine, points: tuple[Point, ...], tmp_path: Path
) -> None:
    out = sweep(points, tmp_path / "out", engine=engine)
    alone = run(points[1].recipe, tmp_path / "alone")
    # The costs are times; all else is the same to the byte, the weights too.
    assert (out / "gating=0.5" / "scores.json").read_bytes() == (alone / "scores.json").read_bytes()
    assert identities(out / "gating=0.5") == identities(alone)
    assert hash_weights(out / "gating=0.5" / "fused") == hash_weights(alone / "fused")
    shared = [sum((out / point.name / name / SHARED).is_file() for point in points) for name in ("base", "start")]
    assert shared == [1, 1]
    assert not any((out / point.name / "fused" / SHARED).is_file() for point in points)
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    mine = [r for r in rows if (r["align.gating"], r["model"], r["score"]) == ("0.5", "fused", "helpful")]
    told = [
        r for r in json.loads((alone / "scores.json").read_text()) if (r["model"], r["score"]) == ("fused", "helpful")
    ]
    assert [float(r["value"]) for r in mine] == [r["value"] for r in told]
    assert 'href="gating%3D0.5/report.html"' in (out / "report.html").read_text()
    before = (out / "report.html").read_bytes()
    listener = Listener()
    sweep(points, out, listener, engine=PROCESSES if engine == LOCAL else LOCAL)
    assert not any("begun" in line or "taken from" in line for line in listener.said)
    report(out)
    assert (out / "report.html").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("processes", marks=pytest.mark.long), "ray"])
def test_a_run_in_parallel_has_the_results_of_one_in_order(
    kind: str, points: tuple[Point, ...], tmp_path: Path
) -> None:
    if kind == "ray":
        pytest.importorskip("ray", reason="Ray is not installed (pip install 'triune[ray]')")
    recipe = points[0].recipe
    serial = run(recipe, tmp_path / "serial")
    parallel = run(recipe, tmp_path / "parallel", engine=Engine(kind, workers=2, cpus=1, shards=2))
    assert identities(parallel) == identities(serial)
    assert (parallel / "scores.json").read_bytes() == (serial / "scores.json").read_bytes()
    for name in ("base", "start", "fused"):
        assert hash_weights(parallel / name) == hash_weights(serial / name)
    listener = Listener()
    run(recipe, parallel, listener)
    timings = json.loads((parallel / "timings.json").read_text())
    assert all(step["skipped"] for step in timings["steps"])
