"""Fitting the routing's calibration, p = softmax(z / T_l + log γ + b_l), to held-out samples whose axis is known.

What is calibrated is a sample's routing p̄, the mean of p over its tokens and over layers, because that is what is
reported: is max_a p̄_a how often the strongest expert is the sample's own? Axis a's expert is expert a. All fits
minimise the mean of −log p̄_axis in float64 (temperature and vector scaling: Guo et al. 2017, arXiv 1706.04599, §4.2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from triune.errors import InputError

T_RANGE = (1e-2, 1e2)
B_LIMIT = 100.0  # e^100: far beyond any odds that data could show
GRID = 33  # the NLL of an average of softmaxes can have several minima in T; eight points a decade
MAX_STEPS = 500
SLOPE = 1e-6  # nats per unit of log T or b; below it the fit counts as converged


@dataclass(frozen=True)
class Logits:
    """The routers' logits z of held-out samples' counted tokens.

    `sample` says which sample each token is of, 0 to n − 1 with at least one token each; `axis` each sample's axis.
    """

    values: Float[Tensor, "layers tokens experts"]
    sample: Int[Tensor, " tokens"]
    axis: Int[Tensor, " samples"]


@dataclass(frozen=True)
class Start:
    """The model's own calibration: T of each layer, b [layers][experts] (None: 0), and γ, which stays as it is."""

    temperatures: list[float]
    biases: list[list[float]] | None = None
    importance: list[float] | None = None


@dataclass(frozen=True)
class Calibration:
    """T of each layer and b [layers][experts] (Σ_a b_a = 0 in a layer where it was fitted).

    `nll_before` and `nll_after` are the objective at the start and now, in nats a sample; after is never larger.
    `n_steps` counts the optimiser's steps, over all layers; `notes` says where the fit says little, in words.
    """

    temperatures: list[float]
    biases: list[list[float]] | None
    nll_before: float
    nll_after: float
    n_steps: int
    converged: bool
    notes: tuple[str, ...] = field(default=())


def routing_nll(
    logits: Logits, temperatures: Float[Tensor, " layers"], bias: Float[Tensor, "layers experts"]
) -> Float[Tensor, ""]:
    """The mean over samples of −log p̄_axis, p̄ the mean over a sample's tokens and layers of softmax(z / T + bias).

    In nats. Taken from logarithms, so that a p of e^−3000 has a value and a slope.
    """
    n_layers = len(logits.values)
    scaled = logits.values.double() / temperatures[:, None, None] + bias[:, None, :]
    own = logits.axis[logits.sample].long().expand(n_layers, -1)
    log_probs = scaled.log_softmax(-1).gather(-1, own[..., None]).reshape(-1)
    sample, n = logits.sample.long().repeat(n_layers), len(logits.axis)
    # log Σ exp by sample, shifted by the largest; the shift cancels, so it needs no gradient.
    largest = log_probs.new_full((n,), -math.inf).scatter_reduce(0, sample, log_probs.detach(), "amax")
    sums = log_probs.new_zeros(n).index_add(0, sample, (log_probs - largest[sample]).exp())
    return (sample.bincount(minlength=n).double().log() - sums.log() - largest).mean()


def fit_temperature(logits: Logits, start: Start, *, least: int) -> Calibration:
    """One T for all layers; b stays. Raises InputError as `check_logits` does."""
    return _fit_whole(logits, start, least, with_bias=False)


def fit_temperatures(logits: Logits, start: Start, *, least: int) -> Calibration:
    """One T a layer, each fitted to that layer's own p̄_l; b stays.

    The objective, before and after, is the mean over layers of the NLL of p̄_l. It bounds the NLL of p̄ from above
    (−log is convex), but p̄'s own can rise where it falls. Raises InputError as `check_logits` does.
    """
    return _fit_layers(logits, start, least, with_bias=False)


def fit_bias(logits: Logits, start: Start, *, least: int) -> Calibration:
    """One T and one bias an expert for all layers (vector scaling with one scale), from the start's means.

    Raises InputError as `check_logits` does.
    """
    return _fit_whole(logits, start, least, with_bias=True)


def fit_biases(logits: Logits, start: Start, *, least: int) -> Calibration:
    """T and a bias an expert for each layer, fitted to its own p̄_l; the objective is that of `fit_temperatures`.

    Raises InputError as `check_logits` does.
    """
    return _fit_layers(logits, start, least, with_bias=True)


