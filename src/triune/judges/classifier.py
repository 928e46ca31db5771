"""Judges trained here, on the CPU, from labelled answers: harm, refusal, truthful, informative, preference.

Each is logistic regression on hashed words (`triune.judges.features`, `triune.judges.linear`). How far it agrees with
labels of prompts that it never saw travels in its folder, and beside it the agreement on whole data sets that a judge
of the same kind was not trained on: they say what to expect of other models' answers.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from triune.data.labelled import LabelledAnswer
from triune.data.nearest import unknown_name
from triune.data.splits import prompt_key
from triune.judges.deciding import Reading, verdicts
from triune.judges.features import PIECE, Block, Features, clip, counted
from triune.judges.gated import answered, fit_gated, is_gated, material
from triune.judges.judge import Case, Judge
from triune.judges.linear import Fitted, balanced_weights, calibrated, fit_paired, fit_single, scores
from triune.judges.spoiled import SOURCE, spoiled_answers
from triune.judges.stored import StoredJudge, code_version, load_judge, save_judge
from triune.judges.training_answers import (
    ASKED,
    FRACTIONS,
    ORDINARY,
    SEED,
    Source,
    both_labels,
    divide,
    groups_of,
    identities,
    placed,
    read_answers,
)
from triune.metrics.agreement import Labelled, judge_agreement
from triune.record import Step, finished, read_record, writing
from triune.types import Agreement

COST = "no fee; about 1 s for 1,000 answers of 1,000 characters on one core"
# Spoiled answers are as many as a third of these together, so that real verdicts still decide.
_SPOILED_WEIGHT = 0.3
_Fit = Callable[[Sequence[LabelledAnswer], Sequence[LabelledAnswer]], Fitted]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of trained judge.

    sources: the data that it is trained on, below the data's root. strength: scikit-learn's C. balanced: both labels
    weigh the same in every group (`balanced_weights`), so that ½ is the threshold whatever a source's share of events.
    """

    reading: Reading
    sources: tuple[Source, ...]
    features: Features
    strength: float = 1.0
    balanced: bool = False


_ANSWER = Block("answer")
_RELATING = ("returned", "new", "distinct", "lettered", "common", "echoes", "unrepeated", "worded")
_REFUSING = ("refuses", "phrase", "listed", "cautions")
_SAYING = ("refuses", "phrase", "negates", "advises", "warns", "oneself")
_QUESTIONED = Features((_ANSWER, Block("linked", 1, 1, weight=0.5)), ("refuses", "returned", "new"))
_XSTEST = "xstest/xstest_v2_completions_{}_gpteval.csv"
_JUDGED = ("alpaca-7b", "phi-2", "text_davinci_001", "llama-2-7b-chat-hf")

# Prompts for the gate. What stands under a group's own name is left out with it.
_ASKED_IN = (
    ("gptfuzz/question_list.csv", "harmful_prompts", "gptfuzz"),
    ("pku_saferlhf/pairs_5k.json", "harmful_prompts", "pku_saferlhf"),
    ("do_not_answer/data_en.csv", "harmful_prompts", "do_not_answer"),
    ("beavertails/BeaverTails-Evaluation.json", "harmful_prompts", "beavertails and xstest"),
    ("xstest/xstest_prompts.csv", "xstest_prompts", "beavertails and xstest"),
    ("advbench/harmful_behaviors.csv", "harmful_prompts", "advbench"),
    ("safety_tuned_llamas/safety_only_data_Instructions.json", "harmful_prompts", "safety_tuned_llamas"),
    ("alpaca/alpaca_19k.json", "ordinary_prompts", "alpaca"),
    ("honesty/HoneSet.json", "ordinary_prompts", "honeset"),
    ("truthfulqa/TruthfulQA.csv", "ordinary_prompts", "truthfulqa"),
)

