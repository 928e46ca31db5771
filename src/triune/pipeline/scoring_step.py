"""The step scores: every file of a run's results that says what the models are worth, from what was saved of them."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triune.data.rows import load_rows
from triune.diagnose.drift import drift_scores, projection
from triune.errors import InputError
from triune.evaluation import scoring
from triune.evaluation.judged import Scored, used_for
from triune.evaluation.paired import compare_models
from triune.judges.judge import Judge
from triune.judges.rules import rule_judge
from triune.models.store import load_tensors
from triune.parsing import read_json
from triune.pipeline.calibration_scores import write_calibration
from triune.pipeline.exam import VERDICTS, Exam, exact_prompts, load_prompts
from triune.pipeline.judging import ACCOUNT, line_of, load_judgement
from triune.pipeline.model_scores import ModelScores, Sheet, model_scores
from triune.pipeline.verbs import Context, unless_finished
from triune.record import Step, identify, write_json, write_text
from triune.types import Agreement, BenchmarkPrompt, Sample

MAPPED = ("base", "mixture", "average", "sum", "fused")  # beside the experts, on the map of hidden states
SHOWN = 4  # answers a benchmark that the report shows side by side


def score(context: Context, observed: Mapping[str, Path], exam: Exam, out: Path) -> Path:
    """Scores, breakdown, verdicts, comparisons, drift and routing of all models, from what was saved of them.

    Judges' verdicts are taken from the step `judge_answers`, in the folder VERDICTS beside `out`.
    """
    inputs = {"data": identify(exam.data), **{name: identify(folder) for name, folder in observed.items()}}
    judged = out.parent / VERDICTS if exam.benchmarks else None
    inputs |= {VERDICTS: identify(judged)} if judged is not None else {}
    # The form of the files: a run that was scored before they were written is scored again, to the same numbers.
    settings = context.settings(models=list(observed), form=2, **exam.judging)
    step = Step(out, "score", settings, inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            prompts = load_prompts(exam.data)
            judgement = load_judgement(judged) if judged is not None else None
            sheet = Sheet(exam, prompts, _agreements(exact_prompts(prompts), context), judgement, context.seed)
            found = {name: model_scores(name, folder, sheet) for name, folder in observed.items()}
            if not any(own.scored for own in found.values()):
                raise InputError("nothing was measured; give the recipe an `evaluate` list")
            _write_scores(found, draft)
            scored = {name: own.scored for name, own in found.items()}
            write_json(draft / "comparisons.json", compare_models(scored, context.seed))
            _write_judges(scored, sheet, draft)
            _write_inside(context, observed, draft)
            write_calibration(observed, exam.data, exact_prompts(prompts), context.seed, draft)
            if prompts:
                write_json(draft / "samples.json", _side_by_side(observed, prompts, scored))
    return out


def _write_scores(found: Mapping[str, ModelScores], draft: Path) -> None:
    """scores.json, breakdown.json, verdicts.jsonl."""
    rows = [
        {**_row(name, own.score), "benchmark": own.benchmark, "corrected": own.corrected}
        for name, model in found.items()
        for own in model.scored
    ]
    write_json(draft / "scores.json", rows)
    groups = [{**_row(name, s), "group": group} for name, model in found.items() for group, s in model.groups]
    write_json(draft / "breakdown.json", groups)
    verdicts = [
        line_of(
            {
                "model": name,
                "benchmark": own.benchmark,
                "index": sample.index,
                "score": own.score.name,
                "judge": own.score.judge,
                "value": sample.value,
                "reason": sample.reason,
            }
        )
        for name, model in found.items()
        for own in model.scored
        for sample in own.samples
        if own.benchmark
    ]
    if verdicts:
        write_text(draft / "verdicts.jsonl", "".join(verdicts))


def _write_judges(scored: Mapping[str, Sequence[Scored]], sheet: Sheet, draft: Path) -> None:
    """judges.json: who decided, how well, and what; rules of the miniature world and the recipe's judges."""
    exact: dict[str, list[str]] = {}
    for name in exact_prompts(sheet.prompts):
        exact.setdefault(scoring.GENERATIVE[name].judge, []).append(name)
    told = [_told(rule_judge(rule), names) for rule, names in exact.items()]
    if sheet.judgement is not None:
        judges, used = sheet.judgement.judges, used_for(sheet.exam.benchmarks, sheet.judgement.judges)
        for name, judge in judges.items():
            without = {
                f"{model} {row.score.name}": row.uncorrected
                for model, rows in scored.items()
                for row in rows
                if row.uncorrected and row.score.name in used[name]
            }
            control = sheet.judgement.controls[name]
            told.append({**_told(judge, used[name]), "refusals_flagged": control, "uncorrected": without})
    if told:
        write_json(draft / "judges.json", told)


