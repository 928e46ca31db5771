"""What a claim asks of the result files: the words of the rows.

A `Claim` names what has to be compared; a `Comparison` is over seeds and paired by seed, `Costs` are ratios of one
machine without seeds. Nothing here knows a paper: the rows are in the modules `claims_h3fusion`, `claims_trinityx`,
`claims_alignx` and `claims_ours`; `claims_rules` looks the numbers up and judges, `claims` writes the page.
"""

from dataclasses import dataclass
from typing import Literal

Path = tuple[str | int, ...]  # the steps into a result file
EACH, LEAST, MOST = "<each>", "<least>", "<most>"  # of numbered or sized keys: all in turn, the first, the last
Claimed = Literal["above", "below", "apart", "little", "no worse"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of difference: its unit, the negligible band (a difference within ∓band is none), digits to print."""

    about: str
    unit: str
    band: float
    digits: int
    relative: bool = False  # 100 (ours/theirs − 1) instead of ours − theirs


# One band for each kind of number, so that none is chosen for a row. Two points are four prompts of the helpful test.
KINDS = {
    "points": Kind("scores, over-refusal, misrouting", "points", 2.0, 1),
    "calibration": Kind("ECE and Brier", "", 0.02, 3),
    "nats": Kind("losses", "nats a token", 0.05, 2),
    "weight": Kind("routing weights", "", 0.02, 3),
    "share": Kind("silhouettes and CKA", "", 0.02, 3),
    "degrees": Kind("angles", "°", 5.0, 1),
    "relative": Kind("norms, distances, error rates and latencies, relative", "%", 5.0, 1, relative=True),
    "cost": Kind("time and memory side by side, relative", "%", 5.0, 1, relative=True),
    "about": Kind("“about as much”, of time and memory", "%", 15.0, 1, relative=True),
}


@dataclass(frozen=True, slots=True)
class Sum:
    """One value a seed: Σ weight · (what stands at the path) + constant."""

    terms: tuple[tuple[float, Path], ...]
    label: str
    constant: float = 0.0


@dataclass(frozen=True, slots=True)
class Best:
    """What stands at the one of several paths that has the largest mean over seeds: the strongest rival."""

    paths: tuple[Path, ...]


Series = Sum | Best


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against theirs (against 0 without), seed by seed, and on which side the claim puts the difference."""

    number: str
    file: str
    ours: Series
    theirs: Series | None = None
    claimed: Claimed = "above"
    kind: str = "points"


@dataclass(frozen=True, slots=True)
class Costs:
    """Ratios of one machine: by a name of the work, the path of ours and of theirs (None: the value is a ratio)."""

    number: str
    file: str
    works: tuple[tuple[str, Path, Path | None], ...]
    ours: str
    theirs: str
    claimed: Claimed = "below"
    kind: str = "cost"


Asked = Comparison | Costs


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim in our words, what decides about it (all of it has to agree), what is shown beside, and the rest.

    `published` is the paper's relative figure in per cent. A claim without `decides` says in `untestable` why.
    """

    claim: str
    where: str
    change: str  # what would change our mind
    decides: tuple[Asked, ...] = ()
    beside: tuple[Asked, ...] = ()
    published: float | None = None
    note: str = ""
    untestable: str = ""


def at(*path: str | int) -> Sum:
    """The values at one path."""
    return Sum(((1.0, path),), str(path[-2]) if len(path) > 1 else str(path[0]))


def mean_of(label: str, *paths: Path) -> Sum:
    """The mean of the values at several paths."""
    return Sum(tuple((1.0 / len(paths), path) for path in paths), label)


def less(label: str, *paths: Path) -> Sum:
    """The values at the first path less those at the second."""
    first, second = paths
    return Sum(((1.0, first), (-1.0, second)), label)


def models(
    file: str, number: str, ours: str, theirs: str, claimed: Claimed = "above", kind: str = "points"
) -> Comparison:
    """A number of two models of a result file."""
    return Comparison(
        number, file, at("models", ours, number), at("models", theirs, number), claimed=claimed, kind=kind
    )
