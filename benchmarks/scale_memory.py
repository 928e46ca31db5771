"""Peak memory of loading, of steps of stage 2 and of an export, beside what `triune.fusion.memory` predicts.

    python -m benchmarks.scale_memory --json docs/results/scale.json

Three bases: two real ones (--models: stories260K, babyllama105) and a random Llama of TinyLlama's shape, 1.1 billion
parameters, made in --place. Each gets three random experts of rank 8. Every measurement runs in a process of its own,
which first trains a model of a few numbers, so that what the libraries load at first use is not counted.

Memory is what the process holds itself (RssAnon, looked at every 2 ms) above what it held before the base was loaded;
"resident" also has pages of mapped files, which the system may drop. The allocator gives freed blocks above 64 KiB
back at once (MALLOC_MMAP_THRESHOLD_), so that this is what lives and not what once lived.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from triune.fusion import memory

ROOT = Path(__file__).parents[1]
RANK, AXES = 8, ("helpful", "harmless", "honest")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MB = 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """Stage 2 of one base: how it is stored, and B rows of T tokens, half of them answers."""

    base: str
    dtype: str
    rows: int
    tokens: int
    checkpointing: bool
    experts: bool = True
    export: bool = False  # afterwards


CASES = (
    Case("stories260K", "float32", 8, 512, False),
    Case("stories260K", "float32", 8, 512, True, export=True),
    Case("babyllama105", "float32", 8, 256, False),
    Case("babyllama105", "float32", 8, 256, True, export=True),
    Case("random-1.1B", "float32", 1, 256, False),
    Case("random-1.1B", "float32", 1, 256, True),
    Case("random-1.1B", "float32", 1, 256, True, experts=False),
    Case("random-1.1B", "bfloat16", 1, 256, False),
    Case("random-1.1B", "bfloat16", 1, 256, True, export=True),
)


def predicted(config: Any, case: Case) -> dict[str, float]:
    """The formulas' answer, in MB."""
    size = DTYPES[case.dtype].itemsize
    model = memory.Fused(memory.shape_of(config), len(AXES), RANK, size)
    how = memory.Stage2(case.rows, case.tokens, size, case.checkpointing, case.experts, answers=0.5)
    found = {f"training_{name}": value for name, value in memory.stage2(model, how).items()}
    found |= {"load": size * model.base.parameters, "fused": model.weights}
    found |= {"export": memory.export_peak(model, size), "exported": memory.native_size(model, size)}
    return {name: value / MB for name, value in found.items()}


@contextmanager
def watched(into: dict[str, float], name: str, before: int) -> Iterator[None]:
    """The peak of RssAnon within, in MB above `before`."""
    peak, done = [_status("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _status("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        done.set()
        thread.join()
    into[name] = (max(peak[0], _status("RssAnon")) - before) / MB
    into[f"{name}_seconds"] = time.perf_counter() - began


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measured(folder: Path, place: Path, case: Case) -> dict[str, float]:
    """Load, fuse, train two steps, save and export, in this process; MB above what was there before."""
    from transformers import AutoModelForCausalLM

    from triune.peak_memory import peak_memory_bytes
    from triune.pipeline.exporting import export, options_from

    _align(make_fused(_small()), 2, 8, Case("", "float32", 2, 8, True))
    found: dict[str, float] = {}
    before = _status("RssAnon")
    dtype = DTYPES[case.dtype]
    with watched(found, "load", before):
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        for parameter in base.parameters():  # out of the mapped file, as training needs it
            parameter.data = parameter.data.clone()
    model = make_fused(base)
    found["fused"] = (_status("RssAnon") - before) / MB
    with watched(found, "training", before):
        _align(model, case.rows, case.tokens, case)
    found["resident_training"] = peak_memory_bytes() / MB
    if case.export:
        model.save_pretrained(place / "fused")
        del model, base
        before = _status("RssAnon")
        with watched(found, "export", before):
            export(place / "fused", place / "out", "native", options_from("", "5GB", ""))
        found["exported"] = sum(path.stat().st_size for path in (place / "out").glob("*.safetensors")) / MB
    return found


def _small() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, **sizes))


def make_fused(base: Any) -> Any:
    """The base with three random experts of rank RANK."""
    from triune.experts.lowrank import LowRank
    from triune.experts.task_vector import FFN, TaskVector
    from triune.fusion.building import build
    from triune.recipe import Fuse

    rng = torch.Generator().manual_seed(0)
    vectors = []
    for axis in AXES:
        parts = {}
        for name, module in base.named_modules():
            if name.rsplit(".", 1)[-1] in FFN:
                n_out, n_in = module.weight.shape
                b, a = torch.randn(n_out, RANK, generator=rng), torch.randn(RANK, n_in, generator=rng)
                parts[name] = LowRank((b / 1000).to(base.dtype), a.to(base.dtype))
        vectors.append(TaskVector(axis, parts))
    return build(base.eval(), vectors, Fuse())


def _align(model: Any, rows: int, tokens: int, case: Case) -> None:
    from triune.experts.fitting import Job
    from triune.fusion.aligning import align
    from triune.models.encoding import Encoded
    from triune.progress import SILENT
    from triune.recipe import Align, Fit

    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.get_text_config().vocab_size, (2 * rows, tokens), generator=rng)
    encoded = [Encoded(tuple(row), tokens // 2, AXES[i % 3]) for i, row in enumerate(ids.tolist())]
    fit = Fit(steps=2, batch_size=rows, learning_rate=1e-4, checkpointing=case.checkpointing)
    trainable = "routers+experts" if case.experts else "routers"
    align(model, Align(fit=fit, trainable=trainable), Job("aligning", encoded, fit, 0, 0), SILENT)


def save_random(folder: Path) -> None:
    """The base of TinyLlama's shape, with a tokenizer, which an export carries."""
    from benchmarks.random_models import Shape, save_models
    from triune.models.tiny import build_tokenizer

    made, _ = save_models(folder.parent / "making", Shape(), 0)
    made.replace(folder)
    build_tokenizer([f"word{index}" for index in range(36)]).save_pretrained(folder)


def run(models: Path, place: Path, only: str) -> Iterator[dict[str, Any]]:
    """Every case, each in a process of its own."""
    from transformers import AutoConfig

    for case in (case for case in CASES if only in case.base):
        folder = models / f"{case.base}-hf"
        if case.base.startswith("random"):
            folder = place / case.base
            if not folder.is_dir():
                save_random(folder)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            own = ["--measure", str(folder), scratch, json.dumps(asdict(case))]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            command = [sys.executable, "-m", "benchmarks.scale_memory", *own]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        taken = json.loads(done.stdout.splitlines()[-1])
        shape = asdict(memory.shape_of(AutoConfig.from_pretrained(folder)))
        told = predicted(AutoConfig.from_pretrained(folder), case)
        yield {"case": asdict(case), "shape": shape, "measured_mb": taken, "predicted_mb": told}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("TRIUNE_SHARED", "shared")) / "models")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--only", default="", help="bases whose name has this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        folder, place, case = given.measure
        print(json.dumps(measured(Path(folder), Path(place), Case(**json.loads(case)))))
        return
    place = given.place or Path(tempfile.mkdtemp())
    rows = []
    for row in run(given.models, place, given.only):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if given.place is None:
        shutil.rmtree(place)
    if given.json:
        machine = {"platform": platform.platform(terse=True), "torch": torch.__version__, "threads": 1}
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
