"""Streamed jobs of test_streamed.py: each is done by one process there, and by several through this file."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.experts import distributed_cases as cases
from tests.fusion.conftest import random_base
from triune.data.shards import find_shards
from triune.data.streaming import KeptRows, ShardedRows, Stream
from triune.experts import processes
from triune.experts.fitting import Job, answer_objective, fit
from triune.experts.training import with_adapters
from triune.fusion.aligning import align
from triune.models.encoding import Encoded
from triune.models.token_stream import TokenStream
from triune.progress import SILENT
from triune.recipe import Align, Fit, Lora
from triune.types import Example

# An epoch has 23 rows of the shards, less those that do not fit: batches of six cross its end.
FIT: dict[str, Any] = {"steps": 7, "batch_size": 6, "learning_rate": 5e-3, "schedule": "cosine", "accumulation": 2}
STOPPED_AFTER = 3


def write_shards(folder: Path) -> Path:
    """Two shards of short rows of numbers, which are token ids."""
    folder.mkdir(exist_ok=True)
    for shard, size in enumerate((13, 10)):
        rows = [
            {"prompt": f"{3 + n} {4 + shard}", "response": " ".join(str(5 + (n * m) % 30) for m in range(2 + n % 5))}
            for n in range(size)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{shard}.jsonl").write_text(text, encoding="utf-8")
    return folder


def encode(example: Example) -> Encoded | None:
    """The numbers of prompt and answer; some rows do not fit."""
    prompt, answer = ([int(word) for word in text.split()] for text in (example.prompt, example.response))
    return None if prompt[0] == 6 else Encoded((*prompt, *answer), len(prompt), example.axis)


def job(folder: Path, place: Path | None = None, **own: Any) -> Job:
    """Streamed rows of one axis beside rows in memory of two others."""
    sharded = ShardedRows("helpful", find_shards(f"{folder}/*.jsonl"), "rows", 8, 0)
    kept = [
        KeptRows(axis, tuple(Example(axis, f"{n + 3} {n + 9}", f"{n + 5} 7") for n in range(4)), 0)
        for axis in ("harmless", "honest")
    ]
    tokens = TokenStream(Stream((sharded, *kept)), encode, 8)
    return Job("training", (), Fit(**{**FIT, **own}), 0, 0, checkpoint=place, stream=tokens)


def adapted(folder: Path, place: Path | None = None, dropout: float = 0.0, **own: Any) -> cases.Any:
    """The factors of a LoRA expert and its curve."""
    import torch

    lora = Lora(rank=2, dropout=dropout, targets=("up_proj",))
    model = with_adapters(random_base("llama", torch.float64), lora, 0)
    curve = fit(model, job(folder, place, **own), answer_objective, SILENT)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, curve


def aligned(folder: Path, place: Path | None = None, **own: Any) -> cases.Any:
    """A fused model's weights and its curve."""
    model, settings = cases.fused(), {**cases.TERMS, "representation": 0.0}
    how = job(folder, place, **own)
    curve = align(model, Align(trainable="routers+experts", fit=how.settings, **settings), how, SILENT)
    return {key: value.clone() for key, value in model.state_dict().items()}, curve


def stopped(folder: Path, place: Path) -> None:
    """Train until the checkpoint of step STOPPED_AFTER is written."""
    wait = processes.wait

    def stop() -> None:
        wait()
        if (place / f"step-{STOPPED_AFTER}").is_dir():
            raise cases.Stopped

    processes.wait = stop
    try:
        adapted(folder, place, save_every=1)
    except cases.Stopped:
        return
    finally:
        processes.wait = wait
    raise AssertionError("the job was not stopped")


def do(out: Path, name: str) -> None:
    """A case: "adapted", "aligned", or "resumed"."""
    folder = out / "shards"
    if name == "resumed":
        stopped(folder, out / "place")
        cases.write(out, name, adapted(folder, out / "place", save_every=1))
    else:
        cases.write(out, name, {"adapted": adapted, "aligned": aligned}[name](folder))


if __name__ == "__main__":
    cases.do = do
    sys.exit(cases.main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
