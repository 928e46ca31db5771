"""Calibration of every model of a table, from what `observe` saved: calibration.json and reliability.json."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triune.data.rows import load_rows
from triune.evaluation import scoring
from triune.evaluation.calibration import (
    Outcomes,
    calibration_rows,
    choice_outcomes,
    exact_outcomes,
    group_rows,
    misrouting_row,
    reliability_row,
    routing_outcomes,
    step_function,
)
from triune.models.store import load_tensors
from triune.parsing import read_json
from triune.pipeline.observed_routing import GROUPED, NAMES, ROUTED
from triune.record import write_json
from triune.types import BenchmarkPrompt, Question, Sample

EXACT = "exact match"
JUDGE = "exact"  # whose benchmarks have one right answer


def write_calibration(
    observed: Mapping[str, Path],
    data: Path,
    prompts: Mapping[str, Sequence[BenchmarkPrompt]],
    seed: int,
    draft: Path,
) -> None:
    """Routing and answers, each model's rows beside its name; nothing is written where nothing was saved.

    A row's `group` names the prompts that its routing is of; "" are the test rows.
    """
    rows, diagrams, rng = [], [], np.random.default_rng(seed)
    for model, folder in observed.items():
        isotonic = folder / "isotonic.json"
        fitted = step_function(read_json(isotonic)) if isotonic.is_file() else None
        for found in (*_routing(folder), *_answers(folder, data, prompts)):
            rows += [{"model": model, "group": "", **row} for row in calibration_rows(found, rng, fitted)]
            diagrams.append({"model": model, **reliability_row(found)})
        # One generator a model, apart from that of the rows above, whose draws do not depend on these.
        rows += [{"model": model, **row} for row in _by_group(folder, np.random.default_rng((seed, 1)))]
    if rows:
        write_json(draft / "calibration.json", rows)
        write_json(draft / "reliability.json", diagrams)


def _routing(folder: Path) -> list[Outcomes]:
    if not (folder / ROUTED).is_file():
        return []
    tensors = load_tensors(folder / ROUTED)
    return routing_outcomes(tensors["probs"], tensors["sample"], tensors["axis"])


def _by_group(folder: Path, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Misrouting of the test rows; then misrouting and calibration of every group of prompts."""
    if (folder / ROUTED).is_file():
        tensors = load_tensors(folder / ROUTED)
        yield {"group": "", **misrouting_row(tensors["probs"], tensors["sample"], tensors["axis"], rng)}
    if (folder / GROUPED).is_file():
        tensors = load_tensors(folder / GROUPED)
        probs, sample, axis = (tensors[name] for name in ("probs", "sample", "axis"))
        for index, name in enumerate(read_json(folder / NAMES)):
            inside = tensors["group"][sample] == index
            for row in group_rows(probs[:, inside], sample[inside], axis, rng):
                yield {"group": name, **row}


def _answers(folder: Path, data: Path, prompts: Mapping[str, Sequence[BenchmarkPrompt]]) -> Iterator[Outcomes]:
    found = read_json(folder / "likelihoods.json")
    if "mc1" in found:
        choices = choice_outcomes(found["mc1"], load_rows(data / "mc1.jsonl", Question), "multiple choice (mc1)")
        if choices is not None:
            yield choices
    if "answers" in found:
        samples = load_rows(folder / "samples.jsonl", Sample)
        exact = exact_outcomes(found["answers"], _verdicts(samples, prompts), EXACT)
        if exact is not None:
            yield exact


def _verdicts(samples: Sequence[Sample], prompts: Mapping[str, Sequence[BenchmarkPrompt]]) -> list[float | None]:
    """Whether each answer is right, by exact match; None where the benchmark has no one right answer."""
    values: dict[int, float | None] = {}
    for name, rows in prompts.items():
        rule = scoring.GENERATIVE[name]
        if rule.judge == JUDGE:
            places = [place for place, sample in enumerate(samples) if sample.benchmark == name]
            own = scoring.verdicts(rule, rows, [samples[place] for place in places])
            values |= dict(zip(places, own, strict=True))
    return [values.get(place) for place in range(len(samples))]
