"""Peak memory of an export: how much the process grows while a random model is written, and in how many tensors.

    python benchmarks/export_memory.py --json memory.json

The model is made in one process and exported in another, so that nothing of the making is counted. "anonymous" is
what the process itself holds (sampled every millisecond); "resident" also counts pages of the input file that the
system may drop at any moment (the kernel's own high-water mark).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from triune.experts.lowrank import LowRank
from triune.experts.task_vector import FFN, TaskVector
from triune.fusion.building import build
from triune.peak_memory import peak_memory_bytes
from triune.recipe import Fuse

MB = 1e6


def random_model(folder: Path, d: int, layers: int, experts: int, rank: int) -> dict[str, float]:
    """Save a random fused Llama in float32; sizes in MB."""
    config = LlamaConfig(
        vocab_size=8 * d,
        hidden_size=d,
        intermediate_size=11 * d // 4,
        num_hidden_layers=layers,
        num_attention_heads=d // 64,
        num_key_value_heads=d // 64,
        tie_word_embeddings=False,
    )
    base = LlamaForCausalLM(config).eval()
    vectors = []
    for index in range(experts):
        parts = {}
        for name, module in base.named_modules():
            if name.rsplit(".", 1)[-1] in FFN:
                n_out, n_in = module.weight.shape  # type: ignore[union-attr,misc]
                parts[name] = LowRank(torch.randn(n_out, rank) / 100, torch.randn(rank, n_in) / 100)
        vectors.append(TaskVector(f"expert{index}", parts))
    build(base, vectors, Fuse()).save_pretrained(folder)
    largest = max(parameter.numel() for parameter in base.parameters()) * 4
    return {"input_mb": sum(p.stat().st_size for p in folder.iterdir()) / MB, "largest_tensor_mb": largest / MB}


def measured(source: Path, out: Path, dtype: str) -> dict[str, float]:
    """Export in this process, and how far its memory rose above what it held before; MB."""
    from triune.pipeline.exporting import export, options_from

    before = _status("RssAnon"), _status("VmRSS")
    peak, done = [before[0]], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], _status("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    Path("/proc/self/clear_refs").write_text("5")
    export(source, out, "native", options_from(dtype, "5GB", ""))
    resident = peak_memory_bytes()
    done.set()
    thread.join()
    size = sum(path.stat().st_size for path in out.iterdir())
    return {
        "anonymous_mb": (peak[0] - before[0]) / MB,
        "resident_mb": (resident - before[1]) / MB,
        "output_mb": size / MB,
    }


def _status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def run(d: int, layers: int, experts: int, rank: int, dtype: str) -> dict[str, Any]:
    """Make a model, export it in a process of its own, and say what that took."""
    with tempfile.TemporaryDirectory() as place:
        sizes = random_model(Path(place) / "fused", d, layers, experts, rank)
        command = [sys.executable, __file__, "--measure", f"{place}/fused", f"{place}/out", "--dtype", dtype]
        taken = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    found = {"dtype": dtype, "experts": experts, **sizes, **taken}
    return {**found, "anonymous_in_largest_tensors": found["anonymous_mb"] / found["largest_tensor_mb"]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"d": 1024, "layers": 4, "experts": 3, "rank": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured(*given.measure, given.dtype)))
        return
    found = run(given.d, given.layers, given.experts, given.rank, given.dtype)
    print(
        "\n".join(f"{name:30} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in found.items())
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
