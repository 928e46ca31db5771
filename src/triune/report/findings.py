"""What the numbers say, in sentences made from them.

Two scores are told apart only where their 95 % intervals do not overlap; only then is one called better.
"""

import math
from collections.abc import Iterable
from typing import Literal

from triune.report.labels import (
    BASE,
    DIRECTIONS,
    EXPERT,
    FAMILIES,
    FUSED,
    SCARCE,
    axis_names,
    axis_scores,
    headline_scores,
    model_label,
    model_phrase,
    models_of,
    score_index,
    score_label,
    score_phrase,
    side_scores,
)
from triune.report.numerals import bare_text, listed, score_text, size_text
from triune.report.run import Run
from triune.types import Score

Outcome = Literal["better", "worse", "apart", "overlap", "unknown"]
# Settings of the recipe's `scarce` that a reader must know, by their dotted names.
SCARCE_PHRASES = {"examples": "{} joint examples per axis", "rank": "rank {}", "train.lora.rank": "rank {}"}
NUMBER_WORDS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}


def compare(one: Score, other: Score) -> Outcome:
    """Where `one` stands against `other`, judged by their intervals alone.

    "apart" is a difference without a better side; "unknown" means that one of them was not measured.
    """
    if math.isnan(one.value) or math.isnan(other.value):
        return "unknown"
    if one.low <= other.high and other.low <= one.high:
        return "overlap"
    if one.better == "neither":
        return "apart"
    return "better" if (one.low > other.high) == (one.better == "higher") else "worse"


def lead(run: Run) -> tuple[str, ...]:
    """The opening paragraph, one sentence or two an item: what was run, and what came out."""
    sentences = [opening(run)]
    if FUSED in models_of(run.scores):
        sentences += [text for name in headline_scores(run) if (text := headline(run, name))]
        sentences += [text for text in (beside(run), scarce(run)) if text]
    else:
        sentences.append("There is no fused model among them, so this page compares nothing with it.")
    empty = sum(math.isnan(row.score.value) for row in run.scores)
    if empty:
        sentences.append(f"{empty} of {len(run.scores)} scores could not be measured and are shown as n/a.")
    return tuple(sentences)


def opening(run: Run) -> str:
    """What was trained and what it is compared with."""
    models = models_of(run.scores)
    axes = [model.removeprefix(EXPERT) for model in models if model.startswith(EXPERT)]
    others = [model_phrase(model) for model in models if model != FUSED and not model.startswith(EXPERT)]
    compared = f", compared with {listed(others)}" if others else ""
    if len(axes) >= 2 and FUSED in models:
        count = NUMBER_WORDS.get(len(axes), str(len(axes)))
        return f"{count} experts ({', '.join(axes)}) of one base model were fused into one{compared}."
    return f"{len(models)} models were scored: {listed([model_phrase(model) for model in models])}."


def headline(run: Run, name: str) -> str:
    """The fused model on one score, against the base, the best expert and every other rival."""
    index = score_index(run.scores)
    fused = index.get((FUSED, name))
    if fused is None:
        return ""
    direction = DIRECTIONS[fused.better]
    if math.isnan(fused.value):
        return f"On {score_phrase(name)} the fused model was not measured (n = 0)."
    base = index.get((BASE, name))
    start = f", the base {bare_text(base)}" if base and not math.isnan(base.value) else ""
    opened = (
        f"On {score_phrase(name)} ({direction}) the fused model scores {score_text(fused)}{start}; "
        f"{size_text(fused.n)}."
    )
    return " ".join((opened, *verdicts(fused, rivals(run, name))))


