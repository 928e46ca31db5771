"""Axis collapse in words: the three signs as rows of one table, and how each figure is read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from triune.report.collapse_account import CollapseAccount, ForgettingSummary
from triune.report.collapse_figures import ALL, BASE, OWN
from triune.report.collapse_parts import Reading
from triune.report.labels import score_label
from triune.report.numerals import NOT_MEASURED, listed, value_text

PERCENT = "%"
QUANTITIES = {"nll": "loss"}
WHAT = {"all layers": "tokens", "whole rows": "rows"}
HOW = {
    "loss": "Row: what the expert was trained on. Column: the axis that is asked about. Each number is the loss per "
    "answer token after the training minus the base's, with its 95 % interval over prompts. A framed number is an "
    "expert on its own axis and should be below 0; the others say what the training did to axes that it did not "
    "train: above 0 they were forgotten, near 0 the training kept to its own axis, below 0 it helped "
    "them, too.",
    "score": "The same of the judged answers: the base's score minus the expert's in percentage points, so that "
    "above 0 is worse here, too. A loss and a score may disagree: an axis can become less likely and still be "
    "answered right.",
    "likeness": "Linear CKA of the states of the same held-out rows in two models after each block, 1 where one is "
    "the other up to rotation and scale. Dashed lines compare an expert with the base, solid ones two experts. If "
    "the solid lines fall far below the dashed ones, the experts moved apart from each other and not only from the "
    "base.",
    "angles": "The angle between the main directions in which two axes' rows vary: 0° the same directions, 90° none "
    "shared. Collapse into disjoint features would be the solid line above the dashed one of the base, towards the "
    "dotted line (unrelated directions). The dash-dotted line is how far two halves of one axis turn by chance "
    "of sampling: an angle near it is no difference. The rows of two axes differ in any model; only what the "
    "experts add to the base's angle is theirs.",
    "separation": "1 where the rows of each axis lie close together and far from the other axes', 0 where they are "
    "mixed, below 0 where rows lie among another axis's. Compare with the base's line. Unlike the "
    "angle this counts a shift of a whole axis, too, also one that an expert gives to any text: the axes' rows pass "
    "through different models here.",
    "routing": "Misrouting is how often the largest weight of a row, averaged over its tokens and layers, goes to "
    "another axis's expert. In the diagrams calibrated routing lies on the dashed line: of the tokens that get "
    "their expert with weight 0.7, seven in ten are of that axis. Weights averaged over a row are right more often "
    "than they are large, because many of its tokens could be of any axis.",
}
TITLES = {
    "loss": "Forgetting: the loss",
    "score": "Forgetting: the score",
    "likeness": "Are the models still alike? CKA",
    "angles": "Do the axes share directions? Principal angles",
    "separation": "Do the axes lie apart? Silhouette",
    "routing": "Can the routing be relied on?",
}


@dataclass(frozen=True, slots=True)
class Sign:
    """One number and what it must be compared with."""

    name: str
    value: str
    beside: str


def title(found: CollapseAccount) -> str:
    """The page's title."""
    return f"Axis collapse of {found.about}" if found.about else "Axis collapse"


def lead(found: CollapseAccount) -> list[str]:
    """What was looked at."""
    view = found.view
    counts = listed([f"{n} prompts of {axis}" for axis, n in zip(view.axes, found.n_prompts, strict=True)])
    left = f" {found.n_left_out} rows did not fit into the context and are left out." if found.n_left_out else ""
    fused = " and a fused model" if found.routing is not None else ""
    return [
        f"{len(view.experts)} experts ({listed(list(view.experts))}){fused} beside their base, on {counts}.{left}",
        "Axis collapse (AlignX, arXiv 2602.07381) has three signs: training on one axis makes another worse; the "
        "axes' features no longer share directions; routing errs and does not know it. Each stands beside what "
        "it must be compared with.",
        f"The rows: {found.held_out}." if found.held_out else "",
    ]


def signs(found: CollapseAccount) -> list[Sign]:
    """The numbers in short: forgetting, CKA and angles and silhouette after the last block, routing."""
    return [*_forgotten(found), *_likeness(found), *_angles(found), *_separation(found), *_routing(found)]


