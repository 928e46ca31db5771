"""The rule that turns the numbers of a claim into a verdict, and how the numbers are found in the result files."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from claims_asked import EACH, KINDS, LEAST, MOST, Asked, Best, Claim, Claimed, Comparison, Costs, Path, Series, at

from triune.errors import InputError
from triune.metrics.across import UNBOUNDED, Across, across, across_difference

Outcome = Literal["claimed", "opposite", "negligible", "no room", "undecided", "not yet run"]

HOLDS, FAILS, UNSEEN = "holds in kind", "does not hold", "not seen"
UNTESTABLE, NOT_RUN = "cannot be tested at this size", "not yet run"
VERDICTS = (HOLDS, FAILS, UNSEEN, UNTESTABLE, NOT_RUN)


@dataclass(frozen=True, slots=True)
class Found:
    """One line of a claim's table: a difference over seeds, or the ratios of the works; and what the rule says."""

    asked: Asked
    outcome: Outcome
    ours: tuple[str, Across] | None = None
    theirs: tuple[str, Across] | None = None
    difference: Across | None = None
    relative: Across | None = None
    works: tuple[tuple[str, float], ...] = ()

    @property
    def small(self) -> bool:
        """Whether an effect that has its sign lies within the negligible band all the same."""
        if self.difference is None or self.outcome != "claimed" or self.asked.claimed in ("little", "no worse"):
            return False
        band = KINDS[self.asked.kind].band
        return -band < self.difference.low and self.difference.high < band


def value_at(content: Any, path: Path, file: str) -> Any:
    """What stands at a path. Raises InputError where nothing does."""
    found = content
    for depth, step in enumerate(path):
        if step in (LEAST, MOST):
            step = ordered(found)[0 if step == LEAST else -1]
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError) as error:
            held = ", ".join(map(str, found))[:300] if isinstance(found, Mapping) else type(found).__name__
            place = " / ".join(map(str, path[: depth + 1]))
            raise InputError(f"{file} has no {place}; there is {held}: collect it again or mend the row") from error
    return found


def ordered(keys: Mapping[str, Any]) -> list[str]:
    """Keys from small to large: by the parameters of what they stand for, otherwise as numbers."""
    sized = all(isinstance(value, Mapping) and "parameters" in value for value in keys.values())
    return sorted(keys, key=lambda key: float(keys[key]["parameters"] if sized else key))


def values_of(series: Series, content: Any, file: str) -> tuple[str, list[float]]:
    """The label and one value a seed; NaN where a seed has none."""
    if isinstance(series, Best):
        found = {str(path[-2]): values_of(at(*path), content, file)[1] for path in series.paths}
        name = max(found, key=lambda model: float(np.nanmean(found[model])))
        return f"{name}, best of {len(found)}", found[name]
    columns = [weight * np.array(value_at(content, path, file), dtype=float) for weight, path in series.terms]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise InputError(f"{file}: {series.label} has {sorted(lengths)} seeds; wanted as many everywhere")
    return series.label, list(sum(columns) + series.constant)


def name_of(series: Series) -> str:
    """What a side is called before there is a number of it."""
    return f"best of {len(series.paths)}" if isinstance(series, Best) else series.label


def expanded(asked: Asked, content: Any) -> list[Asked]:
    """The comparison itself, or one for every key where a path has EACH."""
    if isinstance(asked, Costs):
        return [asked]
    paths = [path for side in (asked.ours, asked.theirs) if side is not None for path in _paths(side)]
    places = {path[: path.index(EACH)] for path in paths if EACH in path}
    if not places:
        return [asked]
    (place,) = places
    keys = ordered(value_at(content, place, asked.file))
    return [
        replace(
            asked,
            number=f"{asked.number} ({key})",
            ours=_put(asked.ours, key),
            theirs=None if asked.theirs is None else _put(asked.theirs, key),
        )
        for key in keys
    ]


def _paths(series: Series) -> tuple[Path, ...]:
    return series.paths if isinstance(series, Best) else tuple(path for _, path in series.terms)


def _put(series: Series, key: str) -> Series:
    def put(path: Path) -> Path:
        return tuple(key if step == EACH else step for step in path)

    if isinstance(series, Best):
        return Best(tuple(put(path) for path in series.paths))
    return replace(series, terms=tuple((weight, put(path)) for weight, path in series.terms))


def look(asked: Asked, contents: Mapping[str, Any]) -> list[Found]:
    """The numbers of one comparison (several where it is expanded) and what the rule says of each."""
    if asked.file not in contents:
        return [Found(asked, "not yet run")]
    content = contents[asked.file]
    return [_of_works(a, content) if isinstance(a, Costs) else _of_seeds(a, content) for a in expanded(asked, content)]


