"""The evidence run: what is run and what is skipped, what an interruption leaves, what it all took."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import claims_files
import evidence
import pytest
from evidence import ROWS, Part, Place, Row
from made_runs import write_json

from triune.errors import InputError
from triune.pipeline import seeds
from triune.recipe import Recipe

RECIPE = "recipes/conflict.yaml"
PARTS = (Part("a", RECIPE, ("seeds=[0,1]",)), Part("b", RECIPE, ("seeds=[]",)))
SMALL = (
    Row("first", "conflict.py", "conflict.json", PARTS),
    Row("second", "sizes.py", "sizes.json", (Part("c", RECIPE, ("seeds=[]",)),)),
    Row("third", "sizes.py", "alignx_collapse.json", also=("first",)),
)


class Fake:
    """In the place of a run and of the collecting script: writes a record a seed, and remembers its calls."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.ran: list[str] = []
        self.collected: list[str] = []

    def run(self, recipe: Recipe, out: Path) -> None:
        if out.name == self.fails:
            raise KeyboardInterrupt
        self.ran.append(out.name)
        for folder in [out / f"seed-{seed}" for seed in recipe.seeds] or [out]:
            write_json(folder / "base" / "record.json", {"identity": "x", "seconds": 1800.0, "cpu_seconds": 900.0})

    def collect(self, row: Row, target: Path, folders: Sequence[Path]) -> str:
        self.collected.append(row.name)
        assert all((folder / "base" / "record.json").is_file() for folder in folders)
        target.write_text(json.dumps({"made by": row.name, "folders": [str(folder) for folder in folders]}))
        return f"tables of {row.name}"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "results").mkdir()
    return Place(tmp_path / "out", tmp_path / "results", tmp_path / "claims.md")


