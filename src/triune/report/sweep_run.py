"""A sweep's points side by side: every score of every model at each setting, over seeds where they are swept."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triune.errors import InputError
from triune.metrics.across import UNBOUNDED, across
from triune.report.across_run import BOUNDS, fitting, reference_of
from triune.report.labels import axis_scores, headline_scores, models_of, side_scores
from triune.report.sweep_folder import SEED, Swept, SweptRun
from triune.types import Better, Score


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the swept keys but the seed, and its runs."""

    values: Mapping[str, Any]
    runs: tuple[SweptRun, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """One score of one model at one setting, with its 95 % interval.

    Over seeds `n` counts seeds and the interval is Student's t; else both are the score's own. `seeds`: the single
    seeds' values.
    """

    model: str
    name: str
    unit: str
    better: Better
    value: float
    low: float
    high: float
    n: int
    seeds: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """What the page shows: the settings in the grid's order, each with what was found, by (model, score)."""

    swept: Swept
    settings: tuple[Setting, ...]
    found: tuple[Mapping[tuple[str, str], Found], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The swept keys but the seed."""
        return tuple(key for key in self.swept.keys if key != SEED)

    @property
    def over_seeds(self) -> bool:
        """Whether seeds were swept."""
        return SEED in self.swept.keys

    @property
    def models(self) -> tuple[str, ...]:
        """The models of all points."""
        runs = [point.run for point in self.swept.points]
        return tuple(dict.fromkeys(m for run in runs for few in (False, True) for m in models_of(run.scores, few)))

    @property
    def subject(self) -> str:
        """The model that the page is about: that which a run's report holds others against, else the last."""
        return reference_of(self.models) or self.models[-1]

    @property
    def headlines(self) -> tuple[str, ...]:
        """The scores of the table: the headline, the axes, and what is beside them."""
        first = self.swept.points[0].run
        names = (*headline_scores(first), *axis_scores(first), *side_scores(first))
        return tuple(name for name in dict.fromkeys(names) if any((self.subject, name) in row for row in self.found))


def side_by_side(swept: Swept) -> SweepRun:
    """Sum a sweep up. Raises InputError where a score has another unit or direction at another point."""
    _check_alike(swept)
    groups: dict[str, list[SweptRun]] = {}
    for point in swept.points:
        groups.setdefault(json.dumps(_without_seed(point.values), sort_keys=True), []).append(point)
    settings = tuple(Setting(_without_seed(runs[0].values), tuple(runs)) for runs in groups.values())
    own = _over_seeds if SEED in swept.keys else _of_one
    return SweepRun(swept, settings, tuple(own(setting.runs) for setting in settings))


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEED}


def _of_one(runs: Sequence[SweptRun]) -> dict[tuple[str, str], Found]:
    return {(row.model, row.score.name): _plain(row.model, row.score, row.score.n) for row in runs[0].run.scores}


def _plain(model: str, score: Score, n: int) -> Found:
    return Found(model, score.name, score.unit, score.better, score.value, score.low, score.high, n, {})


def _over_seeds(runs: Sequence[SweptRun]) -> dict[tuple[str, str], Found]:
    kinds = {(row.model, row.score.name): row.score for point in reversed(runs) for row in point.run.scores}
    tables = {
        int(point.values[SEED]): {(row.model, row.score.name): row.score.value for row in point.run.scores}
        for point in runs
    }
    found = {}
    for key, score in kinds.items():
        seeds = {seed: table.get(key, math.nan) for seed, table in tables.items()}
        values = tuple(seeds.values())
        mean = across(values, bounds=fitting(BOUNDS.get(score.unit, UNBOUNDED), values))
        found[key] = Found(
            key[0], score.name, score.unit, score.better, mean.value, mean.low, mean.high, mean.n, seeds
        )
    return found


def _check_alike(swept: Swept) -> None:
    kinds: dict[str, tuple[str, Better]] = {}
    for point in swept.points:
        for row in point.run.scores:
            kind = (row.score.unit, row.score.better)
            if kinds.setdefault(row.score.name, kind) != kind:
                raise InputError(
                    f"{point.run.folder}: the score {row.score.name!r} has unit and direction {kind}, but "
                    f"{kinds[row.score.name]} at another point; such points cannot stand in one table: leave one out"
                )
