"""Peak memory, time, ranks and errors of `triune fuse` with three full fine-tunes of a random Llama in bfloat16.

    python -m benchmarks.fusing_memory --json docs/results/fusing_memory.json

The models (TinyLlama's shape by default, 1.1 billion parameters) are made below --place and deleted afterwards; each
fusion runs in a process of its own, whole verb included: hashing, checks, comparison, decomposition, writing. The
base's weights are N(0, 0.02²). An expert is the base plus a random increment of rank 24 in every matrix, embeddings
too, rounded to bfloat16, as a fine-tune is that was saved so. How large the increment is beside that rounding decides
what the difference looks like:

    large    the increment's entries are 1/8 of a weight's: the rounding is far below the error allowed
    small    they are 1/100: the rounding, which has full rank, is about the error allowed
    tiny     they are 1/1000: the rounding is as large as the increment

"resident" is the kernel's high-water mark of the process (VmHWM), of which "imports" was there before the verb was
called; "cpu_seconds" do not depend on what else the machine does.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_models import BASE_STD, Shape
from triune.models.shards import Planned, write_shards
from triune.models.tiny import build_tokenizer

ROOT = Path(__file__).parents[1]
RANK = 24
SIZES = {"large": 1 / 8, "small": 1 / 100, "tiny": 1 / 1000}  # of an increment's entries, in those of a weight
AXES = ("helpful", "harmless", "honest")
MB = 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """One fusion: the size of the increments, and the settings."""

    increment: str
    svd_error: float
    shared: str


CASES = (
    Case("large", 0.1, "average"),
    Case("large", 0.0, "average"),
    Case("large", 0.1, "ties"),
    Case("small", 0.1, "average"),
    Case("tiny", 0.1, "average"),
)


@dataclass(frozen=True, slots=True)
class Made:
    """One tensor of one model: the base's random numbers, and an increment of its own where there is one."""

    index: int
    model: int
    size: tuple[int, ...]
    relative: float

    def tensor(self) -> Tensor:
        """The weight in bfloat16."""
        weight = torch.randn(self.size, generator=torch.Generator().manual_seed(self.index)).mul_(BASE_STD)
        if self.model and len(self.size) == 2:
            rng = torch.Generator().manual_seed(self.index + 1_000_003 * self.model)
            b, a = torch.randn(self.size[0], RANK, generator=rng), torch.randn(RANK, self.size[1], generator=rng)
            weight = weight.bfloat16().float().addmm_(b, a, alpha=self.relative * BASE_STD / RANK**0.5)
        return weight.bfloat16()


def save_models(place: Path, shape: Shape, relative: float) -> None:
    """A base with a tokenizer, and three fine-tunes of it."""
    for number, name in enumerate(("base", *AXES)):
        folder = place / name
        folder.mkdir(parents=True)
        plan = [
            Planned(key, torch.bfloat16, size, partial(Made.tensor, Made(index, number, size, relative)))
            for index, (key, size) in enumerate(shape.tensors())
        ]
        write_shards(plan, folder, 5_000_000_000)
        (folder / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n")
    build_tokenizer([f"word{index}" for index in range(36)]).save_pretrained(place / "base")


def measured(place: Path, svd_error: float, shared: str) -> dict[str, Any]:
    """Fuse in this process."""
    from triune import pipeline
    from triune.peak_memory import peak_memory_bytes
    from triune.recipe import Base, Fuse

    context = pipeline.Context(Base(path=str(place / "base"), dtype="bfloat16"))
    settings = Fuse(svd_error=svd_error, shared=shared, router_init="zeros")
    imports = peak_memory_bytes()
    began = time.perf_counter(), time.process_time()
    out = pipeline.fuse(context, {axis: place / axis for axis in AXES}, place / "out", settings)
    seconds, cpu_seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    told = json.loads((out / "fusion.json").read_text(encoding="utf-8"))
    matrices = [row for axis in AXES for row in told["experts"][axis]["matrices"].values()]
    found = {
        "resident_mb": peak_memory_bytes() / MB,
        "imports_mb": imports / MB,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "output_mb": sum(path.stat().st_size for path in out.glob("*.safetensors")) / MB,
        "kept_whole": sum(row["whole"] for row in matrices),
        "matrices": len(matrices),
        "rank": statistics.median(row["rank"] for row in matrices),
        "largest_rank": max(row["rank"] for row in matrices),
        "largest_error": max(row["error"] for row in matrices),
        "overall_error": max(told["experts"][axis]["error"] for axis in AXES),
        "discarded_share": max(told["experts"][axis]["discarded_share"] for axis in AXES),
    }
    shutil.rmtree(out)
    return found


def run(shape: Shape, place: Path, cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """The cases, each in a process of its own, one after the other."""
    rows = []
    for increment in dict.fromkeys(case.increment for case in cases):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            save_models(Path(folder), shape, SIZES[increment])
            input_mb = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / MB
            for case in (case for case in cases if case.increment == increment):
                own = ["--measure", folder, str(case.svd_error), case.shared]
                command = [sys.executable, "-m", "benchmarks.fusing_memory", *own]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
                rows.append({**asdict(case), "input_mb": input_mb, **json.loads(done.stdout.splitlines()[-1])})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("layers", "hidden", "ffn", "vocab"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Shape(), name))
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        place, svd_error, shared = given.measure
        print(json.dumps(measured(Path(place), float(svd_error), shared)))
        return
    shape = Shape(layers=given.layers, hidden=given.hidden, ffn=given.ffn, vocab=given.vocab)
    rows = run(shape, given.place)
    if given.json:
        versions = {"platform": platform.platform(terse=True), "torch": torch.__version__}
        machine = {**versions, "threads": torch.get_num_threads()}
        content = {"machine": machine, "rank_of_the_increments": RANK, "relative_sizes": SIZES, "rows": rows}
        given.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
