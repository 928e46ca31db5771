"""Steps of stage 2 and of decoding, beside the base's own passes, against what `triune.fusion.compute` predicts.

    python -m benchmarks.scale_time --json docs/results/scale_time.json

Three bases as in `benchmarks/scale_memory.py`: two real ones and a random Llama of TinyLlama's shape. All forms of one
base run alternately in one process; medians, and ratios of medians to the base's own pass, because absolute times of
shared machines mean nothing. Predicted ratios are of operations (training) and of bytes read (decoding).
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.scale_memory import AXES, RANK, make_fused, save_random
from triune.fusion import compute, memory
from triune.fusion.memory import Fused, Stage2

BASES = {"stories260K": (8, 256), "babyllama105": (8, 256), "random-1.1B": (1, 128)}  # rows of so many tokens
PROMPT = 64  # tokens before the ones that are decoded
STEPS = 4  # tokens decoded at a time


def forms(base: Any, fused: Any, rows: int, tokens: int) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(3, base.config.vocab_size, (rows, tokens), generator=rng)

    def passed() -> None:
        with torch.no_grad():
            base(input_ids=ids, labels=ids, use_cache=False)

    def step(learning: tuple[str, ...], checkpointing: bool) -> None:
        for name, parameter in fused.named_parameters():
            parameter.requires_grad_(name.endswith(learning))
        if checkpointing:
            fused.activation_checkpointing_enable({"use_reentrant": False})
        else:
            fused.activation_checkpointing_disable()
            fused.disable_input_require_grads()
        fused.train()
        fused(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        fused.zero_grad()
        fused.eval()

    def decode(model: Any) -> None:
        with torch.no_grad():
            cache = model(input_ids=ids[:1, :PROMPT], use_cache=True).past_key_values
            begin = time.perf_counter()
            for place in range(STEPS):
                model(input_ids=ids[:1, place : place + 1], past_key_values=cache, use_cache=True)
            clock.append(time.perf_counter() - begin)

    every = ("_a", "_b", "router.weight")
    return {
        "base": passed,
        "kept": lambda: step(every, checkpointing=False),
        "recomputed": lambda: step(every, checkpointing=True),
        "routers": lambda: step(("router.weight",), checkpointing=False),
        "base decoding": lambda: decode(base),
        "fused decoding": lambda: decode(fused),
    }


clock: list[float] = []  # of the part of a form that counts, where that is not the whole


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    clock.clear()
    begin = time.perf_counter()
    work()
    return clock[0] if clock else time.perf_counter() - begin


def predicted(model: Fused, rows: int, tokens: int) -> dict[str, float]:
    """Ratios to the base's own pass, by the formulas."""
    once = compute.dense_forward(model.base, rows, tokens)
    steps = {
        "kept": Stage2(rows, tokens, 4, checkpointing=False),
        "recomputed": Stage2(rows, tokens, 4),
        "routers": Stage2(rows, tokens, 4, checkpointing=False, experts=False),
    }
    found = {name: compute.stage2(model, how) / once for name, how in steps.items()}
    dense = Fused(model.base, experts=0, rank=0, stored=4)
    bytes_read = [compute.decoding_bytes(own, 1, PROMPT, 4) for own in (model, dense)]
    return {**found, "fused decoding": bytes_read[0] / bytes_read[1]}


def matrix_rate(d: int, f: int, n: int) -> float:
    """Operations a second of a plain product of n tokens with a block's matrix."""
    x, w = torch.randn(n, d), torch.randn(f, d)
    torch.nn.functional.linear(x, w)
    taken = [timed(lambda: torch.nn.functional.linear(x, w)) for _ in range(9)]
    return 2 * n * d * f / statistics.median(taken)


def run(models: Path, place: Path, only: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Every base: what was measured, and what the formulas say."""
    from transformers import AutoModelForCausalLM

    for name, (rows, tokens) in BASES.items():
        if only not in name:
            continue
        folder = models / f"{name}-hf"
        if name.startswith("random"):
            folder = place / name
            if not folder.is_dir():
                save_random(folder)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        shape = memory.shape_of(base.config)
        fused = make_fused(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        own = forms(base, fused, rows, tokens)
        seconds: dict[str, list[float]] = {form: [] for form in own}
        for turn in range(repeats + 1):
            for form, work in own.items():
                taken = timed(work)
                if turn:  # the first one warms up
                    seconds[form].append(taken)
        medians = {form: statistics.median(taken) for form, taken in seconds.items()}
        against = {form: "base decoding" if "decoding" in form else "base" for form in own}
        rate = compute.dense_forward(shape, rows, tokens) / medians["base"]
        yield {
            "base": name,
            "rows": rows,
            "tokens": tokens,
            "measured": {form: taken / medians[against[form]] for form, taken in medians.items()},
            "predicted": predicted(Fused(shape, len(AXES), RANK, 4), rows, tokens),
            "utilisation": rate / matrix_rate(shape.d, shape.f, rows * tokens),
        }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("TRIUNE_SHARED", "shared")) / "models")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--only", default="", help="bases whose name has this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.place) as scratch:
        rows = []
        for row in run(given.models, given.place or Path(scratch), given.only, given.repeats):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if given.json:
        machine = {"platform": platform.platform(terse=True), "torch": torch.__version__, "threads": 1}
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
