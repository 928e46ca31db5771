"""Merging three fine-tunes of a random Llama on disk: ours against mergekit's, in time and peak memory.

    python benchmarks/merging.py --json docs/results/merging.json

The models (TinyLlama's shape by default, 1.1 billion parameters in bfloat16) are made below --place and deleted
afterwards. Each merge runs in a process of its own, the two libraries one after the other, on the same folders, with
the same number of threads, float32 arithmetic and bfloat16 output. "seconds" are those of the merge without the
imports (ours with the check of every weight, which mergekit does not make), "cpu_seconds" the processor's, which other
processes disturb less, "resident" is the process's high-water mark (VmHWM). Both outputs are then compared.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_models import Shape, save_models
from triune.baseline_settings import Merges
from triune.models.store import iterate_tensors
from triune.peak_memory import peak_memory_bytes

# mergekit's parameters for the same formula with our defaults.
MERGEKIT: dict[str, Callable[[Any], dict[str, float | bool]]] = {
    "linear": lambda own: {"weight": 1.0},
    "task_arithmetic": lambda own: {"weight": 1.0, "lambda": own.scale},
    "ties": lambda own: {"weight": 1.0, "density": own.density, "lambda": own.scale},
    "dare_linear": lambda own: {"weight": 1.0, "density": own.density, "lambda": own.scale},
    "dare_ties": lambda own: {"weight": 1.0, "density": own.density, "lambda": own.scale},
    "della": lambda own: {"weight": 1.0, "density": own.density, "epsilon": own.epsilon, "lambda": own.scale},
    "breadcrumbs": lambda own: {"weight": 1.0, "density": own.density, "gamma": own.gamma, "lambda": own.scale},
    "model_stock": lambda own: {},
    "slerp": lambda own: {"t": own.t},
}
RANDOM = ("dare_linear", "dare_ties", "della")  # whose entries depend on the random numbers drawn
PAIR = ("slerp",)  # merges of two models
IMPORTED = {
    "triune": ("triune.experts.full", "triune.merges.writing"),
    "mergekit": ("mergekit.config", "mergekit.merge", "mergekit.options"),
}
LIBRARIES = ("triune", "mergekit")


def experts_of(method: str, place: Path) -> list[Path]:
    """The fine-tunes that a method merges."""
    found = sorted(place.glob("expert*"))
    return found[:2] if method in PAIR else found


def with_triune(method: str, place: Path, out: Path) -> None:
    """Our merge: the fine-tunes are opened (and every weight of them looked at), then merged."""
    from triune.experts.full import full_changes
    from triune.merges.table import MERGES
    from triune.merges.writing import Options, write_merge

    base = place / "base"
    changes = [full_changes(folder.name, folder, base, scan=False) for folder in experts_of(method, place)]
    write_merge(base, changes, MERGES[method], getattr(Merges(), method), out, Options(dtype=torch.bfloat16))


def with_mergekit(method: str, place: Path, out: Path) -> None:
    """mergekit's merge."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    base, experts = str(place / "base"), experts_of(method, place)
    parameters = MERGEKIT[method](getattr(Merges(), method))
    config = {
        "merge_method": method,
        "models": [{"model": str(folder)} for folder in experts],
        "parameters": parameters,
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if method in PAIR:  # the first model is its base
        config |= {"base_model": str(experts[0])}
    elif method != "linear":
        config |= {"base_model": base}
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=0)
    run_merge(MergeConfiguration.model_validate(config), str(out), options)


def worker(library: str, method: str, place: Path, out: Path, threads: int) -> dict[str, float]:
    """One merge in this process."""
    torch.set_num_threads(threads)
    for name in IMPORTED[library]:  # not part of what is timed
        import_module(name)
    merge = {"triune": with_triune, "mergekit": with_mergekit}[library]
    began, used = time.perf_counter(), time.process_time()
    merge(method, place, out)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - used,
        "resident_mb": peak_memory_bytes() / 1e6,
    }


