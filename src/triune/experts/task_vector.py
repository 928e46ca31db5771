"""A task vector T_a = θ_a − θ₀ of one expert, low-rank where it can be, and the algebra of task vectors.

Every function here is exact up to rounding in float64 and reads one change of one vector at a time, so that vectors
may be larger than memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triune.errors import InputError
from triune.experts import lowrank
from triune.experts.lazy import Lazy
from triune.experts.lowrank import Increment, LowRank
from triune.models.quantised import refuse_quantised
from triune.recipe import FFN

Reader = Callable[[], Increment]


@dataclass(frozen=True)
class TaskVector:
    """What an expert adds to the base.

    `parts` are low-rank increments by module name ("model.layers.0.mlp.gate_proj"); `others` are dense ΔW by
    parameter name ("model.norm.weight", "model.layers.0.self_attn.q_proj.bias"): everything else that it changes. Both
    may be mappings that read from disk when asked (`Lazy`). `axis` names the expert, `base_hash` the weights that it
    was trained on ("" where the maker did not say).

    Raises InputError where one weight is in both.
    """

    axis: str
    parts: Mapping[str, LowRank]
    base_hash: str = ""
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dense = set(self.others)
        twice = [name for name in self.parts if f"{name}.weight" in dense]
        if twice:
            raise InputError(
                f"expert {self.axis!r} changes {twice[0]} both by low-rank factors and densely; add them to one change"
            )


def halves(vector: TaskVector) -> tuple[TaskVector, TaskVector]:
    """(the feed-forward matrices, the rest) as task vectors, dense changes with them; reads nothing.

    The biases of the feed-forward projections belong to the rest: a mixture has them once.
    """

    def half(wanted: bool) -> TaskVector:
        parts = [name for name in vector.parts if (name.rsplit(".", 1)[-1] in FFN) == wanted]
        others = [name for name in vector.others if (name.removesuffix(".weight").rsplit(".", 1)[-1] in FFN) == wanted]
        return TaskVector(
            vector.axis,
            Lazy(parts, vector.parts.__getitem__),
            vector.base_hash,
            Lazy(others, vector.others.__getitem__),
        )

    return half(True), half(False)


def readers(vectors: Sequence[TaskVector]) -> dict[str, list[Reader | None]]:
    """By parameter name, how to read each vector's change of it; None where a vector leaves it alone."""
    found: dict[str, list[Reader | None]] = {}
    for place, vector in enumerate(vectors):
        own: dict[str, Reader] = {f"{name}.weight": partial(vector.parts.__getitem__, name) for name in vector.parts}
        own |= {name: partial(vector.others.__getitem__, name) for name in vector.others}
        for name, read in own.items():
            found.setdefault(name, [None] * len(vectors))[place] = read
    return found


def combined(vectors: Sequence[TaskVector], weights: Sequence[float], axis: str) -> TaskVector:
    """Σ_a w_a T_a, exactly, weight by weight; a weight that an expert leaves alone counts as zero there.

    A weight stays low-rank where all that change it do so; if one changes it densely, the sum is dense, added in
    float64 and rounded once. The dtype is the widest of the terms, float32 at least. The changes are read when the
    result is, one at a time, and each time anew. Raises InputError where the numbers of vectors and weights differ or
    the vectors were made for different bases; when a weight is read, where its changes are of different shapes.
    """
    if len(vectors) != len(weights) or not vectors:
        raise InputError(f"got {len(vectors)} task vectors and {len(weights)} weights; one weight each, at least one")
    base_hash = _common_hash(vectors)
    sources = readers(vectors)
    dense = {name for vector in vectors for name in vector.others}

    def terms(name: str) -> list[tuple[Reader, float]]:
        return [(read, weight) for read, weight in zip(sources[name], weights, strict=True) if read is not None]

    def part(module: str) -> LowRank:
        return lowrank.added([lowrank.scaled(_wide(read()), weight) for read, weight in terms(f"{module}.weight")])

    parts = Lazy([name.removesuffix(".weight") for name in sources if name not in dense], part)
    others = Lazy([name for name in sources if name in dense], lambda name: _sum(terms(name)))
    return TaskVector(axis, parts, base_hash, others)


