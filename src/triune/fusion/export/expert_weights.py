"""Experts written out whole, and routers with their temperature: what native and GGUF exports store."""

import torch
from jaxtyping import Float
from torch import Tensor

from triune.experts.lowrank import LowRank
from triune.fusion.export.source import Source
from triune.models.shards import CHUNK, overflow


def expert_weight(base: Tensor, part: LowRank, dtype: torch.dtype, name: str, scale: float = 1.0) -> Tensor:
    """(W + B A) · scale, in float64 some rows at a time (the rest of the memory is the result), rounded once.

    Raises InputError where a finite number becomes infinite in `dtype`.
    """
    result = torch.empty(base.shape, dtype=dtype)
    a, b = part.a.double(), part.b.double()
    n_rows = max(1, CHUNK // base.shape[1])
    largest = 0.0
    for begin in range(0, len(base), n_rows):
        rows = slice(begin, begin + n_rows)
        wide = torch.addmm(base[rows].double(), b[rows], a, beta=scale, alpha=scale)
        result[rows] = wide
        if not result[rows].isfinite().all():
            largest = max(largest, float(wide.abs().max()))
    if largest:
        raise overflow(largest, dtype, name)
    return result


def router_weight(source: Source, layer: int) -> Float[Tensor, "experts d"]:
    """W_r / T of one layer in float64: softmax(W_r x / T + c) = softmax((W_r / T) x + c)."""
    return source.router(layer).double() / source.config.temperatures[layer]
