"""A recipe over several seeds: what it leaves, what it skips, and that no stale seed is shown.

Most tests put a stand-in in the place of one seed's run; a slow one has the real thing with tiny numbers.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from triune.cli.options import close
from triune.cli.using import evaluate
from triune.errors import InputError
from triune.pipeline import report, run, running, seeds
from triune.pipeline.engines import LOCAL, Engine
from triune.pipeline.running import demo_recipe
from triune.progress import SILENT, Advance, Progress
from triune.recipe import Recipe
from triune.recipe_file import parse_recipe, to_yaml
from triune.record import LOCK

STEPS = {
    "seeds": [3, 1],
    "compare": ["base", "fused"],
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


class Listener:
    """Remembers what it is told; `stop` is the line after which the next task is interrupted."""

    def __init__(self, stop: str = "") -> None:
        self.said: list[str] = []
        self.tasks: list[str] = []
        self.stop = stop

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        def advance(steps: int = 1, note: str = "") -> None: ...

        if self.stop in self.said:
            raise KeyboardInterrupt
        self.tasks.append(title)
        yield advance

    def say(self, text: str) -> None:
        self.said.append(text)


def tiny(**changes: object) -> Recipe:
    values = {**STEPS, **{key.replace("__", "."): value for key, value in changes.items()}}
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return parse_recipe(to_yaml(demo_recipe()), "the demo", overrides=overrides)


class Runs:
    """In the place of one seed's run: writes its recipe, then scores that depend on seed and gating."""

    def __init__(self) -> None:
        self.checked: list[int] = []
        self.done: list[int] = []

    def prepare(self, recipe: Recipe) -> None:
        assert self.done == []
        self.checked.append(recipe.seed)

    def run(
        self, recipe: Recipe, out: Path, progress: Progress = SILENT, *, dry: bool = False, engine: Engine = LOCAL
    ) -> Path:
        if dry:
            progress.say(f"{out.name} dry, seeds {recipe.seeds}, seed {recipe.seed}")
            return out
        assert recipe.seeds == ()
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK).touch()
        (out / "recipe.yaml").write_text(to_yaml(recipe))
        with progress.task("training", 1):
            self.done.append(recipe.seed)
        rows = [row("base", 10.0 + recipe.seed), row("fused", 20.0 + 3 * recipe.seed + recipe.align.gating)]
        (out / "scores.json").write_text(json.dumps(rows))
        return out


def row(model: str, value: float) -> dict[str, object]:
    numbers = {"value": value, "low": value - 1, "high": value + 1, "n": 50}
    return {"model": model, "score": "helpful", "better": "higher", "unit": "%", "judge": "made up", **numbers}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    monkeypatch.setattr(running, "run", stand_in.run)
    monkeypatch.setattr(seeds, "prepare", stand_in.prepare)
    monkeypatch.setattr(seeds, "plan", lambda run: {})
    monkeypatch.setattr(seeds, "Run", lambda *args: None)
    return stand_in


def found_in(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "across.json").read_text()))


def test_each_seed_is_a_run_of_its_own_and_the_whole_is_summed_up(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(align__gating=0.0), tmp_path / "two")
    assert (runs.checked, runs.done) == ([3, 1], [3, 1])
    for seed in (3, 1):
        recipe = parse_recipe((out / f"seed-{seed}" / "recipe.yaml").read_text(), "x")
        assert recipe == tiny(align__gating=0.0, seeds=[], seed=seed)
    assert parse_recipe((out / "recipe.yaml").read_text(), "x") == tiny(align__gating=0.0)
    assert {"across.json", "across.csv", "report.html", "report.md"} <= {p.name for p in out.iterdir()}
    found = found_in(out)
    assert (found["seeds"], found["unfinished"], found["reference"]) == ([3, 1], [], "fused")
    assert [(r["part"], r["model"]) for r in found["rows"]] == [
        ("score", "base"),
        ("score", "fused"),
        ("difference", "base"),
    ]
    base, _, gap = found["rows"]
    assert (base["values"], base["value"], base["min"], base["max"]) == ({"3": 13.0, "1": 11.0}, 12.0, 11.0, 13.0)
    # 13 − 29 and 11 − 23: −16 and −12.
    assert (gap["values"], gap["value"], gap["reference"]) == ({"3": -16.0, "1": -12.0}, -14.0, "fused")
    rows = list(csv.DictReader((out / "across.csv").read_text().splitlines()))
    assert [float(r["seed 3"]) for r in rows] == [13.0, 29.0, -16.0]
    assert 'href="seed-3/report.html"' in (out / "report.html").read_text()


def test_a_run_cut_short_shows_no_stale_seed_and_goes_on(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(align__gating=0.0), tmp_path / "two")
    runs.done.clear()
    changed = tiny(align__gating=0.5)
    with pytest.raises(KeyboardInterrupt):
        run(changed, out, Listener(stop="seed-1 (2 of 2)"))
    report(out)
    found = found_in(out)
    assert (found["seeds"], found["unfinished"]) == ([3], [1])
    assert all(r["low"] is None for r in found["rows"])
    assert "Not in here, because unfinished: seed 1." in (out / "report.md").read_text()
    runs.done.clear()
    run(changed, out)
    assert found_in(out)["seeds"] == [3, 1]
    assert found_in(out)["rows"][1]["values"] == {"3": 29.5, "1": 23.5}


