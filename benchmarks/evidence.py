"""The whole evidence run: every recipe that a claim rests on, its result file, and docs/claims.md.

    python benchmarks/evidence.py [--out runs/evidence] [--only NAME …] [--again]
    python benchmarks/evidence.py --spent NAME=FOLDER …

One table (`ROWS`). A row is run by `triune.pipeline.seeds.run`, which skips finished steps, so that an interrupted run
goes on where it stopped; a row whose runs and result file are up to date is skipped as a whole, unless asked again.
Every row is collected into docs/results, and the page made anew, as soon as it is finished. Wall and processor time
of each row are printed, and kept in docs/results/evidence.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import claims
from claims_files import RESULTS, SPENT
from rich.console import Console
from run_numbers import records

from triune.errors import InputError
from triune.pipeline import seeds
from triune.progress import Terminal
from triune.recipe import Recipe
from triune.recipe_file import load_recipe, to_yaml
from triune.record import digest, identify, write_json, write_text
from triune.report.across_folder import seed_folder

HERE = Path(__file__).parent
ROOT = HERE.parent
DONE = "collected.json"  # in a row's folder, written last: what was run, and what was collected from it
TABLES = "tables.md"  # there as well: what the collecting script printed


@dataclass(frozen=True, slots=True)
class Part:
    """One run of a row: its folder's name, its recipe, and what it overrides there."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Recipes over seeds, and the script (`SCRIPT TARGET FOLDERS…`) that makes a result file of their folders.

    `also` names earlier rows whose folders are collected as well; a row may have no parts of its own.
    """

    name: str
    script: str
    result: str
    parts: tuple[Part, ...] = ()
    also: tuple[str, ...] = ()


Runner = Callable[[Recipe, Path], Any]
Collect = Callable[[Row, Path, Sequence[Path]], str]  # writes the file; what it prints


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything goes."""

    out: Path
    results: Path = RESULTS
    page: Path = claims.PAGE


def sharing(part: float) -> Part:
    """A run with a part of the wording shared."""
    return Part(f"sharing-{part:g}", "recipes/conflict.yaml", (f"base.miniature.world.sharing={part:g}",))


# Bases of the large world by name: what the recipe's own is changed to. Ordered from small to large.
LADDER = {
    "0.7M": (128, 3, 384, 4, 2.5e-3),
    "2.1M": (192, 4, 576, 6, 2.0e-3),
    "5.6M": (288, 5, 864, 9, 1.7e-3),
}
SHAPE = ("hidden_size", "layers", "intermediate_size", "heads", "learning_rate")


def size(name: str) -> Part:
    """A run of the large world with a base of another size."""
    changed = tuple(f"base.miniature.{key}={value}" for key, value in zip(SHAPE, LADDER[name], strict=True))
    return Part(name, "recipes/miniature-large.yaml", ("seeds=[20,21,22]", *changed))


ROWS = (
    Row("h3fusion", "h3fusion_ablation.py", "h3fusion.json", (Part("run", "recipes/h3fusion-ablation.yaml"),)),
    Row(
        "h3fusion-real-tiny",
        "h3fusion_ablation.py",
        "h3fusion_real_tiny.json",
        (Part("run", "recipes/h3fusion-ablation-real-tiny.yaml"),),
    ),
    Row("trinityx", "trinityx_ablation.py", "trinityx.json", (Part("run", "recipes/trinityx-ablation.yaml"),)),
    Row("alignx", "alignx_ablation.py", "alignx.json", (Part("run", "recipes/alignx-ablation.yaml"),)),
    Row("alignx-collapse", "alignx_collapse.py", "alignx_collapse.json", also=("alignx",)),
    Row("conflict", "conflict.py", "conflict.json", tuple(map(sharing, (0, 0.25, 0.5, 0.75, 1)))),
    Row(
        "demo",
        "demo_seeds.py",
        "demo_seeds.json",
        (Part("small", "src/triune/recipes/miniature.yaml", ("seeds=[0,1,2,3,4]",)),),
    ),
    Row("sizes", "sizes.py", "sizes.json", tuple(map(size, LADDER))),
)


@dataclass(frozen=True, slots=True)
class Spent:
    """What the finished steps under some folders took; older records have no processor time, and are counted.

    `cpu_seconds` is of the steps that recorded it; `cpu_at_most` adds, for the others, wall time on all cores.
    """

    seconds: float
    cpu_seconds: float
    cpu_at_most: float
    steps: int
    steps_without_cpu: int

    def __str__(self) -> str:
        cpu = f"{self.cpu_seconds / 3600:.2f} h of processor time"
        if self.steps_without_cpu:
            cpu += f" without {self.steps_without_cpu} of {self.steps} steps, whose records do not say it"
            cpu += f" (at most {self.cpu_at_most / 3600:.2f} h with them)"
        return f"{self.seconds / 3600:.2f} h wall, {cpu}"


def spent(folders: Sequence[Path]) -> Spent:
    """The sum over every finished step; what other settings have replaced does not count."""
    found = records(folders)
    cpu = [record["cpu_seconds"] for record in found if "cpu_seconds" in record]
    rest = [record["seconds"] * record["machine"]["cores"] for record in found if "cpu_seconds" not in record]
    wall = sum(record["seconds"] for record in found)
    return Spent(round(wall, 3), round(sum(cpu), 3), round(sum(cpu) + sum(rest), 3), len(found), len(rest))


def recipes_of(row: Row) -> dict[str, Recipe]:
    """A row's recipes by part. Raises InputError as `load_recipe`."""
    return {part.name: load_recipe(ROOT / part.recipe, overrides=part.overrides) for part in row.parts}


