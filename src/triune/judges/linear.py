"""The trained part of a judge: a linear score of an answer, and the sigmoid that makes a probability of it.

z = w·x + b over the features x of `triune.judges.features`, fitted by logistic regression (L2, scikit-learn's
liblinear), and p = σ(s z + o), where s and o are fitted to other answers (Platt 1999). A judge that compares has
p = σ(s w·(x_response − x_other)), without b and o: swapping the answers gives 1 − p exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from triune.errors import InputError
from triune.judges.features import Counted, Features, Pair, counted, rarities, weighted

Row = Float64[np.ndarray, " n"]
_MAX_ITERATIONS = 1000
# What the gate alone adds, and the bounds of it.
_SHARE, _BOUND = 0.5, 2.0
_LENGTH = 800.0  # characters of difference at which length saturates, about the spread of AlpacaEval's answers
# How freely length explains a verdict while the rest is fitted: its coefficient is shrunk 9 times less.
_LENGTH_SCALE = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What training found. `idf` has one array a block; `coefficients` stand in the features' order.

    `gate`: another score that both have to be high with, where there is one (`joined`).
    """

    features: Features
    idf: tuple[Float64[np.ndarray, " buckets"], ...]
    coefficients: Float64[np.ndarray, " d"]
    intercept: float
    slope: float = 1.0
    offset: float = 0.0
    gate: "Fitted | None" = None


def scores(fitted: Fitted, counts: Counted) -> Row:
    """z of each text."""
    return np.asarray(weighted(fitted.features, counts, fitted.idf) @ fitted.coefficients) + fitted.intercept


def joined(z: Row, gate: Row) -> Row:
    """−ln(1 + e^(−z) + e^(−g)) + ½ min(max(g, −2), 2), z the score of an answer and g that of its prompt.

    The first part is about the smaller of z, g and 0: a product of two probabilities, so that between answers that are
    clearly safe the prompt decides little. The second lets a prompt that plainly asks for harm count a little more.
    """
    both = np.logaddexp(0.0, np.logaddexp(-z, -gate))
    return np.asarray(_SHARE * np.clip(gate, -_BOUND, _BOUND) - both)


def pair_scores(fitted: Fitted, pairs: Sequence[Pair]) -> Row:
    """z of each prompt and answer, joined with the gate's where there is one."""
    z = scores(fitted, counted(fitted.features, pairs))
    return z if fitted.gate is None else joined(z, pair_scores(fitted.gate, pairs))


def probabilities(fitted: Fitted, z: Row) -> Row:
    """σ(s z + o), from scores, or from differences of them. In a form that is exact under a change of sign."""
    return 0.5 * (1 + np.tanh(0.5 * (fitted.slope * z + fitted.offset)))


def balanced_weights(labels: Row, groups: Sequence[str]) -> Row:
    """A weight a row, so that in each group both labels weigh as much; the group keeps its size as its weight.

    Sources differ in how often the event happens in them (3 % to 50 %), which says how they were collected and nothing
    about an answer. A group with one label only has weight 0: it would teach the source.
    """
    names = np.asarray(groups)
    result = np.zeros(len(labels))
    for name in dict.fromkeys(groups):
        inside = names == name
        n, n_event = int(inside.sum()), float(labels[inside].sum())
        if 0 < n_event < n:
            result[inside] = np.where(labels[inside] == 1, n / 2 / n_event, n / 2 / (n - n_event))
    return result


def fit_single(features: Features, counts: Counted, labels: Row, weights: Row, strength: float) -> Fitted:
    """Logistic regression of the label on an answer; `strength` is scikit-learn's C.

    Raises InputError where only one label is left.
    """
    if len({float(label) for label in labels[weights > 0]}) < 2:
        raise InputError("the training answers have one label only; give answers with the event and without it.")
    idf = rarities(counts)
    coefficients, intercept = _regression(weighted(features, counts, idf), labels, weights, strength, True)
    return Fitted(features, tuple(idf), coefficients, intercept)


def fit_paired(
    features: Features, sides: tuple[Counted, Counted], labels: Row, lengths: Row, weights: Row, strength: float
) -> Fitted:
    """Logistic regression of the preference on the difference of two answers' features, without intercept.

    `labels`: 1 where the first is preferred, 0 where the second is, ½ for a tie, which is left out. `lengths`: the
    first answer's length less the second's, in characters. tanh(lengths/800) is fitted along and then thrown away, so
    that what length alone explains is not put on the words that long answers have (as length-controlled AlpacaEval
    sets its length term to 0, arXiv 2404.04475).
    """
    from scipy import sparse

    idf = rarities(sides[0] + sides[1])
    difference = weighted(features, sides[0], idf) - weighted(features, sides[1], idf)
    length = _LENGTH_SCALE * np.tanh(lengths / _LENGTH)[:, None]
    design = sparse.hstack([difference, sparse.csr_matrix(length)], format="csr")
    decided = np.flatnonzero(labels != 0.5)
    if not len(decided):
        raise InputError("all training pairs are ties; give pairs of which one is preferred.")
    # Each pair stands in both orders, so that neither side is the better one by its place.
    both = sparse.vstack([design[decided], -design[decided]], format="csr")
    found, _ = _regression(
        both,
        np.concatenate([labels[decided], 1 - labels[decided]]),
        np.tile(weights[decided], 2),
        strength,
        False,
    )
    return Fitted(features, tuple(idf), found[:-1], 0.0)


def calibrated(fitted: Fitted, z: Row, labels: Row, weights: Row, paired: bool) -> Fitted:
    """With the slope and offset under which σ(s z + o) is likeliest for other answers' labels; o = 0 where `paired`.

    Platt's targets, (n₁ + 1)/(n₁ + 2) and 1/(n₀ + 2) in place of 1 and 0, keep s finite where z separates the labels.

    Raises InputError where these have one label only, and where the slope is not above 0: nothing was learnt.
    """
    known = (labels != 0.5) & (weights > 0)
    # Both orders again, lest all labels be the same, which says nothing of a comparison.
    z, labels, weights = z[known], labels[known], weights[known]
    if paired:
        z, labels, weights = np.concatenate([z, -z]), np.concatenate([labels, 1 - labels]), np.tile(weights, 2)
    if len(set(labels.tolist())) < 2:
        raise InputError("the answers kept for calibration have one label only; give more data.")
    event = labels == 1
    n_event, n_other = int(event.sum()), int((~event).sum())
    target = np.where(event, (n_event + 1) / (n_event + 2), 1 / (n_other + 2))
    # A target between 0 and 1 is a row with each label, weighted by it.
    slope, offset = _regression(
        np.tile(z, 2)[:, None],
        np.repeat([1.0, 0.0], len(z)),
        np.concatenate([weights * target, weights * (1 - target)]),
        1e4,
        not paired,
    )
    if slope[0] <= 0:
        raise InputError("the judge learnt nothing that holds for other prompts; give more or other labelled data.")
    return replace(fitted, slope=float(slope[0]), offset=offset)


def _regression(
    design: object, labels: Row, weights: Row, strength: float, intercept: bool
) -> tuple[Float64[np.ndarray, " d"], float]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=strength, solver="liblinear", fit_intercept=intercept, max_iter=_MAX_ITERATIONS, random_state=0
    )
    model.fit(design, labels.astype(np.int64), sample_weight=weights)
    return np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0]) if intercept else 0.0
