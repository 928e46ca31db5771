"""One mixture in every form: what of TrinityX's "57 % less time, 40 % less memory than a dense MoE" each one gives.

    python benchmarks/trinityx_forms.py --json docs/results/trinityx_forms.json

A random Llama of about 97M parameters, three random experts of rank 8, random routers. "dense MoE": every expert
written out whole, all of them computed for all tokens and mixed; "unfactored": transformers' Mixtral (eager) with the
same weights, k = 1, 2, 3; "factored": the fused model, k = 1, 2, 3; "dense base": one block, no experts. Logits are
compared before anything is timed. Work: prefill of one prompt, and greedy decoding steps with a cache. All forms run
in turn in one process; a ratio is the median over the rounds of a form's time over the dense MoE's in the same round,
of wall time and of the process's own CPU time (other jobs do not enter that). Memory: the weights, and the peak of a
process of its own above what it held with its libraries loaded, for prefill and decoding.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from whole_model import decode, machine, prefill
from whole_model_forms import Settings, models, of_random_weights

from triune.record import peak_memory_bytes, write_json

CLAIM = {"time": 0.57, "memory": 0.40}  # TrinityX (arXiv 2509.08486): "up to", against a dense MoE
LIMIT = 1e-4  # of the difference of logits, relative


@dataclass(frozen=True, slots=True)
class Form:
    """A model of whole_model_forms, how many experts a token takes, and whether all are computed anyway."""

    model: str
    k: int = 0
    all_computed: bool = False


FORMS = {
    "dense_moe": Form("mixtral", 3, all_computed=True),
    "unfactored_k3": Form("mixtral", 3),
    "unfactored_k2": Form("mixtral", 2),
    "unfactored_k1": Form("mixtral", 1),
    "factored_k3": Form("fused", 3),
    "factored_k2": Form("fused", 2),
    "factored_k1": Form("fused", 1),
    "dense_base": Form("dense"),
}
AGAINST = ("dense_moe", "unfactored_k2")  # the two meanings of "a dense MoE": all three experts, and Mixtral's two


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


def parse() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shape = {"d": 768, "f": 2048, "layers": 12, "heads": 12, "vocabulary": 8192, "rank": 8}
    work = {"tokens": 512, "prompt": 64, "steps": 8, "threads": 1, "repeats": 7}
    for name, value in {**shape, **work}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=list(FORMS), help=argparse.SUPPRESS)
    s = parser.parse_args()
    s.dtype, s.device, s.top_k = "float32", "cpu", 3
    return s


def as_form(model: PreTrainedModel, form: Form) -> PreTrainedModel:
    """The model with the form's k, and its experts run as the form says. The weights stay where they are."""
    if form.model == "fused":
        for mixture in model.mixtures():
            mixture.top_k = form.k
    if form.model == "mixtral":
        model.set_experts_implementation("eager")
        for layer in model.model.layers:
            layer.mlp.gate.top_k = form.k
            own = vars(layer.mlp).setdefault("own", layer.mlp.experts)  # not a submodule: no weight is counted twice
            layer.mlp.experts = AllExperts(own) if form.all_computed else own
    return model


def agreement(found: dict[str, PreTrainedModel], s: Settings) -> dict[str, float]:
    """How far each form's logits are from the factored model's of the same k, relative."""
    ids, result = torch.randint(s.vocabulary, (2, 64)), {}
    for name, form in FORMS.items():
        if form.model != "mixtral":
            continue
        wanted = as_form(found["fused"], Form("fused", form.k))(ids).logits.double()
        result[name] = ((as_form(found["mixtral"], form)(ids).logits.double() - wanted).norm() / wanted.norm()).item()
        if result[name] > LIMIT:
            raise SystemExit(f"{name} and the factored form differ: {result}")
    return result


