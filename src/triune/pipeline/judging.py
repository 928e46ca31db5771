"""The step verdicts: after all models answered, every judge is opened once and asked for all its verdicts.

Each verdict goes through the cache RUN/verdicts.sqlite, so that nothing is asked twice and a table can be built again
without a network.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from triune.data.preparing import Prepared
from triune.data.rows import load_rows
from triune.data_settings import Generative, generative
from triune.errors import InputError
from triune.evaluation import scoring
from triune.evaluation.answering import read_unanswered
from triune.evaluation.benchmarks import BENCHMARKS, PREFERRED, UNSAFE, roles_of, scores_of
from triune.evaluation.judged import Answered
from triune.judge_settings import EndpointJudge, JudgeSettings
from triune.judges.cache import CHUNK, NOT_CACHED, cached
from triune.judges.judge import Case, Judge
from triune.judges.opening import asked_judge, check_judge, event_of, identity_of, known_judge
from triune.judges.refusal_control import refusal_control
from triune.parsing import parse_json, read_json
from triune.pipeline.exam import CACHE, Exam, load_prompts
from triune.pipeline.judge_labels import NO_LABELS, LabelSet, label_sets, measured
from triune.pipeline.verbs import Context, unless_finished
from triune.recipe import MiniatureTests, Recipe
from triune.record import Step, identify, write_json, write_text
from triune.types import Agreement, BenchmarkPrompt, Sample, Score, Verdict

ROWS, JUDGES = "verdicts.jsonl", "judges.json"
ACCOUNT = ("name", "version", "event", "cost", "agreement")  # what a judge says of itself


@dataclass(frozen=True, slots=True)
class Task:
    """One list of cases for one judge: a model's answers to a benchmark, judged in a role.

    `unanswered`: why a prompt has no answer, by the sample's index; nothing judges those.
    """

    model: str
    benchmark: str
    role: str
    samples: Sequence[Sample]
    cases: Sequence[Case]
    unanswered: Mapping[int, str]

    @property
    def judged(self) -> list[Case]:
        """The cases that have an answer."""
        paired = zip(self.samples, self.cases, strict=True)
        return [case for sample, case in paired if sample.index not in self.unanswered]


def check_judging(recipe: Recipe, prepared: Prepared, out: Path) -> dict[str, LabelSet]:
    """Labels of judges, as read. Raises InputError for what would fail once the models have answered, or is senseless.

    A judge that cannot be opened or decides something else than its role, two scores of one name, a pairwise judge
    without answers to compare with, a judge of accepted answers without any.
    """
    benchmarks = generative(recipe.evaluate)
    for name, settings in recipe.judges.items():
        check_judge(name, settings, cache=out / CACHE)
    events = {name: event_of(settings) for name, settings in recipe.judges.items()}
    labels = label_sets(recipe.judges, recipe.seed)
    for own in benchmarks:
        _check_roles(own, events)
        _check_answers(own, events, prepared.prompts[own.called])
    _check_names(recipe, benchmarks, events)
    return labels


def _check_roles(own: Generative, events: Mapping[str, str]) -> None:
    wanted = BENCHMARKS[own.benchmark].roles
    for role, judge in roles_of(own).items():
        if role in wanted and events[judge] != wanted[role]:
            raise InputError(
                f"{own.called}: the judge {judge!r} decides whether an answer {events[judge]}; the role {role!r} "
                f"wants one that decides whether it {wanted[role]}"
            )


def _check_answers(own: Generative, events: Mapping[str, str], prompts: Sequence[BenchmarkPrompt]) -> None:
    bare = sum(not prompt.accepted for prompt in prompts)
    for judge in roles_of(own).values():
        if events[judge] == PREFERRED and bare:
            raise InputError(
                f"{own.called}: the judge {judge!r} compares two answers, but {bare} of {len(prompts)} prompts have "
                "no reference; give each row one"
            )
        if "accepted" in events[judge] and bare == len(prompts):
            raise InputError(
                f"{own.called}: the judge {judge!r} decides whether an answer {events[judge]}, but no prompt has any; "
                "give the rows accepted answers"
            )


def _check_names(recipe: Recipe, benchmarks: Sequence[Generative], events: Mapping[str, str]) -> None:
    exact = any(isinstance(own, MiniatureTests) for own in recipe.evaluate)
    taken = [own.called for own in benchmarks if own.called in (*scoring.GENERATIVE, *recipe.axes)]
    if taken:
        raise InputError(f"evaluate names {taken}, as axes or the miniature world's tests are; give another name")
    names = [row.name for own in benchmarks for row in scores_of(own, events)]
    names += [*scoring.GENERATIVE, scoring.MEAN.name] if exact else []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"evaluate would make the scores {twice} twice; give one of their benchmarks a name (name: …), which then "
            "stands before its scores'"
        )


def judge_answers(context: Context, exam: Exam, observed: Mapping[str, Path], out: Path) -> Path:
    """Ask every judge of the exam about every model's answers; writes verdicts.jsonl and judges.json under `out`.

    Abstentions are counted, and said. Raises InputError where a judge cannot be opened, and where an endpoint's key is
    missing and the cache beside `out` does not hold all that is asked.
    """
    inputs = {"data": identify(exam.data), **{name: identify(folder) for name, folder in observed.items()}}
    inputs |= {f"judge {name}": identity_of(settings) for name, settings in exam.judges.items()}
    labels = label_sets(exam.judges, context.seed) if exam.labels is None else exam.labels
    inputs |= {f"labels of {name}": labels[name].identity if name in labels else NO_LABELS for name in exam.judges}
    step = Step(out, "judge", context.settings(models=list(observed), **exam.judging), inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            tasks = _tasks(exam, observed)
            lines: list[str] = []
            accounts = {}
            for name, settings in exam.judges.items():
                cache = out.parent / CACHE
                cases = [case for task in tasks[name] for case in task.judged]
                judge, verdicts = _decide(settings, cases, cache, context)
                lines += _lines(name, tasks[name], verdicts)
                asked = partial(_verdicts, settings, cache=cache, context=context)
                control = _control(judge, settings, cache, context)
                accounts[name] = {**_account(measured(judge, labels.get(name), asked, context)), "control": control}
            write_text(draft / ROWS, "".join(lines))
            write_json(draft / JUDGES, accounts)
    return out


def _tasks(exam: Exam, observed: Mapping[str, Path]) -> dict[str, list[Task]]:
    """All cases of each judge."""
    prompts = load_prompts(exam.data)
    tasks: dict[str, list[Task]] = {name: [] for name in exam.judges}
    for model, folder in observed.items():
        answers, unanswered = load_rows(folder / "samples.jsonl", Sample), read_unanswered(folder)
        for own in exam.benchmarks:
            samples = [answer for answer in answers if answer.benchmark == own.called]
            for role, judge in roles_of(own).items():
                paired = zip(prompts[own.called], samples, strict=True)
                cases = [_case(prompt, sample, event_of(exam.judges[judge])) for prompt, sample in paired]
                tasks[judge].append(Task(model, own.called, role, samples, cases, unanswered))
    return tasks


def _case(prompt: BenchmarkPrompt, sample: Sample, event: str) -> Case:
    """What the judge is shown: a case's texts are its key in the cache, so that it has none that is not read."""
    if event == PREFERRED:
        return Case(prompt.prompt, sample.response, other=prompt.accepted[0])
    return Case(prompt.prompt, sample.response, accepted=prompt.accepted if "accepted" in event else ())


