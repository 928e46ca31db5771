"""A whole fused model against its dense base and against transformers' Mixtral with the same experts.

    python benchmarks/whole_model.py --experts 3 --rank 8 --json out.json
    python benchmarks/whole_model.py --experts 2 3 8 16 --rank 8 16 64 --json growth.json
    python benchmarks/whole_model.py --device cuda --dtype bfloat16 --d 4096 --f 11008 --layers 4 --heads 32 \
        --tokens 2048 --json gpu.json

A random Llama (about 100M parameters unless told otherwise), random experts, random routers. The Mixtral gets the
experts' weights exactly, and its logits are compared before anything is timed. Speed: all forms run alternately in
one process; medians, and ratios of medians (absolute times of shared machines mean nothing). Prefill is one prompt;
a decoding step is greedy, one token a sequence, with a cache that begins with `--prompt` tokens. Mixtral runs with
transformers' eager and grouped_mm experts. Memory: every form in a process of its own, made there with random weights;
the peak above what the process held with its libraries loaded, for prefill and decoding, and for one AdamW step
(the fused model's factors and routers; the dense base with a LoRA of the same rank on the same matrices).
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from whole_model_forms import FORMS, Settings, chosen, models, of_random_weights, placed

from triune.experts.task_vector import FFN
from triune.peak_memory import peak_memory_bytes
from triune.record import environment

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1}  # of the logits; halves send near-ties elsewhere


def parse() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shape = {"d": 768, "f": 2048, "layers": 12, "heads": 12, "vocabulary": 8192}
    work = {"tokens": 512, "prompt": 64, "steps": 8, "top-k": 2, "threads": 1, "repeats": 5}
    for name, value in {**shape, **work}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, default in {"batch": [1, 8], "experts": [3], "rank": [8]}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default)
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)  # form, task, experts, rank
    settings = parser.parse_args()
    if settings.top_k > min(settings.experts):
        parser.error(f"--top-k {settings.top_k} is more than --experts {min(settings.experts)}")
    return settings


def agreement(found: dict[str, PreTrainedModel], s: Settings, dtype: str) -> dict[str, float]:
    """How far the Mixtral's logits are from the fused model's, relative, and the share of equal greedy tokens."""
    ids = torch.randint(s.vocabulary, (2, min(s.tokens, 64)), device=s.device)
    result = {}
    ours = found["fused"](ids).logits.double()
    for form in FORMS[2:]:
        theirs = chosen(found["mixtral"], form)(ids).logits.double()
        result[f"{form}_error"] = ((ours - theirs).norm() / theirs.norm()).item()
        result[f"{form}_same_tokens"] = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
        if result[f"{form}_error"] > TOLERANCE[dtype]:
            raise SystemExit(f"the fused model and {form} differ: {result}")
    base = found["dense"](ids).logits.double()
    return {**result, "dense_error": ((ours - base).norm() / base.norm()).item()}


def seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def prefill(model: PreTrainedModel, ids: Tensor) -> Any:
    return model(input_ids=ids, use_cache=True, logits_to_keep=1)


def decode(model: PreTrainedModel, start: Any, steps: int) -> None:
    """Greedy steps after a prefill; nothing stops them."""
    out = start
    for _ in range(steps):
        token = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)


def alternating(s: Settings, run: Callable[[str], float]) -> dict[str, Any]:
    """Median seconds of every form, the first of the rounds left out, and what follows from them."""
    taken: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(s.repeats + 1):
        for form in FORMS:
            taken[form].append(run(form))
    medians = {form: statistics.median(times[1:]) for form, times in taken.items()}
    return {"median_seconds": medians, "over_dense": {form: medians[form] / medians["dense"] for form in FORMS[1:]}}


def speeds(s: Settings, found: dict[str, PreTrainedModel]) -> list[dict[str, Any]]:
    """One row for prefill and one for decoding at each batch size."""
    ids = torch.randint(s.vocabulary, (max(s.batch), max(s.tokens, s.prompt)), device=s.device)

    def model(form: str) -> PreTrainedModel:
        return chosen(found[form.split("_")[0]], form)

    def prefilling(form: str) -> float:
        own = model(form)
        return seconds(lambda: prefill(own, ids[:1, : s.tokens]), s.device)

    def decoding(form: str, batch: int) -> float:
        own = model(form)
        start = prefill(own, ids[:batch, : s.prompt])
        return seconds(lambda: decode(own, start, s.steps), s.device) / s.steps

    rows = [{"work": "prefill", "batch": 1, "tokens": s.tokens, **alternating(s, prefilling)}]
    for batch in s.batch:
        taken = alternating(s, partial(decoding, batch=batch))
        rows.append({"work": "decode", "batch": batch, "tokens": batch, **taken})
    for row in rows:
        row["tokens_per_second"] = {form: row["tokens"] / value for form, value in row["median_seconds"].items()}
    return rows


def work_for_memory(s: Settings, form: str, task: str, experts: int, rank: int) -> None:
    """What a process of its own does: make the model, then prefill and decode, or take one step of training."""
    model: Any = of_random_weights(s, form, experts, rank)
    ids = torch.randint(s.vocabulary, (1, s.tokens), device=s.device)
    if task == "inference":
        with torch.inference_mode():
            decode(model.eval(), prefill(model, ids), s.steps)
        return
    if form == "dense":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=rank, target_modules=list(FFN)), autocast_adapter_dtype=False)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith(("_a", "_b", "router.weight"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


def measured(s: Settings) -> int:
    """The peak of this process, bytes, above what it held when the work began."""
    form, task, experts, rank = s.measure or []
    torch.manual_seed(0)
    if s.device == "cuda":
        torch.zeros(1, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work_for_memory(s, form, task, int(experts), int(rank))
        return torch.cuda.max_memory_allocated() - before
    import peft  # noqa: F401  (before the baseline is taken)

    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    before = peak_memory_bytes()
    work_for_memory(s, form, task, int(experts), int(rank))
    return peak_memory_bytes() - before


@lru_cache
def peak(form: str, task: str, experts: int, rank: int) -> int:
    """Peak bytes of a form in a process of its own, with this process's other options."""
    quietly = [sys.executable, "-W", "ignore::FutureWarning"]  # peft 0.21 asks transformers under an old name
    given = [*quietly, __file__, *sys.argv[1:], "--measure", form, task, str(experts), str(rank)]
    return int(subprocess.run(given, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def memory(s: Settings, experts: int, rank: int) -> dict[str, dict[str, int]]:
    """Peak bytes of every form by task. The dense base knows of no experts, the Mixtral of no rank."""
    inference = {"dense": peak("dense", "inference", 0, 0), "fused": peak("fused", "inference", experts, rank)}
    inference |= {form: peak(form, "inference", experts, 0) for form in FORMS[2:]}
    training = {"dense_lora": peak("dense", "training", 0, rank), "fused": peak("fused", "training", experts, rank)}
    return {"inference": inference, "training_step": training}


@torch.inference_mode()
def row(s: Settings, experts: int, rank: int) -> dict[str, Any]:
    """All that is measured of one number of experts and one rank."""
    found = models(s, experts, rank)
    exact = agreement({name: model.to(s.device) for name, model in found.items()}, s, "float32")
    found = {name: placed(model, s) for name, model in found.items()}
    sizes = {name: sum(p.numel() * p.element_size() for p in model.parameters()) for name, model in found.items()}
    result = {
        "experts": experts,
        "rank": rank,
        "parameter_bytes": sizes,
        "agreement_float32": exact,
        "agreement": agreement(found, s, s.dtype),
        "speed": speeds(s, found),
    }
    del found
    if s.device == "cuda":
        torch.cuda.empty_cache()  # for the processes of `memory`
    return {**result, "peak_bytes": memory(s, experts, rank)}


def shown(result: dict[str, Any]) -> str:
    """The rows as a Markdown table; every cell but the first four is over the dense base."""
    lines = ["| E | r | work | dense | fused | mixtral_eager | mixtral_grouped_mm |", "|---" * 7 + "|"]
    for r in result["rows"]:
        head = f"| {r['experts']} | {r['rank']} |"
        for speed in r["speed"]:
            cells = [f"{speed['over_dense'][form]:.3f} × time" for form in FORMS[1:]]
            name = f"{speed['work']} {speed['batch']} × {speed['tokens'] // speed['batch']}"
            lines.append(f"{head} {name} | {speed['tokens_per_second']['dense']:.1f} tokens/s | {' | '.join(cells)} |")
        sizes, peaks = r["parameter_bytes"], r["peak_bytes"]
        by_form = {form: sizes[form.split("_")[0]] for form in FORMS}
        train = {"dense": peaks["training_step"]["dense_lora"], "fused": peaks["training_step"]["fused"]}
        for name, values in {"weights": by_form, "peak": peaks["inference"], "peak, training": train}.items():
            cells = [f"{values[form] / values['dense']:.3f}" if form in values else "" for form in FORMS[1:]]
            lines.append(f"{head} {name} | {values['dense'] / 1e6:.1f} MB | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(s: Settings) -> dict[str, Any]:
    """Versions, and what the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
    gpu = torch.cuda.get_device_name() if s.device == "cuda" else None
    return {**environment(), "cpu": cpu, "gpu": gpu, "triton": triton}


def main() -> None:
    """The command line."""
    s = parse()
    torch.set_num_threads(s.threads)
    if s.measure:
        print(measured(s))
        return
    settings = {name: value for name, value in vars(s).items() if name not in ("json", "measure")}
    result: dict[str, Any] = {"settings": settings, **machine(s), "rows": []}
    for experts in s.experts:
        for rank in s.rank:
            result["rows"].append(row(s, experts, rank))
            print(f"experts {experts}, rank {rank}: {result['rows'][-1]['agreement']}", file=sys.stderr, flush=True)
            if s.json:
                s.json.write_text(json.dumps(result, indent=1) + "\n")
    print(shown(result))


if __name__ == "__main__":
    main()
