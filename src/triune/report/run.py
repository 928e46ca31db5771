"""What a finished run left behind, as the report shows it. All frozen; none computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triune.metrics.bins import Bin
from triune.types import Score


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One row of scores.json, or of breakdown.json where `group` is not empty."""

    model: str
    score: Score
    group: str = ""


@dataclass(frozen=True, slots=True)
class Latency:
    """Time of an answer over the base's: the median of `n` alternating runs, with the smallest and the largest."""

    value: float
    low: float
    high: float
    n: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model weighs, costs and was trained on. None stands for "not recorded".

    `generations` counts the answers generated for one that is shown. `absent` says why a score of it cannot be had.
    """

    parameters_total: int | None = None
    parameters_active: int | None = None
    train_steps: int | None = None
    train_examples: int | None = None
    note: str = ""
    memory_bytes: int | None = None
    generations: int | None = None
    latency: Latency | None = None
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the pipeline: wall-clock seconds and peak memory; `skipped` = taken from an earlier run."""

    name: str
    seconds: float
    peak_memory_bytes: int | None
    skipped: bool


@dataclass(frozen=True, slots=True)
class Timings:
    """Every step in the order run, the total, and the machine in words."""

    steps: tuple[Step, ...]
    total_seconds: float
    machine: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Curve:
    """A loss curve: `parts[name][i]` belongs to `steps[i]`, NaN where that step did not log the part."""

    steps: tuple[int, ...]
    parts: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Routing:
    """Mean routing weights: `mean[axis][layer][expert]` in [0, 1], over `n_tokens[axis]` tokens."""

    model: str
    experts: tuple[str, ...]
    axes: tuple[str, ...]
    mean: tuple[tuple[tuple[float, ...], ...], ...]
    n_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpertWeight:
    """What an expert's change was multiplied with, and its importance in the routing; NaN where it has none."""

    axis: str
    weight: float
    similarity: float
    importance: float


@dataclass(frozen=True, slots=True)
class Weights:
    """Every expert's weight and importance; `how` says by what similarity, to what, at what τ ("": none)."""

    experts: tuple[ExpertWeight, ...]
    how: str


@dataclass(frozen=True, slots=True)
class CalibrationScore:
    """One number about whether a confidence is an accuracy: of the routing or of answers (`kind`), of `what`.

    `group` names the prompts that it was measured on; "" are the test rows.
    """

    model: str
    kind: str
    what: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """The bins of one reliability diagram."""

    model: str
    kind: str
    what: str
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a model's representation of an axis' prompts lies from the base's, with its 95 % interval."""

    model: str
    axis: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Point:
    """One prompt in the plane that `Drift.method` drew."""

    model: str
    axis: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Drift:
    """Drift from the base: `what` was measured, the distances, and a map of single prompts."""

    what: str
    distances: tuple[Distance, ...]
    method: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One prompt with every model's answer and the judge's verdict (None: not judged)."""

    benchmark: str
    prompt: str
    answers: Mapping[str, str]
    verdicts: Mapping[str, bool | None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings used: `text` is the file word for word, `scarce` its settings of scarce data by dotted name."""

    text: str
    title: str
    about: str
    caveats: tuple[str, ...]
    scarce: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run folder. Every part but `scores` is None where its file is missing."""

    folder: Path
    scores: tuple[ModelScore, ...]
    breakdown: tuple[ModelScore, ...] | None = None
    models: Mapping[str, ModelFacts] | None = None
    timings: Timings | None = None
    curves: Mapping[str, Curve] | None = None
    routing: Routing | None = None
    weights: Weights | None = None
    calibration: tuple[CalibrationScore, ...] | None = None
    reliability: tuple[ReliabilityBins, ...] | None = None
    drift: Drift | None = None
    samples: tuple[SideBySide, ...] | None = None
    recipe: Recipe | None = None