def rivals(run: Run, name: str) -> list[tuple[str, Score]]:
    """What the fused model is held against: the best of the experts and of every family, then all others.

    A score without a better side has no best, so there each is named.
    """
    index = score_index(run.scores)
    measured = [
        (model, index[model, name])
        for model in models_of(run.scores)
        if (model, name) in index and not math.isnan(index[model, name].value)
    ]
    found, told = [], {BASE, FUSED}
    groups = {"single expert": [item for item in measured if item[0].startswith(EXPERT)]}
    groups |= {kind: [item for item in measured if item[0] in models] for kind, models in FAMILIES.items()}
    for kind, items in groups.items():
        ranked = [item for item in items if item[1].better != "neither"]
        if ranked and (len(items) > 2 or kind == "single expert"):
            sign = 1.0 if ranked[0][1].better == "higher" else -1.0
            model, score = max(ranked, key=lambda item: sign * item[1].value)
            found.append((f"the best {kind} on it ({model_label(model)})", score))
            told |= {model for model, _ in items}
    told |= {model for model, _ in groups["single expert"]}
    rest = [item for item in measured if item[0] not in told]
    return found + [(model_phrase(model), score) for model, score in rest]


def verdicts(subject: Score, others: Iterable[tuple[str, Score]]) -> list[str]:
    """One sentence for each outcome, naming every rival with its value."""
    groups: dict[Outcome, list[str]] = {}
    for label, score in others:
        groups.setdefault(compare(subject, score), []).append(f"{bare_text(score)} for {label}")
    endings: dict[Outcome, str] = {
        "better": "the intervals do not overlap, and fused is better.",
        "worse": "the intervals do not overlap, and fused is worse.",
        "apart": "the intervals do not overlap.",
        "overlap": "the intervals overlap, so this run does not tell them apart.",
    }
    return [f"Against {listed(groups[kind])}: {end}" for kind, end in endings.items() if kind in groups]


def beside(run: Run) -> str:
    """The fused model on the scores beside the axes, with the base for orientation."""
    index = score_index(run.scores)
    phrases = []
    for name in side_scores(run):
        fused, base = index.get((FUSED, name)), index.get((BASE, name))
        if fused is None:
            continue
        against = f"; base {bare_text(base)}" if base else ""
        phrases.append(f"{score_label(name)} {score_text(fused)} ({DIRECTIONS[fused.better]}{against})")
    return f"Beside the axes, the fused model has {listed(phrases)}." if phrases else ""


def scarce(run: Run) -> str:
    """The scarce-data comparison: the fused model against those tuned on the mixture, on the first headline score."""
    for name in headline_scores(run)[:1]:
        fused, others = scarce_pairs(run, name)
        if fused is None or "mixture" not in others:
            continue
        pairs = " ".join(verdicts(fused, [(model_phrase(model), score) for model, score in others.items()]))
        given = f" ({scarce_setting(run)})" if scarce_setting(run) else ""
        own = f"{score_text(fused)} on {score_phrase(name)}"
        return f"With scarce joint data{given} the fused model scores {own}. {pairs}"
    return ""


def scarce_pairs(run: Run, name: str) -> tuple[Score | None, dict[str, Score]]:
    """On a score, the fused model of scarce data and what it is held against: stage 2's budget, and that of all."""
    index = score_index(run.scores)
    found = {model: index.get((SCARCE + model, name)) for model in (FUSED, "mixture", "longer")}
    known = {model: score for model, score in found.items() if score is not None and not math.isnan(score.value)}
    return known.pop(FUSED, None), known


def scarce_setting(run: Run) -> str:
    """The settings of the scarce-data comparison as the recipe gives them: "20 joint examples per axis, rank 1"."""
    settings = run.recipe.scarce if run.recipe else {}
    return ", ".join(phrase.format(settings[key]) for key, phrase in SCARCE_PHRASES.items() if key in settings)


def fusing_pays(run: Run) -> bool:
    """Whether the scarce fused model is better than every scarce mixture on every headline score."""
    pairs = [scarce_pairs(run, name) for name in headline_scores(run)]
    return bool(pairs) and all(
        fused and "mixture" in others and all(compare(fused, other) == "better" for other in others.values())
        for fused, others in pairs
    )


def what_axes(run: Run) -> str:
    """Which scores measure the axes, for captions."""
    return listed([score_label(name) for name in axis_scores(run)]) or listed(list(axis_names(run)))
