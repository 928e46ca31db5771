"""All scores of one model from what was saved of it: rules, judges' verdicts, likelihoods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triune.data.rows import load_rows
from triune.evaluation import scoring
from triune.evaluation.answering import read_unanswered
from triune.evaluation.judged import SampleValue, Scored, composite, judged_scores
from triune.metrics.choice import preference_correct
from triune.parsing import read_json
from triune.pipeline.exam import Exam, exact_prompts
from triune.pipeline.judging import Judgement
from triune.types import Agreement, BenchmarkPrompt, Example, Preference, Question, Sample, Score


@dataclass(frozen=True)
class Sheet:
    """What every model's scores are made with: the exam, its prompts, the rules' agreement, the judges' verdicts."""

    exam: Exam
    prompts: Mapping[str, list[BenchmarkPrompt]]
    agreements: Mapping[str, Agreement | None]
    judgement: Judgement | None
    seed: int


@dataclass(frozen=True)
class ModelScores:
    """A model's scores, in the table's order, and the same by phrasing or category."""

    scored: list[Scored]
    groups: list[tuple[str, Score]]


def model_scores(name: str, folder: Path, sheet: Sheet) -> ModelScores:
    """The scores of one model, from the folder that `observe` wrote."""
    # One generator a model: a score does not depend on which other models are in the table.
    rng = np.random.default_rng(sheet.seed)
    samples = load_rows(folder / "samples.jsonl", Sample) if sheet.prompts else []
    exact, groups = _exact(folder, sheet, samples, rng)
    judged, by_category = _judged(name, sheet, samples)
    return ModelScores([*exact, *judged, *_likelihoods(folder, sheet.exam.data, rng)], [*groups, *by_category])


def _exact(
    folder: Path, sheet: Sheet, samples: Sequence[Sample], rng: np.random.Generator
) -> tuple[list[Scored], list[tuple[str, Score]]]:
    prompts = exact_prompts(sheet.prompts)
    if not prompts:
        return [], []
    unanswered = read_unanswered(folder)
    scores, groups = scoring.generative_scores(prompts, samples, sheet.agreements, rng, unanswered)
    scored = []
    for score in scores:
        if score.name not in prompts:  # the mean of the axes
            scored.append(Scored(score))
            continue
        rule = scoring.GENERATIVE[score.name]
        own = [sample for sample in samples if sample.benchmark == score.name]
        verdicts = scoring.decisions(rule, prompts[score.name], own, unanswered)
        rows = zip(own, verdicts, strict=True)
        values = tuple(SampleValue(sample.index, sample.prompt, v.value, v.reason) for sample, v in rows)
        scored.append(Scored(score, score.name, values))
    return scored, groups


def _judged(name: str, sheet: Sheet, samples: Sequence[Sample]) -> tuple[list[Scored], list[tuple[str, Score]]]:
    if sheet.judgement is None:
        return [], []
    rng = np.random.default_rng((sheet.seed, 2))  # its own: the other scores do not depend on these
    found: dict[str, list[Scored]] = {}
    groups: list[tuple[str, Score]] = []
    for own in sheet.exam.benchmarks:
        answered = sheet.judgement.answered(name, own, sheet.prompts[own.called], samples)
        found[own.called], by_category = judged_scores(own, sheet.judgement.judges, answered, rng)
        groups += by_category
    whole = composite(sheet.exam.benchmarks, found)
    return [*(row for rows in found.values() for row in rows), *([] if whole is None else [Scored(whole)])], groups


def _likelihoods(folder: Path, data: Path, rng: np.random.Generator) -> list[Scored]:
    found = read_json(folder / "likelihoods.json")
    scored: list[Scored] = []
    if "nll" in found:
        clusters = {a: [r.prompt for r in load_rows(data / f"test.{a}.jsonl", Example)] for a in found["nll"]}
        scores = scoring.nll_scores(found["nll"], clusters, rng)
        both = zip(scores, found["nll"].items(), strict=True)
        scored += [_by_prompt(score, values, clusters[axis], scale=1.0) for score, (axis, values) in both]
    if "preference" in found:
        pairs = load_rows(data / "preference.jsonl", Preference)
        chosen, rejected = found["preference"]
        score = scoring.preference_score(chosen, rejected, pairs, rng)
        scored.append(_by_prompt(score, preference_correct(chosen, rejected).tolist(), [own.prompt for own in pairs]))
    choices = {name: found[name] for name in ("mc1", "mc2") if name in found}
    questions = {name: load_rows(data / f"{name}.jsonl", Question) for name in choices}
    for score in scoring.choice_scores(choices, questions, rng):
        own = questions[score.name]
        values = scoring.choice_values(score.name, choices[score.name], own)
        scored.append(_by_prompt(score, values, [question.prompt for question in own]))
    return scored


def _by_prompt(score: Score, values: Sequence[Any], prompts: Sequence[str], scale: float = 100.0) -> Scored:
    rows = enumerate(zip(prompts, values, strict=True))
    return Scored(score, samples=tuple(SampleValue(i, prompt, value) for i, (prompt, value) in rows), scale=scale)