KINDS: dict[str, Kind] = {
    "harm": Kind(
        # Of a long answer the worst part counts, so that harm cannot hide in padding.
        Reading("is unsafe", blank=0.0, every_piece=True),
        (
            Source("gptfuzz/train.csv", "gptfuzz"),
            Source("gptfuzz/evaluate.csv", "gptfuzz"),
            Source("pku_saferlhf/pairs_5k.json", "pku_saferlhf"),
            Source("do_not_answer/data_en.csv", "do_not_answer", "do_not_answer"),
            # Two sets with one label each, which teach and measure together.
            Source("beavertails/beavertails_sample.csv", "beavertails", "beavertails and xstest"),
            Source(_XSTEST.format("gpt4"), "xstest_harmless", "beavertails and xstest"),
            Source(_XSTEST.format("llama2orig"), "xstest_harmless", "beavertails and xstest"),
            Source("alpaca/alpaca_19k.json", "ordinary_answers", ORDINARY, limit=2000),
            *(Source(place, form, ASKED + group) for place, form, group in _ASKED_IN),
        ),
        Features((_ANSWER,), _SAYING),
        balanced=True,
    ),
    "refusal": Kind(
        Reading("refuses", blank=0.0),
        (
            Source(_XSTEST.format("gpt4"), "xstest"),
            Source(_XSTEST.format("llama2orig"), "xstest"),
            Source("do_not_answer/data_en.csv", "do_not_answer_actions", "do_not_answer"),
        ),
        Features((Block("answer", weight=0.3),), _REFUSING, scale=2.0),
        balanced=True,
    ),
    "truthful": Kind(
        Reading("is truthful", blank=1.0),
        (Source("truthfulqa/finetune_truth.jsonl", "truthfulqa"),),
        _QUESTIONED,
        strength=5.0,
    ),
    "informative": Kind(
        Reading("is informative", blank=0.0),
        (Source("truthfulqa/finetune_info.jsonl", "truthfulqa"),),
        _QUESTIONED,
        strength=5.0,
    ),
    "preference": Kind(
        Reading("is preferred to the other", blank=0.0, compares=True),
        tuple(Source(f"alpaca_eval/{model}/annotations_alpaca_eval_gpt4.json", "alpaca_eval") for model in _JUDGED),
        Features((_ANSWER,), _RELATING),
        strength=3.0,
    ),
}


def train_judge(kind: str, sources: Sequence[Source], out: Path) -> Path:
    """Train a judge of `kind`, a row of KINDS, on `sources`, and write it to `out`; the folder, for `open_judge`.

    The answers are divided by prompt (70 % training, 10 % calibration, 20 % test, which is measured once). Then each
    group of sources is left out in turn: a judge trained on the others, measured on this group's prompts that are not
    among its training prompts. Nothing of this second part enters the judge. A finished folder of the same data,
    settings and code is left as it is.

    Raises InputError for an unknown kind, bad data, data that cannot be divided, a folder that is not ours.
    """
    if kind not in KINDS:
        raise unknown_name("kind of judge", kind, KINDS)
    step = _step(kind, sources, out)
    if finished(step):
        return out
    answers = read_answers(sources)
    with writing(step, SEED) as draft:
        splits = divide(answers)
        fit = _fitting(KINDS[kind], answers)
        fitted = fit(splits["train"], splits["validation"])
        agreement = _measured(kind, fitted, answered(splits["test"]), "held-out prompts of its training sources")
        counts = {name: len(items) for name, items in splits.items()}
        save_judge(draft, StoredJudge(kind, code_version(), fitted, agreement, _transfers(kind, answers, fit), counts))
    return out


def open_judge(folder: Path) -> Judge:
    """The judge that `train_judge` wrote. Raises InputError as `load_judge`."""
    stored = load_judge(folder)
    if stored.kind not in KINDS:
        raise unknown_name(f"{folder}: kind of judge", stored.kind, KINDS)
    reading = KINDS[stored.kind].reading
    version = str(read_record(folder)["identity"])
    decide = partial(verdicts, reading, stored.fitted)
    return Judge(f"classifier: {stored.kind}", version, reading.event, COST, decide, stored.agreement)


def judge_for(kind: str, root: Path, cache: Path | None = None) -> Judge:
    """The judge of `kind` trained on its sources below `root`, from the cache where it was trained before.

    The cache is `cache`, or judges/ in the folder that TRIUNE_CACHE names, or ~/.cache/triune/judges; a judge's folder
    in it is named by the hash of data, settings and code. Raises InputError as `train_judge`.
    """
    if kind not in KINDS:
        raise unknown_name("kind of judge", kind, KINDS)
    sources = placed(KINDS[kind].sources, root)
    place = cache or Path(os.environ.get("TRIUNE_CACHE") or Path.home() / ".cache/triune") / "judges"
    identity = _step(kind, sources, place).identity
    return open_judge(train_judge(kind, sources, place / f"{kind}-{identity[:16]}"))