@pytest.fixture(autouse=True)
def short_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that counts the files: the made-up ones hold no numbers."""
    monkeypatch.setattr(evidence.claims, "page", lambda folder: f"{len(list(folder.glob('*.json')))} files\n")


def go(place: Place, fake: Fake, only: Sequence[str] = (), rows: Sequence[Row] = SMALL, *, again: bool = False) -> str:
    return "\n".join(evidence.run(rows, only, place, fake.run, fake.collect, again=again))


def test_everything_is_run_collected_and_told(place: Place) -> None:
    fake = Fake()
    said = go(place, fake)
    assert fake.ran == ["a", "b", "c"]
    assert fake.collected == ["first", "second", "third"]
    found = json.loads((place.results / "conflict.json").read_text())["folders"]
    assert found == [str(place.out / "first" / name) for name in ("a/seed-0", "a/seed-1", "b")]
    assert json.loads((place.results / "sizes.json").read_text())["folders"] == [str(place.out / "second" / "c")]
    also = json.loads((place.results / "alignx_collapse.json").read_text())["folders"]
    assert also == found
    assert (place.out / "first" / evidence.TABLES).read_text() == "tables of first"
    assert "1.50 h wall, 0.75 h of processor time" in said.splitlines()[0]
    assert "in total 2.00 h wall, 1.00 h of processor time" in said.splitlines()[-1]
    assert place.page.read_text() == "4 files\n"  # three results and what they took
    kept = json.loads((place.results / claims_files.SPENT).read_text())["rows"]
    assert kept["first"] == {
        "result": "conflict.json",
        "seconds": 5400.0,
        "cpu_seconds": 2700.0,
        "cpu_at_most": 2700.0,
        "steps": 3,
        "steps_without_cpu": 0,
    }
    assert "third" not in kept


def test_a_second_call_skips_what_is_up_to_date(place: Place) -> None:
    go(place, Fake())
    fake = Fake()
    said = go(place, fake)
    assert (fake.ran, fake.collected) == ([], [])
    assert "first: up to date; 1.50 h wall" in said
    go(place, fake, ["second"], again=True)
    assert (fake.ran, fake.collected) == (["c"], ["second"])


def test_a_changed_recipe_is_run_again_and_what_reads_it_too(place: Place) -> None:
    go(place, Fake())
    fake = Fake()
    changed = (replace(SMALL[0], parts=(PARTS[0], Part("b", RECIPE, ("seeds=[]", "seed=3")))), *SMALL[1:])
    go(place, fake, rows=changed)
    assert fake.collected == ["first", "third"]


@pytest.mark.parametrize("spoiled", ["changed", "gone"])
def test_a_result_file_that_was_touched_is_collected_again(place: Place, spoiled: str) -> None:
    go(place, Fake())
    path = place.results / "sizes.json"
    before = path.read_text()
    path.write_text("{}") if spoiled == "changed" else path.unlink()
    fake = Fake()
    go(place, fake)
    assert fake.collected == ["second"]
    assert path.read_text() == before


def test_an_interruption_loses_nothing(place: Place) -> None:
    stopped = Fake(fails="c")
    with pytest.raises(KeyboardInterrupt):
        go(place, stopped)
    assert stopped.collected == ["first"]
    assert (place.results / "conflict.json").is_file()
    assert place.page.read_text() == "2 files\n"
    fake = Fake()
    go(place, fake)
    assert (fake.ran, fake.collected) == (["c"], ["second", "third"])


def test_a_part_that_is_interrupted_leaves_no_result(place: Place) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(place, Fake(fails="b"))
    assert not list(place.results.iterdir())


def test_only_some_rows(place: Place) -> None:
    fake = Fake()
    go(place, fake, ["second"])
    assert (fake.ran, fake.collected) == (["c"], ["second"])
    with pytest.raises(InputError, match="no row other; known: first, second, third"):
        go(place, fake, ["other"])
    with pytest.raises(InputError, match="third also reads first, not run yet"):
        go(place, fake, ["third"])


def test_a_wrong_recipe_is_refused_before_anything_runs(place: Place) -> None:
    fake = Fake()
    rows = (SMALL[0], replace(SMALL[1], parts=(Part("c", RECIPE, ("align.gatin=1",)),)))
    with pytest.raises(InputError, match="gatin"):
        go(place, fake, rows=rows)
    assert fake.ran == []


def test_time_is_summed_without_what_was_replaced(tmp_path: Path) -> None:
    for name, content in (
        ("a/one", {"seconds": 10.0, "cpu_seconds": 4.0}),
        ("a/two/deep", {"seconds": 5.0, "machine": {"cores": 2}}),
        ("b/one", {"seconds": 1.0, "cpu_seconds": 2.5}),
        ("a/.superseded/one-1", {"seconds": 100.0, "cpu_seconds": 100.0}),
    ):
        write_json(tmp_path / name / "record.json", {"identity": "x", **content})
    found = evidence.spent([tmp_path / "a", tmp_path / "b"])
    assert found == evidence.Spent(16.0, 6.5, 16.5, 3, 1)
    assert "without 1 of 3 steps" in str(found)
    assert evidence.spent([tmp_path / "none"]) == evidence.Spent(0, 0, 0, 0, 0)


def test_runs_made_elsewhere_are_counted(place: Place, tmp_path: Path) -> None:
    write_json(tmp_path / "x" / "record.json", {"identity": "x", "seconds": 7200.0, "machine": {"cores": 2}})
    rows = (Row("alignx", "script.py", "alignx.json"),)
    (told,) = evidence.count(rows, [f"alignx={tmp_path / 'x'}"], place)
    assert told.startswith("alignx: 2.00 h wall, 0.00 h of processor time without 1 of 1 steps")
    assert evidence.claims.at_most(place.results) == {"alignx.json": 14400.0}
    for bad in ("none=/tmp", f"alignx={tmp_path / 'absent'}", "alignx"):
        with pytest.raises(InputError, match="wanted NAME=FOLDER of alignx"):
            list(evidence.count(rows, [bad], place))


def test_a_script_that_fails_says_why(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evidence, "HERE", tmp_path)
    (tmp_path / "script.py").write_text("import sys\nprint(sys.argv[1:])\nif len(sys.argv) > 2: sys.exit('no')\n")
    row = Row("r", "script.py", "r.json")
    assert evidence.by_script(row, Path("t"), []) == "['t']\n"
    with pytest.raises(InputError, match=r"script\.py could not collect r:\nno"):
        evidence.by_script(row, Path("t"), [Path("f")])


def test_the_table_of_rows() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) == len({row.result for row in ROWS})
    named = {row.name: row for row in ROWS}
    for place, row in enumerate(ROWS):
        assert evidence.asked_for(row, named)
        assert all(recipe.seeds for recipe in evidence.recipes_of(row).values()), "over seeds, for the intervals"
        assert set(row.also) <= {earlier.name for earlier in ROWS[:place]}
    parts = [recipe.base.miniature for recipe in evidence.recipes_of(named["conflict"]).values()]
    assert [part and part.world.sharing for part in parts] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.slow
@pytest.mark.long
def test_a_real_row_goes_on_where_it_stopped(place: Place) -> None:
    tiny = (
        "seeds=[0,1]",
        "base.miniature.steps=3",
        "base.miniature.batch_size=2",
        "train.fit.steps=2",
        "mixture.fit.steps=2",
        "align.fit.steps=2",
        "compare=[base, experts, average, task_arithmetic, ties, mixture, fused]",
        "evaluate.0.limit=4",
    )
    parts = tuple(Part(f"sharing-{s}", RECIPE, (*tiny, f"base.miniature.world.sharing={s}")) for s in ("0", "1"))
    rows = (Row("conflict", "conflict.py", "conflict.json", parts),)

    def stops(recipe: Recipe, out: Path) -> None:
        if out.name == "sharing-1":
            raise KeyboardInterrupt
        seeds.run(recipe, out)

    with pytest.raises(KeyboardInterrupt):
        list(evidence.run(rows, [], place, stops))
    before = (place.out / "conflict/sharing-0/seed-0/fused/record.json").read_bytes()
    said = list(evidence.run(rows, [], place, seeds.run))
    assert (place.out / "conflict/sharing-0/seed-0/fused/record.json").read_bytes() == before
    found = json.loads((place.results / "conflict.json").read_text(encoding="utf-8"))
    assert list(found["sharing"]) == ["0", "1"]
    assert len(found["sharing"]["1"]["fused"]["mean"]) == 2
    assert "without" not in said[-1], "every step says its processor time"
    assert next(evidence.run(rows, [], place, stops)).startswith("conflict: up to date")
