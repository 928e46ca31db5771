"""The verb diagnose: what is wrong with experts, measured on held-out rows. `collapse` is the first diagnosis."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triune.data.rows import load_rows
from triune.diagnose.collapse import BASE, Judged, Look, collapse_content, measure_collapse, open_folders
from triune.diagnose.probing import check_alike, hold
from triune.errors import InputError
from triune.evaluation import scoring
from triune.experts.adapters import CONFIG
from triune.fusion.opening import check_model, is_fused
from triune.method_settings import DiagnoseCollapse
from triune.metrics.intervals import Measure
from triune.models.loading import load_tokenizer
from triune.models.preflight import check_base
from triune.pipeline.evaluating import load_prompts, samples_folder
from triune.pipeline.variants import experts_of
from triune.pipeline.verbs import Context, identify_rows, unless_finished
from triune.progress import SILENT, Progress
from triune.recipe_file import load_recipe
from triune.record import RECORD, Step, identify, read_record, write_json
from triune.report.collapse_files import write_collapse
from triune.types import Example, Sample

PROVED = "the run's own held-out rows: no training prompt is among them, as the run proved"
UNCHECKED = "rows given by hand: that no model was trained on them cannot be checked here"
SCORED = Measure("score", "higher", "%", "the axes' own rules", scale=100.0)


@dataclass(frozen=True)
class Suspects:
    """What is looked at: experts by name (an axis's own by the axis's), a fused model or None, and held-out rows.

    `about` says where they are from, `held_out` how it is known that no model was trained on the rows. `samples` are
    folders of `triune.pipeline.evaluating.observe`, BASE's and every expert's, with answers to the data in `prompts`;
    empty where nothing was answered.
    """

    about: str
    experts: Mapping[str, Path]
    rows: Sequence[Example]
    fused: Path | None = None
    held_out: str = UNCHECKED
    samples: Mapping[str, Path] = field(default_factory=dict)
    prompts: Path | None = None


def diagnose_collapse(context: Context, suspects: Suspects, out: Path, settings: DiagnoseCollapse) -> Path:
    """Measure axis collapse (METHODS section 5); writes collapse.json, collapse.html and collapse.md.

    Raises InputError, before a model is loaded, for fewer than two experts or axes, an axis without expert or with
    fewer than `settings.least` prompts, an adapter of other base weights, another architecture or tokenizer than the
    base's, `fused` without a fused model, and rows that an expert's record says it was trained on; then as
    `measure_collapse`.
    """
    rows = _drawn(suspects.rows, settings.rows, context.seed)
    _check(context, suspects, rows, settings)
    said = {"about": suspects.about, "held_out": suspects.held_out}
    own = context.settings(collapse=settings.model_dump(), experts=list(suspects.experts), **said)
    step = Step(out, "diagnose", own, _inputs(context, suspects, rows))
    with unless_finished(step, context) as draft:
        if draft is not None:
            look = Look(settings.batch_size, settings.rank, settings.share, context.progress)
            found = measure_collapse(
                open_folders(context.base, suspects.experts, suspects.fused),
                rows,
                context.base,
                look,
                np.random.default_rng(context.seed),
                _judged(suspects, list(dict.fromkeys(row.axis for row in rows))),
            )
            write_json(draft / "collapse.json", {**said, **collapse_content(found)})
            write_collapse(draft)
    return out


def collapse_of_run(run: Path, fused: Path | None = None, progress: Progress = SILENT) -> tuple[Context, Suspects]:
    """The base, experts, fused model, held-out rows and answers of a finished run of one seed.

    `fused` takes the place of the run's own fused model. Raises InputError for a folder that is no such run.
    """
    recipe = load_recipe(run / "recipe.yaml") if (run / "recipe.yaml").is_file() else None
    if recipe is None:
        raise InputError(f"{run} is no run (recipe.yaml is missing); give the folder of `triune run` or `triune demo`")
    if recipe.seeds:
        raise InputError(f"{run} is a run over seeds; give one seed's folder, as {run}/seed-{recipe.seeds[0]}")
    read_record(run / "data")
    base = recipe.base
    if base.miniature is not None:
        base = base.model_copy(update={"path": str(run / "base")})
    experts = experts_of(recipe, run)
    samples = {
        BASE: samples_folder(run, "base"),
        **{name: samples_folder(run, f"expert:{name}") for name in experts},
    }
    answered = all((place / "samples.jsonl").is_file() for place in samples.values())
    own = run / "fused"
    found = Suspects(
        f"the run {run.resolve().name}",
        experts,
        _held_out(run / "data"),
        fused or (own if own.is_dir() else None),
        PROVED,
        samples if answered else {},
        run / "data",
    )
    return Context(base, recipe.seed, progress), found


def _held_out(data: Path) -> list[Example]:
    """An axis's test rows where the run has some, else its rows among the probes."""
    found = load_rows(data / "probes.jsonl", Example)
    rows: list[Example] = []
    for axis in _axes(found):
        tests = data / f"test.{axis}.jsonl"
        rows += load_rows(tests, Example) if tests.is_file() else [row for row in found if row.axis == axis]
    # A row without an answer (of a benchmark whose judge needs none) has no likelihood.
    return [row for row in rows if row.response.strip()]


