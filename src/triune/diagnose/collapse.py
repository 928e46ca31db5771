"""Axis collapse in numbers, for any experts of one base: forgetting, disjoint features, unreliable routing.

AlignX (arXiv 2602.07381; METHODS section 5) names three signs of it. Each stands here beside what it must be compared
with: a loss beside the base's, features under the experts beside the same rows' under the base (rows of different axes
differ in any model), a subspace's angle beside chance and beside two halves of one axis.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from triune.diagnose.probing import Held, Probe, check_alike, hold, probe
from triune.diagnose.reliability import Reliability, routing_reliability
from triune.diagnose.subspaces import SubspacePair, subspace_pair
from triune.errors import InputError
from triune.evaluation.scoring import LIKELIHOOD
from triune.fusion.opening import open_model
from triune.metrics.arrays import Values
from triune.metrics.forgetting import Forgetting, forgetting
from triune.metrics.intervals import Measure
from triune.metrics.representation import SHARE, by_prompt, cka_score
from triune.metrics.separation import METRICS, distance_ratio, distances, silhouette
from triune.models.encoding import pad_id
from triune.progress import SILENT, Progress
from triune.recipe import Base
from triune.types import Example, Score

BASE = "base"
OWN = "own experts"  # each axis's rows under that axis's expert
ALL = "all axes"
LOSS = Measure("nll", "lower", "nats/token", LIKELIHOOD)

# Opens a model when its turn comes: one at a time is in memory.
Open = Callable[[], tuple[nn.Module, PreTrainedTokenizerBase]]


@dataclass(frozen=True)
class Subjects:
    """The base; experts by name, those of an axis by the axis's (others, a merged model say, may stand beside them);
    and a fused model, or None.
    """

    base: Open
    experts: Mapping[str, Open]
    fused: Open | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """How it is measured. `rank` fixes the number of main directions; else they explain `share` of the variance."""

    batch_size: int = 64
    rank: int | None = None
    share: float = SHARE
    progress: Progress = SILENT


@dataclass(frozen=True)
class Judged:
    """A score of single answers: the base's by axis, and each expert's, of the same prompts."""

    measure: Measure
    before: Mapping[str, Values]
    after: Mapping[str, Mapping[str, Values]]


@dataclass(frozen=True, slots=True)
class Likeness:
    """Unbiased CKA of two models' states after block `layer` (from 1), on the rows of an axis or of ALL."""

    one: str
    other: str
    rows: str
    layer: int
    cka: Score


@dataclass(frozen=True, slots=True)
class Angles:
    """The subspaces of two axes' states after a block, both under the BASE or each under its own expert (OWN)."""

    one: str
    other: str
    states: str
    layer: int
    pair: SubspacePair


@dataclass(frozen=True, slots=True)
class Separation:
    """How far apart the axes' states lie after a block, under the BASE or their OWN experts, by one distance."""

    states: str
    layer: int
    metric: str
    silhouette: Score
    ratio: Score


@dataclass(frozen=True)
class Collapse:
    """All that is measured. `n_prompts` counts each axis's distinct prompts: rows of one prompt are one sample."""

    axes: tuple[str, ...]
    experts: tuple[str, ...]
    n_layers: int
    n_prompts: tuple[int, ...]
    n_left_out: int
    loss: Forgetting
    score: Forgetting | None
    likeness: tuple[Likeness, ...]
    angles: tuple[Angles, ...]
    separation: tuple[Separation, ...]
    routing: Reliability | None


def open_folders(base: Base, experts: Mapping[str, Path], fused: Path | None = None) -> Subjects:
    """Subjects from folders, each as `open_model` takes it: adapters or full models of the base."""

    def opener(folder: Path | None) -> Open:
        return lambda: open_model(folder, base)

    return Subjects(opener(None), {n: opener(f) for n, f in experts.items()}, opener(fused) if fused else None)


def measure_collapse(
    subjects: Subjects,
    examples: Sequence[Example],
    base: Base,
    look: Look,
    rng: np.random.Generator,
    judged: Judged | None = None,
) -> Collapse:
    """Look at the held-out rows with the base and every expert, one after the other, and compare.

    `base` gives template and length. Neither the experts nor the fused model's routing may have been fitted to these
    rows; nothing here can check that.

    Raises InputError for fewer than two axes, an axis without expert, rows that do not fit, an expert with another
    tokenizer, other layers or another width than the base, states that are not finite, and as `forgetting`.
    """
    axes = tuple(dict.fromkeys(e.axis for e in examples))
    _check_axes(axes, subjects.experts)
    held, probes = _probes(subjects, examples, base, look)
    left = [axis for axis in axes if axis not in held.axes]
    if left:
        raise InputError(f"no row of {left} fits in {base.max_length} tokens; raise max_length")
    return Collapse(
        axes,
        tuple(subjects.experts),
        len(probes[BASE].states),
        tuple(len({p for p, own in zip(held.prompts, held.axes, strict=True) if own == axis}) for axis in axes),
        held.n_left_out,
        _loss(probes, held, axes, rng),
        None if judged is None else forgetting(judged.measure, judged.before, judged.after, rng=rng),
        tuple(_likeness(probes, held, axes)),
        tuple(_angles(probes, held, axes, look, rng)),
        tuple(_separation(probes, held, axes)),
        _routing(subjects.fused, held, examples, base, look, rng),
    )