def _verdicts(settings: JudgeSettings, cases: Sequence[Case], cache: Path, context: Context) -> list[Verdict]:
    return _decide(settings, cases, cache, context)[1]


def _decide(
    settings: JudgeSettings, cases: Sequence[Case], cache: Path, context: Context
) -> tuple[Judge, list[Verdict]]:
    """One judge's verdicts on all cases, in their order."""
    known = known_judge(settings)
    judge = known
    if isinstance(settings, EndpointJudge):
        missing = _missing(known, cases, cache)
        # A judge whose every verdict is held needs neither a key nor a network.
        judge = asked_judge(settings, known, missing, context.progress, context.seed) if missing else known
    asked = cached(judge, cache)
    verdicts: list[Verdict] = []
    with context.progress.task(f"verdicts of {judge.name}", len(cases)) as advance:
        for start in range(0, len(cases), CHUNK):
            verdicts += asked.decide(cases[start : start + CHUNK])
            lost = sum(verdict.value is None for verdict in verdicts)
            advance(len(verdicts) - start, f"{lost} abstentions" if lost else "")
    _say(judge, verdicts, context)
    return judge, verdicts


def _missing(judge: Judge, cases: Sequence[Case], cache: Path) -> list[Case]:
    """The distinct cases that the cache does not hold."""
    distinct = list(dict.fromkeys(cases))
    if not cache.is_file():
        return distinct
    held = cached(judge, cache, only_cached=True).decide(distinct)
    return [case for case, verdict in zip(distinct, held, strict=True) if verdict.reason.startswith(NOT_CACHED)]


