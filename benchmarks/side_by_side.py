"""Forms of one model, run in turn: times as ratios within a round, and peak memory in a process of its own.

What trinityx_forms.py and alignx_forms.py share. A ratio is the median over the rounds of a form's time over another
form's in the same round, of wall time and of the process's own CPU time (other jobs hardly enter that).
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from triune.peak_memory import peak_memory_bytes

Times = dict[str, float]  # "wall" and "cpu", seconds


class AllExperts(nn.Module):
    """Σ_a w_a FFN_a(x), every expert computed for every token: a dense MoE."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj, self.act_fn = experts.gate_up_proj, experts.down_proj, experts.act_fn

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        mixing = x.new_zeros(len(x), len(self.gate_up_proj)).scatter(1, chosen, weights.to(x.dtype))
        result = torch.zeros_like(x)
        for index, (gate_up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
            result += mixing[:, index, None] * F.linear(self.act_fn(gate) * up, down)
        return result


def unfactored(mixtral: PreTrainedModel, k: int, *, all_computed: bool) -> PreTrainedModel:
    """The Mixtral with k experts a token, eager, or with all of them computed. The weights stay where they are."""
    mixtral.set_experts_implementation("eager")
    for layer in mixtral.model.layers:
        layer.mlp.gate.top_k = k
        own = vars(layer.mlp).setdefault("own", layer.mlp.experts)  # not a submodule: no weight is counted twice
        layer.mlp.experts = AllExperts(own) if all_computed else own
    return mixtral


def factored(fused: PreTrainedModel, k: int) -> PreTrainedModel:
    """The fused model with k experts a token."""
    for mixture in fused.mixtures():
        mixture.top_k = k
    return fused


def difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def seconds(work: Callable[[], object]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def rounds(runs: Mapping[str, Callable[[], Times]], repeats: int, against: Sequence[str]) -> dict[str, Any]:
    """For wall and CPU time: every form's median seconds, and its median ratio to others of the same round."""
    taken: dict[str, list[Times]] = {name: [] for name in runs}
    for _ in range(repeats + 1):  # the first warms up
        for name, run in runs.items():
            taken[name].append(run())
    result: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        times = {name: [each[clock] for each in values[1:]] for name, values in taken.items()}
        result[clock] = {"median_seconds": {name: statistics.median(values) for name, values in times.items()}}
        for other in against:
            result[clock][f"over_{other}"] = {
                name: statistics.median(x / y for x, y in zip(values, times[other], strict=True))
                for name, values in times.items()
            }
    return result


def above_start(work: Callable[[], object]) -> int:
    """This process's peak while it works, bytes, above what it held when the work began."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    before = peak_memory_bytes()
    work()
    return peak_memory_bytes() - before


def peak(script: str, form: str) -> int:
    """What `script --measure form` prints in a process of its own, with this process's other options."""
    given = [sys.executable, "-W", "ignore::FutureWarning", script, *sys.argv[1:], "--measure", form]
    return int(subprocess.run(given, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