def merged_apart(library: str, method: str, place: Path, threads: int) -> dict[str, float]:
    """One merge in a process of its own, into a fresh folder."""
    out = place / f"out-{library}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = [sys.executable, "-m", "benchmarks.merging", "--worker", library, method, str(place), str(out)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{library} {method}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def agreement(place: Path) -> dict[str, float]:
    """How far the two outputs are apart, and both changes' norms and cosine."""
    total: dict[str, float] = dict.fromkeys(("n", "n_apart", "xx", "yy", "xy", "max"), 0.0)
    for base, x, y in _triples(place):
        own, other = x - base, y - base
        gap = (x - y).abs()
        total["n"] += gap.numel()
        total["n_apart"] += int(gap.count_nonzero())
        total["max"] = max(total["max"], float(gap.max()))
        for key, (a, b) in {"xx": (own, own), "yy": (other, other), "xy": (own, other)}.items():
            total[key] += float(torch.dot(a.flatten(), b.flatten()))
    scale = (total["xx"] * total["yy"]) ** 0.5
    return {
        "max_difference": total["max"],
        "share_of_entries_apart": total["n_apart"] / total["n"],
        "norm_ratio": (total["xx"] / total["yy"]) ** 0.5 if total["yy"] else float("nan"),
        "cosine": total["xy"] / scale if scale else float("nan"),
    }


def _triples(place: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Every parameter of the base, of our output and of mergekit's, in float32, a slice at a time."""
    folders = [place / "base", *(place / f"out-{library}" for library in LIBRARIES)]
    for items in zip(*map(iterate_tensors, folders), strict=True):
        names = {name for name, _ in items}
        if len(names) > 1:
            raise ValueError(f"the outputs have other tensors: {sorted(names)}")
        for base, x, y in zip(*(tensor.flatten().split(1 << 22) for _, tensor in items), strict=True):
            yield base.float(), x.float(), y.float()


def compared(method: str, place: Path, repeats: int, threads: int) -> dict[str, Any]:
    """One method's row: alternating runs of both libraries, and how their outputs agree."""
    runs: dict[str, list[dict[str, float]]] = {library: [] for library in LIBRARIES}
    for _ in range(repeats):
        for library in LIBRARIES:
            runs[library].append(merged_apart(library, method, place, threads))
    row: dict[str, Any] = {"method": method, "random": method in RANDOM}
    for library, own in runs.items():
        row[f"{library}_seconds"] = statistics.median(run["seconds"] for run in own)
        row[f"{library}_cpu_seconds"] = statistics.median(run["cpu_seconds"] for run in own)
        row[f"{library}_seconds_all"] = [run["seconds"] for run in own]
        row[f"{library}_resident_mb"] = max(run["resident_mb"] for run in own)
    row["time_ratio"] = row["triune_seconds"] / row["mergekit_seconds"]
    row["cpu_ratio"] = row["triune_cpu_seconds"] / row["mergekit_cpu_seconds"]
    return {**row, **agreement(place)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("layers", "hidden", "ffn", "vocab"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Shape(), name))
    parser.add_argument("--methods", nargs="+", choices=MERGEKIT, default=list(MERGEKIT))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        library, method, place, out = given.worker
        print(json.dumps(worker(library, method, Path(place), Path(out), given.threads)))
        return
    shape = Shape(given.layers, given.hidden, given.ffn, given.vocab)
    rows = measured(shape, given)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def measured(shape: Shape, given: argparse.Namespace) -> dict[str, Any]:
    """All rows, printed as they come; the models are deleted again."""
    from importlib.metadata import version

    n_parameters = sum(torch.Size(size).numel() for _, size in shape.tensors())
    setting = {
        "parameters": n_parameters,
        "shape": {name: getattr(shape, name) for name in ("layers", "hidden", "ffn", "vocab", "kv_heads")},
        "threads": given.threads,
        "repeats": given.repeats,
        "versions": {name: version(name) for name in ("torch", "mergekit", "safetensors")},
        "machine": platform.platform(),
    }
    need = 6 * 2 * n_parameters
    if shutil.disk_usage(given.place).free < need:
        raise SystemExit(f"{given.place} has less than the {need / 1e9:.0f} GB that four models and two outputs take")
    rows = []
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        save_models(Path(folder), shape, 3)
        for method in given.methods:
            rows.append(compared(method, Path(folder), given.repeats, given.threads))
            print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    return {**setting, "rows": rows}


if __name__ == "__main__":
    main()