FITS: dict[str, Callable[..., Calibration]] = {
    "temperature": fit_temperature,
    "layer_temperature": fit_temperatures,
    "vector": fit_bias,
    "layer_vector": fit_biases,
}


def check_logits(logits: Logits, start: Start, least: int) -> None:
    """Raises InputError for what no fit can use: NaN and infinite logits; a sample without tokens or with an axis that
    has no expert; an axis with fewer than `least` samples; a start of another shape, T ≤ 0 or γ ≤ 0.
    """
    n_layers, _, n_experts = logits.values.shape
    wrong = ~logits.values.isfinite()
    if wrong.any():
        layer, token, expert = wrong.nonzero()[0].tolist()
        raise InputError(
            f"routing logit of layer {layer}, token {token}, expert {expert} is "
            f"{float(logits.values[layer, token, expert])}; wanted finite numbers: "
            "an expert or a router holds NaN (`triune check` names the expert)"
        )
    _check_samples(logits, n_experts, least)
    _check_start(start, n_layers, n_experts)


def _check_samples(logits: Logits, n_experts: int, least: int) -> None:
    n = len(logits.axis)
    if ((logits.sample < 0) | (logits.sample >= n)).any():
        raise InputError(f"a token is of sample {int(logits.sample.max())}; wanted 0 to {n - 1}, one of {n} samples")
    if ((logits.axis < 0) | (logits.axis >= n_experts)).any():
        raise InputError(f"axes {sorted(set(logits.axis.tolist()))}; wanted 0 to {n_experts - 1}, one an expert")
    n_tokens = logits.sample.long().bincount(minlength=n)
    if (n_tokens == 0).any():
        raise InputError(f"sample {int((n_tokens == 0).nonzero()[0])} has no token that counts; leave it out")
    counts = logits.axis.long().bincount(minlength=n_experts).tolist()
    few = [f"axis {axis} has {count}" for axis, count in enumerate(counts) if count < max(1, least)]
    if few:
        raise InputError(
            f"held-out samples: {', '.join(few)}; wanted at least {max(1, least)} of every axis. "
            "Give more held-out rows, or leave the calibration out: T would be fitted to chance"
        )


def _check_start(start: Start, n_layers: int, n_experts: int) -> None:
    rows = start.biases or [[0.0] * n_experts] * n_layers
    importance = start.importance or [1.0] * n_experts
    shape = (len(start.temperatures), len(rows), {len(row) for row in rows} | {len(importance)})
    if shape != (n_layers, n_layers, {n_experts}):
        raise InputError(
            f"{shape[0]} temperatures, {shape[1]} rows of biases, rows of {sorted(shape[2])} numbers; "
            f"wanted those of {n_layers} layers and {n_experts} experts"
        )
    if not all(0 < t < math.inf for t in start.temperatures):
        raise InputError(f"temperatures {start.temperatures}; wanted positive numbers: set fuse.temperature to 1")
    if not all(0 < gamma < math.inf for gamma in importance) or not np.isfinite(rows).all():
        raise InputError(f"importance {importance} and biases {rows}; wanted positive γ and finite biases")


@dataclass(frozen=True)
class _Fitted:
    """`point` is log T, then b where it was fitted."""

    point: Float[np.ndarray, " parameters"]
    nll: float
    n_steps: int
    converged: bool


def _fit_whole(logits: Logits, start: Start, least: int, *, with_bias: bool) -> Calibration:
    """One T, and one b where wanted, for all layers of `logits`."""
    check_logits(logits, start, least)
    n_layers, _, n_experts = logits.values.shape
    log_gamma = torch.tensor(start.importance or [1.0] * n_experts, dtype=torch.float64).log()
    device = logits.values.device
    biases = torch.tensor(start.biases or [[0.0] * n_experts] * n_layers, dtype=torch.float64)
    temperatures = torch.tensor(start.temperatures, dtype=torch.float64)
    before = float(routing_nll(logits, temperatures.to(device), (log_gamma + biases).to(device)))
    fixed = log_gamma.expand(n_layers, -1) if with_bias else log_gamma + biases
    middle = (biases - biases.mean(1, keepdim=True)).mean(0) if with_bias else biases[0, :0]
    fitted = _fit(logits, fixed.to(device), torch.cat([temperatures.log().mean()[None], middle]))
    if fitted.nll >= before:
        notes = ("no better calibration of this kind was found; the model's own is kept",) if fitted.n_steps else ()
        return Calibration(start.temperatures, start.biases, before, before, fitted.n_steps, fitted.converged, notes)
    # Only differences of b count; its sum is set to 0.
    bias = (fitted.point[1:] - fitted.point[1:].mean()).tolist() if with_bias else []
    return Calibration(
        [math.exp(fitted.point[0])] * n_layers,
        [bias] * n_layers if with_bias else start.biases,
        before,
        fitted.nll,
        fitted.n_steps,
        fitted.converged,
        _bound_notes(fitted.point),
    )