def seconds(work: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def rounds(s: Settings, run: Callable[[PreTrainedModel], dict[str, float]], found: dict[str, PreTrainedModel]) -> Any:
    """For wall and CPU time: every form's median seconds, and its median ratio to others of the same round."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in FORMS}
    for _ in range(s.repeats + 1):  # the first warms up
        for name, form in FORMS.items():
            taken[name].append(run(as_form(found[form.model], form)))
    result = {}
    for clock in ("wall", "cpu"):
        times = {name: [each[clock] for each in values[1:]] for name, values in taken.items()}
        result[clock] = {"median_seconds": {name: statistics.median(values) for name, values in times.items()}}
        for other in AGAINST:
            result[clock][f"over_{other}"] = {
                name: statistics.median(x / y for x, y in zip(values, times[other], strict=True))
                for name, values in times.items()
            }
    return result


@torch.inference_mode()
def speeds(s: Settings, found: dict[str, PreTrainedModel]) -> list[dict[str, Any]]:
    """One row for prefill and one for decoding at each batch size."""
    ids = torch.randint(s.vocabulary, (max(s.batch), max(s.tokens, s.prompt)))

    def decoding(model: PreTrainedModel, batch: int) -> dict[str, float]:
        start = prefill(model, ids[:batch, : s.prompt])
        taken = seconds(lambda: decode(model, start, s.steps))
        return {clock: value / s.steps for clock, value in taken.items()}

    work = {("prefill", 1): lambda model: seconds(lambda: prefill(model, ids[:1, : s.tokens]))}
    work |= {("decode", n): lambda model, n=n: decoding(model, n) for n in s.batch}
    rows = []
    for (what, batch), run in work.items():
        rows.append({"work": what, "batch": batch, "load_before": os.getloadavg(), **rounds(s, run, found)})
        print(what, batch, rows[-1]["cpu"]["over_dense_moe"], file=sys.stderr, flush=True)
    return rows


@torch.inference_mode()
def measured(s: Settings) -> int:
    """This process's peak, bytes, above what it held when the work began."""
    form = FORMS[s.measure]
    torch.manual_seed(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    before = peak_memory_bytes()
    made = of_random_weights(s, {"mixtral": "mixtral_eager"}.get(form.model, form.model), 3, s.rank)
    model = as_form(made.eval(), form)
    decode(model, prefill(model, torch.randint(s.vocabulary, (1, s.tokens))), s.steps)
    return peak_memory_bytes() - before


def peak(form: str) -> int:
    """Peak bytes of a form in a process of its own, with this process's other options."""
    given = [sys.executable, __file__, *sys.argv[1:], "--measure", form]
    return int(subprocess.run(given, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def less(values: dict[str, float], other: str) -> dict[str, float]:
    """1 - value / the other's value."""
    return {name: 1 - value / values[other] for name, value in values.items()}


def reductions(rows: list[dict[str, Any]], weights: dict[str, float], peaks: dict[str, float]) -> dict[str, Any]:
    """What each form takes less than each kind of dense MoE: CPU time of every work, weights and peak."""
    return {
        other: {
            **{
                f"{row['work']}_{row['batch']}": {name: 1 - x for name, x in row["cpu"][f"over_{other}"].items()}
                for row in rows
            },
            "weights": less(weights, other),
            "peak": less(peaks, other),
        }
        for other in AGAINST
    }


def shown(result: dict[str, Any]) -> str:
    """Markdown: per cent less than the dense MoE."""
    table = result["less_than"]["dense_moe"]
    lines = [f"| less than the dense MoE, % | {' | '.join(table)} |", "|---" * (len(table) + 1) + "|"]
    for name in FORMS:
        lines.append(f"| {name} | {' | '.join(f'{100 * column[name]:.0f}' for column in table.values())} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    s = parse()
    torch.set_num_threads(s.threads)
    if s.measure:
        print(measured(s))
        return
    settings = {name: value for name, value in vars(s).items() if name not in ("json", "measure", "top_k")}
    found = models(s, 3, s.rank)
    with torch.inference_mode():
        agrees = agreement(found, s)
    sizes = {name: sum(p.numel() * p.element_size() for p in model.parameters()) for name, model in found.items()}
    rows = speeds(s, found)
    del found
    weights = {name: float(sizes[form.model]) for name, form in FORMS.items()}
    peaks = {name: float(peak(name)) for name in FORMS}
    result = {"settings": settings, **machine(s), "claim": CLAIM, "agreement": agrees, "speed": rows}
    result |= {"weight_bytes": weights, "peak_bytes": peaks, "less_than": reductions(rows, weights, peaks)}
    if s.json:
        write_json(s.json, result)
    print(shown(result))


if __name__ == "__main__":
    main()