def _wide(change: Increment) -> LowRank:
    if not isinstance(change, LowRank):
        raise TypeError(f"a part of a task vector is a {type(change).__name__}; parts are LowRank, others are tensors")
    wide = torch.promote_types(change.b.dtype, torch.float32)  # a weight times a factor in half precision is rounded
    return LowRank(change.b.to(wide), change.a.to(wide))


@torch.no_grad()
def _sum(terms: Sequence[tuple[Reader, float]]) -> Tensor:
    total = torch.zeros(())
    dtypes: list[torch.dtype] = []
    for read, weight in terms:
        change = read()
        own = change.b if isinstance(change, LowRank) else change
        if not dtypes:
            total = own.new_zeros(tuple(change.shape), dtype=torch.float64)
        dtypes.append(own.dtype)
        lowrank.add_into(total, change, weight)
        del change, own  # before the next is read
    return total.to(reduce(torch.promote_types, dtypes, torch.float32))


def _common_hash(vectors: Sequence[TaskVector]) -> str:
    hashes = list(dict.fromkeys(vector.base_hash for vector in vectors if vector.base_hash))
    if len(hashes) > 1:
        shown = ", ".join(value[:12] for value in hashes)
        raise InputError(f"the experts were trained on different base weights ({shown}); their sum means nothing")
    return hashes[0] if hashes else ""


def average(vectors: Sequence[TaskVector], axis: str = "average") -> TaskVector:
    """(1/E) Σ_a T_a."""
    return combined(vectors, [1 / len(vectors)] * len(vectors), axis)


def total(vectors: Sequence[TaskVector], axis: str = "sum") -> TaskVector:
    """Σ_a T_a: task arithmetic with coefficient 1."""
    return combined(vectors, [1.0] * len(vectors), axis)


def added(x: TaskVector, y: TaskVector, axis: str = "sum") -> TaskVector:
    """T_x + T_y; the ranks add (see `combined`)."""
    return combined([x, y], [1.0, 1.0], axis)


def scaled(x: TaskVector, factor: float) -> TaskVector:
    """factor · T_x, under the same name."""
    return combined([x], [factor], x.axis)


def negated(x: TaskVector) -> TaskVector:
    """−T_x, which removes the behaviour that T_x adds (arXiv 2212.04089, section 3), under the same name."""
    return scaled(x, -1.0)


def norm(vector: TaskVector) -> float:
    """‖T‖_F over everything that the vector changes."""
    return float(sum(_squared(read) for (read,) in readers([vector]).values()) ** 0.5)


def inner(x: TaskVector, y: TaskVector) -> float:
    """⟨T_x, T_y⟩: the sum over the weights that both change."""
    return float(sum(_products(one, other)[2] for one, other in readers([x, y]).values() if one and other))


def cosine(x: TaskVector, y: TaskVector) -> float:
    """⟨T_x, T_y⟩ / (‖T_x‖ ‖T_y‖) over everything that they change; NaN where either is zero."""
    rows = [_products(one, other) for one, other in readers([x, y]).values()]
    xx, yy, xy = (float(sum(column)) for column in zip(*rows, strict=True)) if rows else (0.0, 0.0, 0.0)
    scale = xx**0.5 * yy**0.5
    # Rounding may lead beyond 1 by a digit.
    return max(-1.0, min(1.0, xy / scale)) if scale else float("nan")


def _products(one: Reader | None, other: Reader | None) -> tuple[float, float, float]:
    """(⟨x, x⟩, ⟨y, y⟩, ⟨x, y⟩) of one weight, each read once."""
    if one is None or other is None:
        return _squared(one), _squared(other), 0.0
    x, y = exact(one()), exact(other())
    return lowrank.product(x, x), lowrank.product(y, y), lowrank.product(x, y)