def test_an_unchanged_seed_stays_in_the_page_when_a_second_run_is_cut_short(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(), tmp_path / "two")
    runs.done.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), out, Listener(stop="seed-3 (1 of 2)"))
    report(out)
    assert found_in(out)["seeds"] == [3, 1]


def test_the_page_is_built_again_from_the_seeds(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(), tmp_path / "two")
    before = (out / "across.json").read_bytes()
    for name in ("across.json", "across.csv", "report.html", "report.md"):
        (out / name).unlink()
    assert report(out) == out / "report.html"
    assert (out / "across.json").read_bytes() == before


def test_a_seed_of_other_settings_is_refused(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(), tmp_path / "two")
    path = out / "seed-1" / "recipe.yaml"
    path.write_text(path.read_text().replace("new_tokens: 2", "new_tokens: 3"))
    with pytest.raises(
        InputError, match=r"seed-1 was made with other settings .*\(new_tokens differ\); run the recipe"
    ):
        report(out)
    path.write_text(path.read_text().replace("new_tokens: 3", "new_tokens: 2").replace("seed: 1", "seed: 2"))
    with pytest.raises(InputError, match=r"\(seed differ\)"):
        report(out)


def test_without_a_finished_seed_there_is_nothing_to_report(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(), tmp_path / "two")
    for seed in (1, 3):
        (out / f"seed-{seed}" / "scores.json").unlink()
    with pytest.raises(InputError, match=r"has no finished seed of \[3, 1\]"):
        report(out)


def test_a_dry_run_writes_nothing_and_names_every_seed(runs: Runs, tmp_path: Path) -> None:
    listener = Listener()
    run(tiny(), tmp_path / "new", listener, dry=True)
    assert not (tmp_path / "new").exists()
    assert listener.said[1::2] == ["seed-3 dry, seeds (), seed 3", "seed-1 dry, seeds (), seed 1"]


def test_all_seeds_are_checked_before_the_first_is_run(tmp_path: Path) -> None:
    foreign = tmp_path / "out" / "seed-1" / "letter.txt"
    foreign.parent.mkdir(parents=True)
    (tmp_path / "out" / LOCK).touch()
    foreign.write_text("mine")
    with pytest.raises(InputError, match="seed-1 exists and was not written by Triune"):
        run(tiny(), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOCK, "seed-1"]
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        run(tiny(axes__helpful__train__source="nowhere.jsonl"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_one_folder_holds_runs_of_one_kind(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(), tmp_path / "two")
    with pytest.raises(InputError, match=r"holds runs of several seeds \(seed-1, seed-3\), the recipe has none"):
        run(tiny(seeds=[]), out)
    one = tmp_path / "one" / "data" / "record.json"
    one.parent.mkdir(parents=True)
    one.touch()
    with pytest.raises(InputError, match=r"one holds the run of one seed, the recipe has seeds \[3, 1\]"):
        run(tiny(), tmp_path / "one")


def test_a_recipe_without_seeds_is_one_run(runs: Runs, tmp_path: Path) -> None:
    out = run(tiny(seeds=[], seed=7), tmp_path / "one")
    assert (runs.checked, runs.done) == ([], [7])
    assert not list(out.glob("seed-*"))


def test_the_command_line_closes_with_means(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(tiny(), tmp_path / "two")
    close(out)
    printed = capsys.readouterr().out
    assert "Means over seeds 3, 1 with 95 % t intervals." in printed
    assert "12.0" in printed


def test_models_made_elsewhere_are_scored_with_one_seed(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(tiny()))
    with pytest.raises(InputError, match=r"has seeds \[3, 1\]; models made elsewhere have one: add seeds=\[\] seed=N"):
        evaluate(path, ["mine=folder"], tmp_path / "out")


@pytest.mark.slow
def test_the_real_thing(tmp_path: Path) -> None:
    out = run(tiny(), tmp_path / "two")
    for seed in (3, 1):
        assert json.loads((out / f"seed-{seed}" / "fused" / "record.json").read_text())["seed"] == seed
        assert (out / f"seed-{seed}" / "report.html").is_file()
    before = (out / "across.json").read_bytes()
    scores = json.loads((out / "seed-3" / "scores.json").read_text())
    found = [r["values"]["3"] for r in found_in(out)["rows"] if r["part"] == "score"]
    assert found == [r["value"] for r in scores]
    assert {r["name"] for r in found_in(out)["rows"] if r["part"] == "cost"} >= {"latency_ratio", "memory_bytes"}
    listener = Listener()
    run(tiny(), out, listener)
    assert listener.tasks == []
    assert (out / "across.json").read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        run(tiny(align__gating=0.5), out, Listener(stop="seed-1 (2 of 2)"))
    again = Listener()
    run(tiny(align__gating=0.5), out, again)
    begun = again.said.index("seed-1 (2 of 2)")
    assert all("finished before" in line for line in again.said[1:begun])
    assert again.tasks != []  # what is made anew shows its progress, and says nothing


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([4], "seeds has only 4; give at least two, or seed: 4 instead"),
        ([4, 1, 4], r"seeds names \[4\] more than once"),
        ([-1, 2], "greater than or equal to 0"),
        ([True, 2], "a number is wanted, not yes or no"),
        (5, "a list is wanted"),
    ],
)
def test_seeds_that_are_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(seeds=given)


def test_the_quick_block_may_name_its_own_seeds() -> None:
    text = to_yaml(tiny(quick={"seeds": [7, 8]}))
    assert parse_recipe(text, "x").seeds == (3, 1)
    assert parse_recipe(text, "x", quick=True).seeds == (7, 8)