def _told(judge: Judge, used: Sequence[str]) -> dict[str, Any]:
    return {**{key: getattr(judge, key) for key in ACCOUNT}, "used_for": used}


def _row(model: str, found: Any) -> dict[str, Any]:
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    fields["score"] = fields.pop("name")
    return {"model": model, **fields}


def _agreements(prompts: Mapping[str, Sequence[BenchmarkPrompt]], context: Context) -> dict[str, Agreement | None]:
    if not prompts:
        return {}
    from triune.data.miniature.labelled import labelled_answers
    from triune.data.miniature.world import build_world

    miniature, seed = context.base.miniature, context.seed
    world = build_world(seed) if miniature is None else build_world(seed, miniature.world)
    labelled = labelled_answers(world, random.Random(seed))
    return {name: scoring.agreement(labelled, name) for name in prompts}


def _write_inside(context: Context, observed: Mapping[str, Path], draft: Path) -> None:
    seen = {n: f for n, f in observed.items() if (f / "states.safetensors").is_file() and not n.startswith("scarce:")}
    # One panel a model: a map of twenty models shows nothing.
    mapped = {name for name in seen if name in MAPPED or name.startswith("expert:")}
    if len(seen) > 1 and "base" in seen:
        states = {name: load_tensors(folder / "states.safetensors")["states"] for name, folder in seen.items()}
        axes = read_json(seen["base"] / "state_axes.json")
        rng = np.random.default_rng(context.seed)
        distances = [
            {"model": model, "axis": axis, "value": s.value, "low": s.low, "high": s.high, "n": s.n}
            for model, axis, s in drift_scores(states, axes, "base", rng)
        ]
        method, points = projection({name: states[name] for name in states if name in mapped}, axes, context.seed)
        what = "L2 distance between a model's and the base's last hidden state, averaged over a held-out row's tokens"
        write_json(draft / "drift.json", {"what": what, "distances": distances, "method": method, "points": points})
    fused = observed.get("fused")
    if fused is not None and (fused / "routing.json").is_file():
        write_json(draft / "routing.json", read_json(fused / "routing.json"))


def _side_by_side(
    observed: Mapping[str, Path], prompts: Mapping[str, Sequence[BenchmarkPrompt]], scored: Mapping[str, list[Scored]]
) -> list[Any]:
    """A few prompts of each benchmark with all answers, and whether each is good by the first score that has it."""
    answers = {name: load_rows(folder / "samples.jsonl", Sample) for name, folder in observed.items()}
    passed = {name: _passed(own) for name, own in scored.items()}
    shown, place = [], 0
    for benchmark, rows in prompts.items():
        for index in range(place, place + min(SHOWN, len(rows))):
            shown.append(
                {
                    "axis": benchmark,
                    "prompt": rows[index - place].prompt,
                    "answers": {name: found[index].response for name, found in answers.items()},
                    "verdicts": {name: own.get(index) for name, own in passed.items()},
                }
            )
        place += len(rows)
    return shown


def _passed(scored: Sequence[Scored]) -> dict[int, bool | None]:
    """By the sample's index."""
    found: dict[int, bool | None] = {}
    for own in scored:
        for sample in own.samples if own.benchmark else ():
            good = None if sample.value is None else (sample.value > 0.5) != (own.score.better == "lower")
            found.setdefault(sample.index, good)
    return found
