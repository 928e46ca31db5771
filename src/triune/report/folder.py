"""A finished run folder, read into a `Run`. Only scores.json must be there."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, get_args

from triune.errors import InputError
from triune.report import fields
from triune.report.calibration_parts import parse_calibration, parse_reliability
from triune.report.parts import (
    parse_curves,
    parse_drift,
    parse_models,
    parse_recipe,
    parse_routing,
    parse_samples,
    parse_timings,
    parse_weights,
)
from triune.report.run import ModelScore, Recipe, Run
from triune.types import Agreement, Better, Score

T = TypeVar("T")

SCORES = "scores.json"


def load_run(folder: Path) -> Run:
    """Read what a finished run wrote; a missing file other than scores.json leaves its part None.

    Raises:
        InputError: the folder or its scores.json is missing, or a file that is there is not what it should be.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that `triune run` or `triune demo` wrote.")
    path = folder / SCORES
    if not path.is_file():
        raise InputError(
            f"{folder} has no {SCORES}, so there is nothing to report; finish the run first (`triune run`), "
            "or give the folder that holds it."
        )
    scores = parse_scores(fields.read_json(path), str(path))
    if not scores:
        raise InputError(f"{path} is an empty list; a report needs at least one score: run `triune evaluate`.")
    return Run(
        folder=folder,
        scores=scores,
        breakdown=_optional(folder, "breakdown.json", parse_scores),
        models=_optional(folder, "models.json", parse_models),
        timings=_optional(folder, "timings.json", parse_timings),
        curves=_optional(folder, "curves.json", parse_curves),
        routing=_optional(folder, "routing.json", parse_routing),
        weights=_optional(folder, "fusion.json", parse_weights),
        calibration=_optional(folder, "calibration.json", parse_calibration),
        reliability=_optional(folder, "reliability.json", parse_reliability),
        drift=_optional(folder, "drift.json", parse_drift),
        samples=_optional(folder, "samples.json", parse_samples),
        recipe=_recipe(folder / "recipe.yaml"),
    )


def _optional(folder: Path, name: str, parse: Callable[[object, str], T]) -> T | None:
    path = folder / name
    return parse(fields.read_json(path), str(path)) if path.is_file() else None


def _recipe(path: Path) -> Recipe | None:
    return parse_recipe(path) if path.is_file() else None


def parse_scores(value: object, where: str) -> tuple[ModelScore, ...]:
    """The rows of scores.json or breakdown.json, in file order.

    Raises:
        InputError: a field is missing or wrong, a row stands twice, or one score has two units or directions.
    """
    rows = tuple(
        _score(fields.mapping(row, f"{where} row {index}"), f"{where} row {index}")
        for index, row in enumerate(fields.listing(value, where))
    )
    seen: set[tuple[str, str, str]] = set()
    kinds: dict[str, tuple[str, str]] = {}
    for row in rows:
        key = (row.model, row.score.name, row.group)
        if key in seen:
            raise InputError(f"{where} has two rows for {key}; a score stands once: remove one.")
        seen.add(key)
        kind = (row.score.unit, row.score.better)
        if kinds.setdefault(row.score.name, kind) != kind:
            raise InputError(
                f"{where}: the score {row.score.name!r} has unit and direction {kind} for {row.model!r} but "
                f"{kinds[row.score.name]} before; one score has one unit and one direction: rename one."
            )
    return rows


def _score(row: Mapping[str, object], where: str) -> ModelScore:
    better = fields.text(row, "better", where)
    if better not in get_args(Better):
        raise fields.fail(f"better in {where}", better, ", ".join(get_args(Better)))
    value, low, high = (fields.number(row, key, where) for key in ("value", "low", "high"))
    n = fields.whole(row, "n", where)
    _check_interval(value, low, high, n, where)
    score = Score(
        name=fields.text(row, "score", where),
        value=value,
        n=n,
        low=low,
        high=high,
        better=better,  # type: ignore[arg-type]  # checked above
        unit=fields.text(row, "unit", where),
        judge=fields.text(row, "judge", where),
        agreement=_agreement(row.get("agreement"), where),
        abstained=fields.maybe_whole(row, "abstained", where) or 0,
    )
    return ModelScore(fields.text(row, "model", where), score, fields.text(row, "group", where, default=""))


def _check_interval(value: float, low: float, high: float, n: int, where: str) -> None:
    """A measured score has a number and both ends of its interval; a score of nothing has none of the three."""
    bare = [math.isnan(x) for x in (value, low, high)]
    if n == 0 and not all(bare):
        raise InputError(f"{where} has n = 0 but value {value}; a score of nothing is null, never a number.")
    if n > 0 and any(bare):
        raise InputError(
            f"{where} has n = {n} but value, low, high = {value}, {low}, {high}; a measured score has all three."
        )
    if low > high:
        raise InputError(f"{where} has low {low} above high {high}; exchange them.")


def _agreement(value: object, where: str) -> Agreement | None:
    if value is None:
        return None
    place = f"agreement in {where}"
    row = fields.mapping(value, place)
    return Agreement(
        fields.number(row, "accuracy", place),
        fields.whole(row, "n", place),
        fields.text(row, "labels", place),
    )