def _fit_layers(logits: Logits, start: Start, least: int, *, with_bias: bool) -> Calibration:
    """`_fit_whole` of every layer by itself, put together."""
    check_logits(logits, start, least)
    parts = [
        _fit_whole(
            Logits(logits.values[layer : layer + 1], logits.sample, logits.axis),
            Start([temperature], start.biases and [start.biases[layer]], start.importance),
            least,
            with_bias=with_bias,
        )
        for layer, temperature in enumerate(start.temperatures)
    ]
    # A layer whose own bias was kept where the model has none: none is zeros.
    zeros = [0.0] * logits.values.shape[-1]
    rows = [part.biases[0] if part.biases else zeros for part in parts]
    return Calibration(
        [part.temperatures[0] for part in parts],
        rows if any(part.biases for part in parts) else None,
        math.fsum(part.nll_before for part in parts) / len(parts),
        math.fsum(part.nll_after for part in parts) / len(parts),
        sum(part.n_steps for part in parts),
        all(part.converged for part in parts),
        tuple(f"layer {layer + 1}: {note}" for layer, part in enumerate(parts) for note in part.notes),
    )


def _fit(logits: Logits, fixed: Float[Tensor, "layers experts"], start: Float[Tensor, " parameters"]) -> _Fitted:
    """Minimises the NLL over log T and, where `start` goes on, b; from the best of the start and a grid in T."""
    from scipy.optimize import minimize

    def value(parameters: Tensor) -> Tensor:
        there = parameters.to(fixed.device)
        bias = fixed + there[1:] if len(parameters) > 1 else fixed
        return routing_nll(logits, there[0].exp().expand(len(fixed)), bias)

    def slope(point: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        nll = value(parameters)
        return float(nll.detach()), torch.autograd.grad(nll, parameters)[0].numpy()

    first = start.numpy()
    low, high = min(math.log(T_RANGE[0]), first[0]), max(math.log(T_RANGE[1]), first[0])
    grid = [np.concatenate([[log_t], first[1:]]) for log_t in np.linspace(low, high, GRID)]
    # The start is the first of equals: where T makes no difference it stays.
    best = min([first, *grid], key=lambda point: float(value(torch.tensor(point))))
    bounds = [(low, high), *((-B_LIMIT, B_LIMIT) for _ in first[1:])]
    options = {"maxiter": MAX_STEPS, "ftol": 1e-15, "gtol": SLOPE / 100}
    found = minimize(slope, best, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    nll, gradient = slope(found.x)
    lows, highs = np.array(bounds).T
    # At a bound only the slope that leads back inside counts.
    gradient = np.where(found.x <= lows, np.minimum(gradient, 0), gradient)
    gradient = np.where(found.x >= highs, np.maximum(gradient, 0), gradient)
    return _Fitted(found.x, nll, int(found.nit), bool(np.abs(gradient).max() <= SLOPE))


def _bound_notes(point: Float[np.ndarray, " parameters"]) -> tuple[str, ...]:
    temperature, notes = math.exp(point[0]), []
    ends = ((temperature < T_RANGE[0] * 1.0001, "sharper"), (temperature > T_RANGE[1] * 0.9999, "flatter"))
    for reached, kind in ends:
        if reached:
            notes.append(
                f"T = {temperature:g} is the end of its range: {kind} routing is always better on these samples, so "
                "they do not determine T; give more held-out rows, or keep the model's own"
            )
    if np.abs(point[1:]).max(initial=0) >= B_LIMIT:
        notes.append(f"a bias is at the end of its range, {B_LIMIT:g}: these samples do not determine it")
    return tuple(notes)