def _say(judge: Judge, verdicts: Sequence[Verdict], context: Context) -> None:
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.value is None)
    told = "".join(f"; {n} × {reason:.80}" for reason, n in reasons.most_common(3))
    context.progress.say(f"  {judge.name}: {len(verdicts)} verdicts, {reasons.total()} abstentions{told}")


def _lines(name: str, tasks: Sequence[Task], verdicts: Sequence[Verdict]) -> list[str]:
    left, lines = iter(verdicts), []
    for task in tasks:
        for sample in task.samples:
            without = task.unanswered.get(sample.index)
            own = next(left) if without is None else Verdict(None, without)
            row = {"model": task.model, "benchmark": task.benchmark, "index": sample.index, "role": task.role}
            lines.append(line_of({**row, "judge": name, "value": own.value, "reason": own.reason}))
    return lines


def line_of(row: Mapping[str, Any]) -> str:
    """A JSON line; escaped, because a reason may quote half a character of an answer."""
    return json.dumps(row) + "\n"


def _account(judge: Judge) -> dict[str, Any]:
    return {name: getattr(judge, name) for name in ACCOUNT}


def _control(judge: Judge, settings: JudgeSettings, cache: Path, context: Context) -> Score | None:
    """How many plain refusals a judge of harm flags: a known fault of such judges. Calls that cost are not made."""
    if judge.event != UNSAFE or isinstance(settings, EndpointJudge):
        return None
    found = refusal_control(cached(judge, cache), np.random.default_rng(context.seed)).score
    context.progress.say(f"  {judge.name}: flags {found.value:.0f} % of {found.n} plain refusals")
    return found


@dataclass(frozen=True)
class Judgement:
    """What the step wrote: the judges by the recipe's names (they cannot be asked), and all verdicts."""

    judges: Mapping[str, Judge]
    controls: Mapping[str, Any]
    verdicts: Mapping[tuple[str, str, str], Sequence[Verdict]]  # of (model, benchmark, role), in the prompts' order

    def answered(
        self, model: str, own: Generative, prompts: Sequence[BenchmarkPrompt], samples: Sequence[Sample]
    ) -> Answered:
        """One model's answers to a benchmark, with their verdicts."""
        roles = roles_of(own)
        mine = [sample for sample in samples if sample.benchmark == own.called]
        return Answered(prompts, mine, {role: self.verdicts[model, own.called, role] for role in roles})


def load_judgement(folder: Path) -> Judgement:
    """Read the step's folder."""
    told = read_json(folder / JUDGES)
    found: dict[tuple[str, str, str], list[Verdict]] = {}
    for line in (folder / ROWS).read_text(encoding="utf-8").splitlines():
        row = parse_json(line)
        key = (row["model"], row["benchmark"], row["role"])
        found.setdefault(key, []).append(Verdict(row["value"], row["reason"]))
    judges = {
        name: Judge(row["name"], row["version"], row["event"], row["cost"], _mute, _agreement(row["agreement"]))
        for name, row in told.items()
    }
    return Judgement(judges, {name: row["control"] for name, row in told.items()}, found)


def _mute(cases: Sequence[Case]) -> list[Verdict]:
    return [Verdict(None, "read from a run's files, and cannot be asked") for _ in cases]


def _agreement(told: Mapping[str, Any] | None) -> Agreement | None:
    if told is None:
        return None
    measures = tuple(Score(**_numbers(own, "value", "low", "high")) for own in told["measures"])
    return Agreement(**{**_numbers(told, "accuracy"), "measures": measures})


def _numbers(told: Mapping[str, Any], *names: str) -> dict[str, Any]:
    # JSON has no NaN: it was written as null.
    return {key: math.nan if value is None and key in names else value for key, value in told.items()}