def _squared(read: Reader | None) -> float:
    if read is None:
        return 0.0
    change = exact(read())
    return lowrank.product(change, change)


def exact(change: Increment) -> Increment:
    """The same change in the form whose products keep their digits (`lowrank.compressed`); a dense one as it is."""
    return lowrank.compressed(lowrank.double(change)) if isinstance(change, LowRank) else change


@torch.no_grad()
def apply(vector: TaskVector, model: nn.Module, factor: float = 1.0) -> None:
    """Add factor · T to the model's parameters in place.

    Each parameter is rounded once, from the sum in float64. Raises InputError as `check_fits`, before any change, and
    where one overflows the model's dtype (those before it are changed by then).
    """
    refuse_quantised(model, "adding an expert to the base's weights", "load the base without it, or keep the adapter")
    check_fits(vector, model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, (read,) in readers([vector]).items():
        weight = parameters[name]
        total = weight.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        if read is not None:
            lowrank.add_into(total, read(), factor)
        rounded = total.to(weight.dtype)
        if not rounded.isfinite().all():
            raise InputError(
                f"expert {vector.axis!r} makes {name.removesuffix('.weight')} overflow {weight.dtype}; load the base "
                "in bfloat16 or float32 (base.dtype)"
            )
        weight.copy_(rounded)


def check_fits(vector: TaskVector, model: nn.Module) -> None:
    """Raise InputError unless `model` has everything that the task vector changes, in the same shape.

    A low-rank increment needs a linear layer or an embedding with weights of its own: where the output layer is the
    embedding, adding to one would change the other. A dense change of such a weight is meant for both, so it must be
    named once.
    """
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    holders: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        holders.setdefault(id(parameter), []).append(name)
    sources, dense, alien = readers([vector]), set(vector.others), "it was made for another base model"
    for name, (read,) in sources.items():
        module, low = name.removesuffix(".weight"), name not in dense
        shown, kind = (module, "linear layer or embedding") if low else (name, "parameter")
        if name not in parameters or (low and not isinstance(modules.get(module), nn.Linear | nn.Embedding)):
            raise InputError(
                f"expert {vector.axis!r} changes {shown!r}, which the base does not have as a {kind}; {alien}"
            )
        own, shape = tuple(parameters[name].shape), _shape(read)
        if shape != own:
            raise InputError(
                f"expert {vector.axis!r} changes {shown!r} of shape {shape}, but the base's is {own}; {alien}"
            )
        same = [other for other in holders[id(parameters[name])] if other != name and (low or other in sources)]
        if same:
            way_out = "train the expert without it" if low else "name the change of both once"
            raise InputError(
                f"expert {vector.axis!r} changes {shown!r}, whose weights are also {same[0]} in this base; the change "
                f"cannot be applied to one alone: {way_out}"
            )


def _shape(read: Reader | None) -> tuple[int, ...]:
    return tuple(read().shape) if read is not None else ()


def stacked(
    parts: Sequence[LowRank | None], ranks: Sequence[int], out_in: tuple[int, int], dtype: torch.dtype
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "rank out"]]:
    """The factors of E experts for one matrix as (A, Bᵀ), each expert's rows below the one before.

    None stands for an expert that leaves this matrix alone. One whose rank here is lower than its entry in `ranks`
    (its rank differs between layers) is padded with zeros.
    """
    n_out, n_in = out_in
    zero = LowRank(torch.zeros(n_out, 0, dtype=dtype), torch.zeros(0, n_in, dtype=dtype))
    own = [lowrank.padded(part or zero, rank) for part, rank in zip(parts, ranks, strict=True)]
    return torch.cat([part.a.to(dtype) for part in own]), torch.cat([part.b.T.to(dtype) for part in own])