def folders_of(row: Row, rows: Mapping[str, Row], out: Path) -> list[Path]:
    """The folders of the single runs that a row is collected from."""
    own = [
        seed_folder(out / row.name / part, seed) if seed is not None else out / row.name / part
        for part, recipe in recipes_of(row).items()
        for seed in (recipe.seeds or (None,))
    ]
    return [folder for name in row.also for folder in folders_of(rows[name], rows, out)] + own


def asked_for(row: Row, rows: Mapping[str, Row]) -> str:
    """The identity of what a row is made by: its recipes, those of the rows it also reads, its script."""
    runs = {name: to_yaml(recipe) for name, recipe in recipes_of(row).items()}
    return digest([runs, [asked_for(rows[name], rows) for name in row.also], identify(HERE / row.script)])


def up_to_date(row: Row, rows: Mapping[str, Row], place: Place) -> bool:
    """Whether the result file is the one that was collected here, from runs of the present recipes."""
    path, target = place.out / row.name / DONE, place.results / row.result
    if not path.is_file() or not target.is_file():
        return False
    return bool(json.loads(path.read_text(encoding="utf-8")) == stamp(row, rows, target))


def stamp(row: Row, rows: Mapping[str, Row], target: Path) -> dict[str, str]:
    """What DONE holds."""
    return {"asked": asked_for(row, rows), "result": identify(target)}


def by_script(row: Row, target: Path, folders: Sequence[Path]) -> str:
    """Collect by a row's own script, in a process of its own."""
    command = [sys.executable, str(HERE / row.script), str(target), *map(str, folders)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(f"{row.script} could not collect {row.name}:\n{found.stderr.strip()}")
    return found.stdout


def finish(row: Row, rows: Mapping[str, Row], place: Place, runner: Runner, collect: Collect) -> None:
    """Run what is not finished of a row, and collect it: the result file appears whole or not at all."""
    for name, recipe in recipes_of(row).items():
        runner(recipe, place.out / row.name / name)
    own, target = place.out / row.name, place.results / row.result
    own.mkdir(parents=True, exist_ok=True)
    draft = own / row.result
    printed = collect(row, draft, folders_of(row, rows, place.out))
    write_text(own / TABLES, printed)
    write_text(target, draft.read_text(encoding="utf-8"))
    draft.unlink()
    write_json(own / DONE, stamp(row, rows, target))


def run(
    rows: Sequence[Row],
    only: Sequence[str],
    place: Place,
    runner: Runner,
    collect: Collect = by_script,
    *,
    again: bool = False,
) -> Iterator[str]:
    """Bring the rows named in `only` (all without) up to date, and the page; yields what there is to say.

    Raises InputError before anything is run for an unknown name, and where a recipe cannot be read.
    """
    named = {row.name: row for row in rows}
    unknown = [name for name in only if name not in named]
    if unknown:
        raise InputError(f"no row {', '.join(unknown)}; known: {', '.join(named)}")
    chosen = [row for row in rows if row.name in (only or named)]
    for row in chosen:
        asked_for(row, named)
        missing = [name for name in row.also if name not in {c.name for c in chosen} and not _ran(named[name], place)]
        if missing:
            raise InputError(f"{row.name} also reads {', '.join(missing)}, not run yet; add it to --only")
    for row in chosen:
        if not again and up_to_date(row, named, place):
            yield f"{row.name}: up to date; {spent([place.out / row.name])}"
            continue
        finish(row, named, place, runner, collect)
        _account(rows, place)
        write_text(place.page, claims.page(place.results))
        yield f"{row.name}: {place.results / row.result} written; {spent([place.out / row.name])}"
    _account(rows, place)
    write_text(place.page, claims.page(place.results))
    yield f"{place.page} written; in total {spent([place.out / row.name for row in rows])}"


def _ran(row: Row, place: Place) -> bool:
    return (place.out / row.name / DONE).is_file()


def _account(rows: Sequence[Row], place: Place) -> None:
    """What each collected row took, for the page; rows that were collected on another machine stay as they are."""
    found = {
        row.name: {"result": row.result, **asdict(spent([place.out / row.name]))}
        for row in rows
        if row.parts and _ran(row, place)
    }
    _keep(place, found)


def count(rows: Sequence[Row], given: Sequence[str], place: Place) -> Iterator[str]:
    """Account for rows that were run elsewhere: NAME=FOLDER, all finished steps below it. Raises InputError."""
    named = {row.name: row for row in rows}
    for name, _, folder in (text.partition("=") for text in given):
        if name not in named or not folder or not Path(folder).is_dir():
            raise InputError(f"{name}={folder}; wanted NAME=FOLDER of {', '.join(named)} and a folder of runs")
        took = spent([Path(folder)])
        _keep(place, {name: {"result": named[name].result, **asdict(took)}})
        yield f"{name}: {took}"
    write_text(place.page, claims.page(place.results))


def _keep(place: Place, found: Mapping[str, Any]) -> None:
    path = place.results / SPENT
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    if found:
        write_json(path, {"rows": {**kept, **found}})


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(r.name for r in ROWS)}")
    parser.add_argument("--again", action="store_true", help="check and collect rows that are up to date, too")
    parser.add_argument("--spent", nargs="+", metavar="NAME=FOLDER", help="only count the time of runs made elsewhere")
    given = parser.parse_args()
    console = Console()
    runner = partial(seeds.run, progress=Terminal(console))
    place = Place(given.out.absolute())
    work = count(ROWS, given.spent, place) if given.spent else run(ROWS, given.only, place, runner, again=given.again)
    try:
        for news in work:
            console.print(news, highlight=False, markup=False, soft_wrap=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same call goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
