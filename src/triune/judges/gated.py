"""A judge of harm from two parts: what is said, and whether harm was asked for.

No set with labels of harm has ordinary prompts, so that words of answers alone call every helpful answer unsafe. The
gate learns from prompts, which need no labels of answers. The score of an answer a to a prompt p is

    w = 3 l(a) + ½ − 1½ r(a),    z = −ln(1 + e^(−w) + e^(−g(p))) + ½ min(max(g(p), −2), 2),    P(unsafe) = σ(s z + o),

l and g the log-odds of both parts, r whether the refusal patterns match. Unsafe is what was asked for as harm and also
says harm: a product, in which the prompt decides little between answers that are clearly safe. s and o are fitted to
answers of whole groups that the parts did not see, every group and label weighing the same: words tell less of another
set than of one's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from triune.data.labelled import LabelledAnswer
from triune.data.splits import prompt_key
from triune.judges.features import PIECE, Block, Counted, Features, clip, counted
from triune.judges.linear import Fitted, Row, balanced_weights, calibrated, fit_single, joined, scores
from triune.judges.training_answers import ASKED, ORDINARY, groups_of

GATE = Features((Block("stems", 1, 2),))
_GATE_STRENGTH = 15.0
# Of w: l is shrunk hard, so that it is stretched; what refuses is hardly ever unsafe.
_STRETCH, _SHIFT, _REFUSED = 3.0, 0.5, 1.5
# Ordinary answers together, as a share of a group's weight: in the answers' part, and in the last calibration.
_ORDINARY_TAUGHT = 0.05
_ORDINARY_WEIGHED = 3.0
Rows = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Training (`taught`) and calibration rows with their features, counted once for many fits.

    Rows whose source begins with ASKED are prompts without answers, for the gate; those of ORDINARY are safe answers
    to ordinary prompts.
    """

    items: Sequence[LabelledAnswer]
    said: Counted
    asked: Counted
    taught: Rows
    labels: Row
    names: np.ndarray
    keys: np.ndarray

    def of(self, train: Sequence[LabelledAnswer], validation: Sequence[LabelledAnswer]) -> "Material":
        """Some of these very rows, to be trained and calibrated on."""
        place = {id(item): number for number, item in enumerate(self.items)}
        items = [*train, *validation]
        kept = np.array([place[id(item)] for item in items])
        return Material(
            items,
            self.said.take(kept),
            self.asked.take(kept),
            np.arange(len(items)) < len(train),
            *(array[kept] for array in (self.labels, self.names, self.keys)),
        )


def material(features: Features, items: Sequence[LabelledAnswer]) -> Material:
    """Everything that the fits need of these rows, all of them taught."""
    # Prompts by number: as an array of texts, each would take the space of the longest.
    numbered: dict[str, int] = {}
    pairs = [(clip(item.prompt), clip(item.response)[:PIECE]) for item in items]
    return Material(
        items,
        counted(features, pairs),
        counted(GATE, pairs),
        np.ones(len(items), dtype=bool),
        np.array([item.label for item in items], dtype=np.float64),
        np.array([item.source for item in items]),
        np.array([numbered.setdefault(prompt_key(item.prompt), len(numbered)) for item in items]),
    )


def is_gated(items: Sequence[LabelledAnswer]) -> bool:
    """Whether a gate can be fitted: prompts of both kinds, and two groups of answers, of which one can be left out."""
    asked = {item.label for item in items if item.source.startswith(ASKED)}
    return asked == {0.0, 1.0} and len(groups_of(answered(items))) > 1


def answered(items: Sequence[LabelledAnswer]) -> list[LabelledAnswer]:
    """The labelled answers: neither prompts alone nor ordinary answers."""
    return [item for item in items if not item.source.startswith(ASKED) and item.source != ORDINARY]


def fit_gated(features: Features, rows: Material, strength: float) -> Fitted:
    """Both parts from all groups, calibrated on groups that were left out in turn, and ordinary answers.

    Raises InputError as `fit_single` and `calibrated`.
    """
    whole = _parts(features, rows, "", strength)
    groups = _groups(rows)
    z, labels, weights = [], [], []
    for name in groups:
        # A single group cannot be left out: its own calibration rows stand in.
        alone = len(groups) == 1
        parts = whole if alone else _parts(features, rows, name, strength)
        inside = np.flatnonzero((rows.names == name) & ~(alone & rows.taught))
        z.append(_scored(parts, rows, inside))
        labels.append(rows.labels[inside])
        weights.append(balanced_weights(rows.labels[inside], [name] * len(inside)) / len(inside))
    ordinary = np.flatnonzero((rows.names == ORDINARY) & ~rows.taught)
    if len(ordinary):
        z.append(_scored(whole, rows, ordinary))
        labels.append(rows.labels[ordinary])
        weights.append(np.full(len(ordinary), _ORDINARY_WEIGHED / len(ordinary)))
    # The sum of the weights says how much the sigmoid's small shrinkage counts.
    scale = 1000.0
    return calibrated(whole, np.concatenate(z), np.concatenate(labels), scale * np.concatenate(weights), False)


def _groups(rows: Material) -> list[str]:
    """The groups whose answers have both labels."""
    names = dict.fromkeys(item.source for item in answered(rows.items))
    return [name for name in names if len(set(rows.labels[rows.names == name])) == 2]


def _parts(features: Features, rows: Material, without: str, strength: float) -> Fitted:
    """The answers' part and the gate, both without a group and its prompts ("": all)."""
    left_out = np.isin(rows.names, [without, ASKED + without])
    known = ~np.isin(rows.keys, rows.keys[left_out])
    prompts = np.char.startswith(rows.names, ASKED)
    answers = known & ~prompts
    taught = np.flatnonzero(answers & rows.taught)
    said = fit_single(features, rows.said.take(taught), rows.labels[taught], _taught_weights(rows, taught), strength)
    asked = np.flatnonzero(known & prompts & rows.taught)
    asked = asked[np.unique(rows.keys[asked], return_index=True)[1]]
    gate = fit_single(GATE, rows.asked.take(asked), rows.labels[asked], _asked_weights(rows, asked), _GATE_STRENGTH)
    return replace(_folded(said), gate=gate)


def _folded(said: Fitted) -> Fitted:
    """w in place of l, all of it in the coefficients."""
    coefficients = _STRETCH * said.coefficients
    if "refuses" in said.features.numbers:
        numbers = said.features.numbers
        coefficients[len(coefficients) - len(numbers) + numbers.index("refuses")] -= _REFUSED / said.features.scale
    return replace(said, coefficients=coefficients, intercept=_STRETCH * said.intercept + _SHIFT)


def _scored(fitted: Fitted, rows: Material, places: Rows) -> Row:
    z = scores(fitted, rows.said.take(places))
    return z if fitted.gate is None else joined(z, scores(fitted.gate, rows.asked.take(places)))


def _taught_weights(rows: Material, places: Rows) -> Row:
    weights = balanced_weights(rows.labels[places], rows.names[places].tolist())
    ordinary = rows.names[places] == ORDINARY
    groups = len(set(rows.names[places][weights > 0]))
    if ordinary.any() and groups:
        weights[ordinary] = _ORDINARY_TAUGHT * weights.sum() / groups / ordinary.sum()
    return weights


def _asked_weights(rows: Material, places: Rows) -> Row:
    """Harmful and ordinary prompts weigh the same."""
    return balanced_weights(rows.labels[places], [""] * len(places))
