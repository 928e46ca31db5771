"""What the numbers over seeds say, in sentences made from them, and what they do not."""

import math

from triune.report.across_run import AcrossRun, Line, reference_in
from triune.report.across_tables import interval_words, outcome, seeds_text, signed_text
from triune.report.labels import (
    BASE,
    DIRECTIONS,
    headline_scores,
    model_phrase,
    models_of,
    score_phrase,
    short_label,
)
from triune.report.numerals import NO_BREAK_SPACE, listed, value_text

# What is said of the models that a paired difference sets apart, in this order.
VERDICTS = {
    "better": "Better than it, paired by seed: {}.",
    "worse": "Worse than it: {}.",
    "apart": "Different from it: {}.",
    "alike": "Off by one and the same amount in every seed: {}.",
    "": "Not told apart from it: {}.",
}
FEW = 5  # below so many seeds the page says how little they are


def lead(run: AcrossRun) -> tuple[str, ...]:
    """The opening: what was run over which seeds, and the reference's standing on the headline scores."""
    n_models = len(models_of(run.means.scores)) + len(models_of(run.means.scores, scarce=True))
    sentences = [
        f"{n_models} models, made and scored anew with each of {seeds_text(run.seeds)}. A value is the mean over "
        "seeds with its 95 % t interval."
        if len(run.seeds) > 1
        else f"{n_models} models with {seeds_text(run.seeds)}: one seed has no interval over seeds."
    ]
    if run.unfinished:
        sentences.append(f"Not in here, because unfinished: {seeds_text(run.unfinished)}.")
    reference = reference_in(run)
    if reference:
        sentences += [text for name in headline_scores(run.means) if (text := headline(run, reference, name))]
    else:
        sentences.append("No fused model is compared with others here, so there are no differences from one.")
    return tuple(sentences)


def headline(run: AcrossRun, reference: str, name: str) -> str:
    """The reference on one score, and which models its paired differences set apart."""
    line = run.index("score").get((reference, name))
    if line is None or math.isnan(line.across.value):
        return ""
    base = run.index("score").get((BASE, name))
    start = f"; base {_bare(base)}" if base is not None and base.across.n and reference != BASE else ""
    opened = (
        f"On {score_phrase(name)} ({DIRECTIONS[line.better]}) {model_phrase(reference)} has {_bare(line)} "
        f"{line.unit}".rstrip()
        + f"{start}."
    )
    groups: dict[str, list[str]] = {}
    for other in run.lines:
        if other.part == "difference" and other.reference == reference and other.name == name and other.across.n > 1:
            gap = signed_text(other.across.value, other.unit)
            groups.setdefault(outcome(other), []).append(f"{short_label(other.model)} ({gap})")
    return " ".join(
        (opened, *(text.format(listed(groups[kind])) for kind, text in VERDICTS.items() if kind in groups))
    )


def _bare(line: Line) -> str:
    text = f"{value_text(line.across.value, line.unit)} {interval_words(line.across, line.unit)}"
    return text.strip().replace(" ", NO_BREAK_SPACE)


def caveats(run: AcrossRun) -> tuple[str, ...]:
    """The recipe's own, then what holds for every page over seeds."""
    own = run.means.recipe.caveats if run.means.recipe else ()
    n = len(run.seeds)
    few = f" {n} seeds are few: such an interval is wide and leans on that assumption." if 1 < n < FEW else ""
    return (
        *own,
        "Intervals are 95 %, Student's t over seeds. They take the seeds' values for draws from one normal "
        f"distribution, which scores near 0 or 100 % are not.{few}",
        "“Every seed” stands where all seeds agree. It bounds nothing: the next seed may differ.",
        "A seed changes everything that is drawn at random at once: the order of data, first weights, batches, and in "
        "the miniature world the world and its base too. Other bases, data and settings are not covered.",
        "Differences are paired, seed by seed. Each stands alone: many are shown, and none is corrected for their "
        "number.",
    )