def _drawn(rows: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most `most` rows an axis, in their order."""
    rng = random.Random(seed)
    kept: set[int] = set()
    for axis in dict.fromkeys(row.axis for row in rows):
        places = [place for place, row in enumerate(rows) if row.axis == axis]
        kept |= set(rng.sample(places, most) if len(places) > most else places)
    return [row for place, row in enumerate(rows) if place in kept]


def _inputs(context: Context, suspects: Suspects, rows: Sequence[Example]) -> dict[str, str]:
    named = {f"expert:{name}": folder for name, folder in suspects.experts.items()}
    named |= {f"samples:{name}": folder for name, folder in suspects.samples.items()}
    named |= {"fused": suspects.fused} if suspects.fused is not None else {}
    found = {name: identify(folder) for name, folder in named.items()}
    return {"base": identify(context.folder), "rows": identify_rows(rows), **found}


def _check(context: Context, suspects: Suspects, rows: Sequence[Example], settings: DiagnoseCollapse) -> None:
    experts = list(suspects.experts)
    if len(experts) < 2:
        raise InputError(f"{len(experts)} expert(s): {experts}; collapse is between experts, give two or more")
    prompts = {axis: len({row.prompt for row in rows if row.axis == axis}) for axis in _axes(rows)}
    few = [f"{axis} has {n}" for axis, n in prompts.items() if n < settings.least]
    if few:
        raise InputError(
            f"held-out prompts: {', '.join(few)}; the numbers need {settings.least} of every axis: give more rows (or "
            "lower least, and mind how wide the intervals are)"
        )
    strangers = [axis for axis in prompts if axis not in experts]
    if strangers or len(prompts) < 2:
        raise InputError(
            f"the rows are of {list(prompts)}, the experts are {experts}: give held-out rows of two axes or more, and "
            "an expert under each axis's name"
        )
    if suspects.fused is not None and not (suspects.fused.is_dir() and is_fused(suspects.fused)):
        raise InputError(f"{suspects.fused} holds no fused model; give the folder of `triune fuse` or `triune align`")
    _check_trained(suspects, rows)
    _check_models(context, suspects, rows)


def _axes(rows: Sequence[Example]) -> Iterator[str]:
    yield from dict.fromkeys(row.axis for row in rows)


def _check_trained(suspects: Suspects, rows: Sequence[Example]) -> None:
    """An expert's record holds the identity of its training rows, which tells the same rows; not some of them."""
    given = {axis: identify_rows([row for row in suspects.rows if row.axis == axis]) for axis in _axes(rows)}
    for name, folder in suspects.experts.items():
        record = read_record(folder) if (folder / RECORD).is_file() else {}
        trained = dict(record.get("inputs", {})).get("rows")
        same = [axis for axis, identity in given.items() if identity == trained]
        if same:
            raise InputError(
                f"the rows of {same[0]!r} are those that {name!r} was trained on ({folder / RECORD} says so); give "
                "held-out ones"
            )


def _check_models(context: Context, suspects: Suspects, rows: Sequence[Example]) -> None:
    """Every folder holds a model of this base, whose tokenizer reads the rows as the base's does."""
    facts = check_base(context.folder)
    wanted = hold(load_tokenizer(facts.folder), rows, context.base)
    given = {**suspects.experts, **({"fused": suspects.fused} if suspects.fused is not None else {})}
    for name, folder in given.items():
        check_model(folder, context.base)
        if (folder / CONFIG).is_file():
            continue  # an adapter; it has the base's tokenizer
        if not is_fused(folder):
            own = check_base(folder, scan=False)
            shapes = [(f.model_type, f.n_layers, f.hidden_size) for f in (own, facts)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{name!r} is a {_told(shapes[0])}, the base a {_told(shapes[1])}; give experts of this base"
                )
        check_alike(name, hold(load_tokenizer(folder), rows, context.base), wanted)


def _told(shape: tuple[str, int, int]) -> str:
    return f"{shape[0]} of {shape[1]} layers and width {shape[2]}"


def _judged(suspects: Suspects, axes: Sequence[str]) -> Judged | None:
    """The axes' scores of saved answers, where every axis has a benchmark of its own name that is better higher."""
    if suspects.prompts is None or not suspects.samples:
        return None
    prompts = {axis: rows for axis, rows in load_prompts(suspects.prompts).items() if axis in axes}
    if len(prompts) < len(axes) or any(scoring.GENERATIVE[axis].measure.better != "higher" for axis in axes):
        return None
    verdicts: dict[str, dict[str, Any]] = {}
    for name, folder in suspects.samples.items():
        answers = load_rows(folder / "samples.jsonl", Sample)
        verdicts[name] = {
            axis: scoring.verdicts(
                scoring.GENERATIVE[axis], prompts[axis], [own for own in answers if own.benchmark == axis]
            )
            for axis in axes
        }
    before = verdicts.pop(BASE)
    return Judged(SCORED, before, verdicts)