def _of_seeds(asked: Comparison, content: Any) -> Found:
    label, ours = values_of(asked.ours, content, asked.file)
    if asked.theirs is None:
        difference = across(ours)
        return Found(asked, outcome_of(asked, difference), (label, difference), None, difference)
    rival, theirs = values_of(asked.theirs, content, asked.file)
    if len(ours) != len(theirs):
        raise InputError(f"{asked.file}: {label} has {len(ours)} seeds, {rival} {len(theirs)}; wanted the same ones")
    # A ratio to 0 or to a negative number says nothing; NaN values fail the test as well and stay as they are.
    sensible = not any(value <= 0 for value in theirs)
    relative = across([100 * (a / b - 1) for a, b in zip(ours, theirs, strict=True)]) if sensible else None
    difference = relative if KINDS[asked.kind].relative else across_difference(ours, theirs)
    if difference is None:
        raise InputError(f"{asked.file}: {rival} has values of 0 or below, and a ratio to it was asked; mend the row")
    sides = (label, _level(asked.ours, asked, ours)), (rival, _level(asked.theirs, asked, theirs))
    outcome = outcome_of(asked, difference)
    if outcome in ("negligible", "undecided") and without_room(asked, sides[1][1]):
        outcome = "no room"
    return Found(asked, outcome, *sides, difference, relative)


def without_room(asked: Comparison, rival: Across) -> bool:
    """Whether the rival is so near the best possible percentage, by the band, that no effect could be seen."""
    low, high = _bounds(asked.theirs, asked)
    best = {"above": high - rival.value, "below": rival.value - low}
    return asked.claimed in best and best[asked.claimed] <= KINDS[asked.kind].band


def _bounds(series: Series | None, asked: Comparison) -> tuple[float, float]:
    """What one side can be: a percentage, unless the side is itself a difference."""
    plain = isinstance(series, Best) or (series is not None and all(weight > 0 for weight, _ in series.terms))
    return (0.0, 100.0) if plain and asked.kind == "points" else UNBOUNDED


def _level(series: Series, asked: Comparison, values: Sequence[float]) -> Across:
    """The mean of one side; its interval ends where what it measures does."""
    return across(values, bounds=_bounds(series, asked))


def _of_works(asked: Costs, content: Any) -> Found:
    works = []
    for name, ours, theirs in asked.works:
        against = 1.0 if theirs is None else value_at(content, theirs, asked.file)
        works.append((name, 100 * (value_at(content, ours, asked.file) / against - 1)))
    return Found(asked, outcome_of_works(asked, [value for _, value in works]), works=tuple(works))


def outcome_of(asked: Asked, found: Across) -> Outcome:
    """What an interval over seeds says of a claim; without an interval, or where all seeds agree, nothing."""
    if not math.isfinite(found.low) or not math.isfinite(found.high) or found.alike:
        return "undecided"
    return SIDES[asked.claimed](found.low, found.high, KINDS[asked.kind].band)


def outcome_of_works(asked: Costs, values: Sequence[float]) -> Outcome:
    """What ratios without seeds say: every work has to be beyond the band, which stands for the noise of repeats."""
    low, high, band = min(values), max(values), KINDS[asked.kind].band
    side = SIDES[asked.claimed]
    if asked.claimed in ("little", "no worse"):
        return side(low, high, band)
    if -band < low and high < band:
        return "negligible"
    return side(1, 1, 0) if low > band else side(-1, -1, 0) if high < -band else "undecided"


def _above(low: float, high: float, band: float) -> Outcome:
    if low > 0:
        return "claimed"
    if high < 0:
        return "opposite"
    return "negligible" if -band < low and high < band else "undecided"


def _below(low: float, high: float, band: float) -> Outcome:
    return _above(-high, -low, band)


def _apart(low: float, high: float, band: float) -> Outcome:
    found = _above(low, high, band)
    return "claimed" if found == "opposite" else found


def _little(low: float, high: float, band: float) -> Outcome:
    if -band < low and high < band:
        return "claimed"
    return "opposite" if low > band or high < -band else "undecided"


def _no_worse(low: float, high: float, band: float) -> Outcome:
    if low > -band:
        return "claimed"
    return "opposite" if high < -band else "undecided"


SIDES: dict[Claimed, Callable[[float, float, float], Outcome]] = {
    "above": _above,
    "below": _below,
    "apart": _apart,
    "little": _little,
    "no worse": _no_worse,
}


def verdict_of(claim: Claim, deciding: Sequence[Found]) -> str:
    """One verdict from everything that decides: all of it has to be as claimed, and one contrary finding refutes."""
    if not claim.decides:
        return UNTESTABLE
    outcomes = {found.outcome for found in deciding}
    if "not yet run" in outcomes:
        return NOT_RUN
    if outcomes & {"opposite", "negligible"}:
        return FAILS
    return HOLDS if outcomes == {"claimed"} else UNSEEN
