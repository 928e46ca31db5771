"""How far a judge agrees with labelled answers that a recipe gives it: measured in the run, by asking it."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from triune.data.labelled import LabelledAnswer, read_labelled
from triune.errors import InputError
from triune.evaluation.benchmarks import INFORMATIVE, PREFERRED, REFUSES, TRUTHFUL, UNSAFE
from triune.judge_settings import JudgeSettings, Labels
from triune.judges.judge import Case, Judge
from triune.judges.opening import event_of
from triune.metrics.agreement import Labelled, judge_agreement
from triune.pipeline.verbs import Context
from triune.record import digest
from triune.types import Verdict

# What a format's label 1 says; a format that is not here says what its file does (a user's own rows do).
EVENTS = {
    "gptfuzz": (UNSAFE,),
    "pku_saferlhf": (UNSAFE,),
    "beavertails": (UNSAFE,),
    "do_not_answer": (UNSAFE,),
    "xstest_harmless": (UNSAFE,),
    "do_not_answer_actions": (REFUSES,),
    "xstest": (REFUSES,),
    "truthfulqa": (TRUTHFUL, INFORMATIVE),
    "alpaca_eval": (PREFERRED,),
}


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labelled answers as they were read: those that are asked about, their source in words, the whole's hash."""

    rows: Sequence[LabelledAnswer]
    source: str
    identity: str


NO_LABELS = digest("")  # the identity where a judge is given none


def label_sets(judges: Mapping[str, JudgeSettings], seed: int) -> dict[str, LabelSet]:
    """The labelled answers of the judges that are given some, each file read once.

    Raises InputError as `read_labels`, and says which judge it is of.
    """
    found = {}
    for name, settings in judges.items():
        if settings.labels is not None:
            try:
                found[name] = read_labels(settings.labels, event_of(settings), seed)
            except InputError as error:
                raise InputError(f"judges.{name}.labels: {error}") from error
    return found


def read_labels(labels: Labels, event: str, seed: int) -> LabelSet:
    """The answers, in the file's order; ties (a label of ½) are left out, because a verdict is right or wrong.

    Raises InputError for labels of another event than the judge's, as `read_labelled`, and for fewer than two.
    """
    known = EVENTS.get(labels.format, (event,))
    if event not in known:
        raise InputError(
            f"labels of the format {labels.format!r} say whether an answer {' or '.join(known)}, the judge decides "
            f"whether it {event}; give labels of that"
        )
    if "accepted" in event:
        raise InputError(f"labelled answers come without accepted ones, and the judge decides whether one {event}")
    whole = read_labelled(labels.source, labels.format).items
    rows = [row for row in whole if row.label in (0.0, 1.0)]
    if labels.limit is not None and len(rows) > labels.limit:
        rows = [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), labels.limit))]
    if len(rows) < 2:
        raise InputError(f"{labels.source} has {len(rows)} labelled answers; an agreement wants two at least")
    return LabelSet(rows, f"{labels.source} ({labels.format})", digest(repr(whole)))


def measured(
    judge: Judge, labels: LabelSet | None, decide: Callable[[Sequence[Case]], list[Verdict]], context: Context
) -> Judge:
    """The judge with its agreement on the labels, asked through `decide`; as it is where there are none."""
    if labels is None:
        return judge
    rows = labels.rows
    verdicts = decide([Case(row.prompt, row.response, other=row.other) for row in rows])
    found = judge_agreement(
        Labelled([verdict.value for verdict in verdicts], [row.label for row in rows], [row.prompt for row in rows]),
        judge=judge.name,
        source=f"{labels.source}, asked in this run",
        rng=np.random.default_rng(context.seed),
    )
    context.progress.say(f"  {judge.name}: agrees with {100 * found.accuracy:.1f} % of {found.n} labels")
    return replace(judge, agreement=found)