def reading_text(reading: Reading | None, unit: str, *, sign: bool = False) -> str:
    """Value and interval, "0.12 [0.05, 0.19]"; with `sign` a plus before what is above 0."""
    if reading is None or math.isnan(reading.value):
        return NOT_MEASURED
    text = value_text(reading.value, unit)
    plus = "+" if sign and reading.value > 0 and text.strip("0.") else ""
    ends = "" if math.isnan(reading.low) else f" [{value_text(reading.low, unit)}, {value_text(reading.high, unit)}]"
    return f"{plus}{text}{ends}"


def _forgotten(found: CollapseAccount) -> Iterator[Sign]:
    for matrix, summary in ((found.view.loss, found.loss), (found.view.score, found.score)):
        if matrix is None or summary is None:
            continue
        unit = f", {matrix.unit}" if matrix.unit else ""
        yield Sign(
            f"forgetting, {QUANTITIES.get(matrix.quantity, score_label(matrix.quantity))}{unit}",
            reading_text(summary.off_diagonal, matrix.unit, sign=True),
            _beside(summary, matrix.unit),
        )


def _beside(summary: ForgettingSummary, unit: str) -> str:
    gain = f"gain on the own axis {reading_text(summary.gain, unit, sign=True)}"
    if summary.worst is None or len(summary.worst_at) != 2:
        return gain
    trained, axis = summary.worst_at
    return f"{gain}; worst: {trained} on {axis} {reading_text(summary.worst, unit, sign=True)}"


def _likeness(found: CollapseAccount) -> Iterator[Sign]:
    last = [row for row in found.view.likeness if row.rows == ALL and row.layer == found.view.n_layers]
    with_base = {row.other: row.cka for row in last if row.one == BASE}
    for row in last:
        if row.one != BASE:
            ends = [f"{name} {value_text(with_base[name].value, '')}" for name in (row.one, row.other)]
            yield Sign(
                f"CKA of {row.one} and {row.other}", reading_text(row.cka, ""), f"with the base: {listed(ends)}"
            )


def _angles(found: CollapseAccount) -> Iterator[Sign]:
    last = [row for row in found.view.angles if row.layer == found.view.n_layers]
    for own in (row for row in last if row.states == OWN):
        base = next((r.angle for r in last if (r.one, r.other, r.states) == (own.one, own.other, BASE)), math.nan)
        yield Sign(
            f"angle of {own.one} and {own.other}",
            degrees_text(own.angle),
            f"under the base {degrees_text(base)}, unrelated {degrees_text(own.chance)}, halves of one axis "
            f"{degrees_text(own.halves)}",
        )


def degrees_text(angle: float) -> str:
    """Radians as degrees, "41.3°"."""
    return NOT_MEASURED if math.isnan(angle) else f"{math.degrees(angle):.1f}°"


def _separation(found: CollapseAccount) -> Iterator[Sign]:
    last = {(r.metric, r.states): r for r in found.view.separation if r.layer == found.view.n_layers}
    for metric, states in last:
        if states == OWN:
            base = last.get((metric, BASE))
            beside = reading_text(base.silhouette if base else None, "")
            yield Sign(
                f"silhouette of the axes, {metric}",
                reading_text(last[metric, OWN].silhouette, ""),
                f"under the base {beside}",
            )


def _routing(found: CollapseAccount) -> Iterator[Sign]:
    if found.routing is None:
        return
    chance = 100 * (1 - 1 / len(found.view.axes))
    yield Sign(
        "misrouted rows, %",
        reading_text(found.routing.misrouting, PERCENT),
        f"guessing among the axes {value_text(chance, PERCENT)}",
    )
    rows = {(row.what, row.metric): row for row in found.routing.calibration}
    for what in dict.fromkeys(what for what, _ in rows):
        values = [rows.get((what, metric)) for metric in ("ece", "confidence", "accuracy")]
        if all(row is not None for row in values):
            ece, confidence, accuracy = (Reading(r.value, r.low, r.high, r.n) for r in values if r is not None)
            yield Sign(
                f"ECE of the routing, {WHAT.get(what, what)}",
                reading_text(ece, ""),
                f"confidence {reading_text(confidence, '')}, accuracy {reading_text(accuracy, '')}",
            )
