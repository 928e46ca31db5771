"""The mixture of the axes' data on which the fused model, and the mixture baseline, are trained."""

import random
from collections.abc import Mapping, Sequence

from triune.data.nearest import unknown_name
from triune.data.splits import largest_remainder, take_prompts
from triune.errors import InputError
from triune.types import Example


def mix(
    by_axis: Mapping[str, Sequence[Example]], rng: random.Random, *, counts: Mapping[str, int] | None = None
) -> list[Example]:
    """`counts[axis]` examples of each axis, interleaved evenly.

    By default the axes have equal shares, and the mixture as many examples as there are in all.
    Within an axis the order is drawn by `rng`. An axis asked for more than it has gives all of its examples,
    each time in a new order, until the count is reached: a small axis repeats itself, which is what equal
    shares mean. Any stretch of the mixture has each axis's share to within one or two examples, so that
    batches are balanced.

    Raises InputError for an axis without data, for counts of other axes, and for counts below 1.
    """
    _check_axes(by_axis)
    if counts is None:
        counts = counts_by_weight(dict.fromkeys(by_axis, 1.0), sum(map(len, by_axis.values())))
    _check_counts(by_axis, counts)
    places = []
    for rank, (axis, examples) in enumerate(by_axis.items()):
        drawn = _draw(examples, counts[axis], rng)
        places += [((index + 0.5) / len(drawn), rank, example) for index, example in enumerate(drawn)]
    return [example for _, _, example in sorted(places, key=lambda place: place[:2])]


def joint_rows(train: Mapping[str, list[Example]], n: int | None, seed: int) -> list[Example]:
    """The mixture for stage 2 and for the mixture baseline: all rows, or `n` rows an axis; equal shares."""
    few = {axis: rows if n is None else take_prompts(rows, n, seed)[:n] for axis, rows in train.items()}
    return mix(few, random.Random(seed))


def counts_by_weight(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """How many of `total` examples each axis gives, proportional to `weights`, rounded by largest remainder.

    Raises InputError for a weight that is not above 0 or not finite, and for a total too small for every
    axis.
    """
    wrong = [axis for axis, weight in weights.items() if not 0 < weight < float("inf")]
    if wrong or not weights:
        raise InputError(f"weights {dict(weights)}: each must be above 0 and finite; leave out the axis instead.")
    counts = largest_remainder(weights, total)
    if min(counts.values()) < 1:
        raise InputError(
            f"{total} examples at weights {dict(weights)} give {counts}: every axis needs one; raise the total."
        )
    return counts


def _check_axes(by_axis: Mapping[str, Sequence[Example]]) -> None:
    if not by_axis:
        raise InputError("no axis to mix; wanted the examples of at least one.")
    for axis, examples in by_axis.items():
        if not examples:
            raise InputError(f"axis {axis!r} has no data; give it a source, or leave the axis out.")


def _check_counts(by_axis: Mapping[str, Sequence[Example]], counts: Mapping[str, int]) -> None:
    for axis in counts:
        if axis not in by_axis:
            raise unknown_name("axis", axis, by_axis)
    for axis in by_axis:
        if counts.get(axis, 0) < 1:
            raise InputError(
                f"axis {axis!r}: {counts.get(axis)} examples asked for; wanted at least 1, or leave it out."
            )


def _draw(examples: Sequence[Example], count: int, rng: random.Random) -> list[Example]:
    drawn: list[Example] = []
    while len(drawn) < count:
        drawn += rng.sample(examples, len(examples))
    return drawn[:count]