def _check_axes(axes: Sequence[str], experts: Mapping[str, Open]) -> None:
    missing = [axis for axis in axes if axis not in experts]
    if len(axes) < 2 or missing:
        problem = f"rows of {missing} have no expert" if missing else f"there are rows of {list(axes)} alone"
        raise InputError(
            f"{problem}; the experts are {list(experts)}: give held-out rows of two axes or more, and an expert under "
            "each axis's name"
        )
    if BASE in experts:
        raise InputError(f"an expert is called {BASE!r}, the base's own name here; give it another")


def _probes(subjects: Subjects, examples: Sequence[Example], base: Base, look: Look) -> tuple[Held, dict[str, Probe]]:
    """The rows as the base's tokenizer reads them, and every model's probe."""
    names = {BASE: subjects.base, **subjects.experts}
    probes: dict[str, Probe] = {}
    with look.progress.task("looking at held-out rows", total=len(names)) as advance:
        for name, opened in names.items():
            own, probes[name] = _probed(name, opened, examples, base, look)
            if name == BASE:
                held = own
            check_alike(name, own, held)
            shapes = [tuple(probes[n].states.shape[::2]) for n in (BASE, name)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{name!r} has {shapes[1][0]} layers of width {shapes[1][1]}, the base {shapes[0][0]} of "
                    f"{shapes[0][1]}; give experts of this base"
                )
            advance(note=name)
    return held, probes


def _probed(name: str, opened: Open, examples: Sequence[Example], base: Base, look: Look) -> tuple[Held, Probe]:
    """A function of its own, so that its model is gone when the next one is opened."""
    model, tokenizer = opened()
    held = hold(tokenizer, examples, base)
    found = probe(model, held.rows, batch_size=look.batch_size, pad_id=pad_id(tokenizer), name=repr(name))
    return held, found


def _loss(probes: Mapping[str, Probe], held: Held, axes: Sequence[str], rng: np.random.Generator) -> Forgetting:
    def by_axis(values: Sequence[Any]) -> dict[str, list[Any]]:
        return {axis: [v for v, own in zip(values, held.axes, strict=True) if own == axis] for axis in axes}

    losses = {name: by_axis(own.nll.tolist()) for name, own in probes.items()}
    after = {name: own for name, own in losses.items() if name != BASE}
    return forgetting(LOSS, losses[BASE], after, rng=rng, clusters=by_axis(held.prompts))


def _features(states: Float32[Tensor, "rows d"], held: Held, axis: str) -> Tensor:
    """One row a distinct prompt of the axis, or of all axes."""
    kept = [i for i, own in enumerate(held.axes) if axis in (own, ALL)]
    return by_prompt(states[kept], [held.prompts[i] for i in kept])


def _likeness(probes: Mapping[str, Probe], held: Held, axes: Sequence[str]) -> Iterator[Likeness]:
    for one, other in combinations(probes, 2):
        for rows in (ALL, *axes):
            for layer, (x, y) in enumerate(zip(probes[one].states, probes[other].states, strict=True), start=1):
                score = cka_score(_features(x, held, rows), _features(y, held, rows))
                yield Likeness(one, other, rows, layer, score)


def _axis_features(
    probes: Mapping[str, Probe], held: Held, axes: Sequence[str]
) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
    """(under which models, layer, each axis's features)."""
    for states in (BASE, OWN):
        models = {axis: probes[BASE if states == BASE else axis] for axis in axes}
        for layer in range(len(probes[BASE].states)):
            yield states, layer + 1, {a: _features(own.states[layer], held, a) for a, own in models.items()}


def _angles(
    probes: Mapping[str, Probe], held: Held, axes: Sequence[str], look: Look, rng: np.random.Generator
) -> Iterator[Angles]:
    for states, layer, found in _axis_features(probes, held, axes):
        for one, other in combinations(axes, 2):
            pair = subspace_pair(found[one], found[other], rng=rng, rank=look.rank, share=look.share)
            yield Angles(one, other, states, layer, pair)


def _separation(probes: Mapping[str, Probe], held: Held, axes: Sequence[str]) -> Iterator[Separation]:
    for states, layer, found in _axis_features(probes, held, axes):
        labels = [axis for axis, own in found.items() for _ in own]
        for metric in METRICS:
            between = distances(torch.cat(list(found.values())), metric)
            yield Separation(states, layer, metric, silhouette(between, labels), distance_ratio(between, labels))


def _routing(
    opened: Open | None, held: Held, examples: Sequence[Example], base: Base, look: Look, rng: np.random.Generator
) -> Reliability | None:
    if opened is None:
        return None
    model, tokenizer = opened()
    check_alike("fused", hold(tokenizer, examples, base), held)
    return routing_reliability(model, held, pad_id=pad_id(tokenizer), batch_size=look.batch_size, rng=rng)


def collapse_content(found: Collapse) -> dict[str, Any]:
    """collapse.json: scores as objects with value, low, high, n; angles in radians; NaN stays for `write_json`."""
    content = asdict(found)
    angles = [{**row.pop("pair"), **row} for row in content["angles"]]
    return {**content, "angles": angles}