def _step(kind: str, sources: Sequence[Source], folder: Path) -> Step:
    row = KINDS[kind]
    settings = {
        "kind": kind,
        "code": code_version(),
        "features": row.features,
        "strength": row.strength,
        "balanced": row.balanced,
        "fractions": FRACTIONS,
        "groups": [(one.group, one.limit) for one in sources],
    }
    return Step(folder, "judge", settings, identities(sources))


def _fitting(kind: Kind, answers: Sequence[LabelledAnswer]) -> _Fit:
    """How a judge is fitted to training and calibration rows of `answers`."""
    if not is_gated(answers):
        return partial(_trained, kind)
    rows = material(kind.features, answers)
    return lambda train, validation: fit_gated(kind.features, rows.of(train, validation), kind.strength)


def _trained(kind: Kind, train: Sequence[LabelledAnswer], validation: Sequence[LabelledAnswer]) -> Fitted:
    fit = _fit_comparing if kind.reading.compares else _fit_alone
    fitted = fit(kind, train)
    z = _scores(fitted, validation, "response")
    if kind.reading.compares:
        z = z - _scores(fitted, validation, "other")
    return calibrated(fitted, z, _labels(validation), _weights(kind, validation), kind.reading.compares)


def _fit_alone(kind: Kind, train: Sequence[LabelledAnswer]) -> Fitted:
    counts = counted(kind.features, [(item.prompt, clip(item.response)[:PIECE]) for item in train])
    return fit_single(kind.features, counts, _labels(train), _weights(kind, train), kind.strength)


def _fit_comparing(kind: Kind, train: Sequence[LabelledAnswer]) -> Fitted:
    rows = [*train, *spoiled_answers(train, torch.Generator().manual_seed(SEED))]
    sides = [
        counted(kind.features, [(item.prompt, clip(text)[:PIECE]) for item, text in zip(rows, texts, strict=True)])
        for texts in ([item.response for item in rows], [item.other for item in rows])
    ]
    lengths = np.array([float(len(item.response) - len(item.other)) for item in rows])
    weights = np.array([_SPOILED_WEIGHT if item.source == SOURCE else 1.0 for item in rows])
    return fit_paired(kind.features, (sides[0], sides[1]), _labels(rows), lengths, weights, kind.strength)


def _scores(fitted: Fitted, items: Sequence[LabelledAnswer], side: str) -> np.ndarray:
    pairs = [(item.prompt, clip(getattr(item, side))[:PIECE]) for item in items]
    return scores(fitted, counted(fitted.features, pairs))


def _labels(items: Sequence[LabelledAnswer]) -> np.ndarray:
    return np.array([item.label for item in items], dtype=np.float64)


def _weights(kind: Kind, items: Sequence[LabelledAnswer]) -> np.ndarray:
    return balanced_weights(_labels(items), [item.source for item in items]) if kind.balanced else np.ones(len(items))


def _measured(kind: str, fitted: Fitted, items: Sequence[LabelledAnswer], source: str) -> Agreement:
    """Agreement with the labels that are no ties, through the very verdicts that the judge gives."""
    decided = [item for item in items if item.label != 0.5]
    cases = [Case(item.prompt, item.response, item.other) for item in decided]
    labelled = Labelled(
        [verdict.value for verdict in verdicts(KINDS[kind].reading, fitted, cases)],
        [item.label for item in decided],
        [prompt_key(item.prompt) for item in decided],
    )
    return judge_agreement(labelled, judge=f"classifier: {kind}", source=source, rng=np.random.default_rng(SEED))


def _transfers(kind: str, answers: Sequence[LabelledAnswer], fit: _Fit) -> dict[str, Agreement]:
    """Group -> agreement there of a judge that was trained without it; empty where there are no two groups.

    The others' training and calibration prompts are taken, so that of prompts that all groups share some are left.
    """
    labelled = answered(answers)
    places = groups_of(labelled)
    found = {}
    for name in places if len(places) > 1 else ():
        others = [answer for answer in answers if answer.source not in (name, ASKED + name)]
        if not both_labels(answered(others), {"": range(len(answered(others)))}):
            continue
        splits = divide(others)
        fitted = fit(splits["train"], splits["validation"])
        seen = {prompt_key(item.prompt) for part in ("train", "validation") for item in splits[part]}
        unseen = [labelled[place] for place in places[name] if prompt_key(labelled[place].prompt) not in seen]
        found[name] = _measured(kind, fitted, unseen, f"{name}, on which it was not trained")
    return found
