"""Write the tables of scale.md anew, between their markers.

    python docs/draw_scale.py

The formulas are `triune.fusion.memory` and `triune.fusion.compute`; what was measured is in docs/results/scale.json
and scale_time.json, which `benchmarks/scale_memory.py` and `scale_time.py` make. Predictions of memory are computed
here, never read from that file.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from triune.fusion import compute, memory
from triune.fusion.memory import Fused, Shape, Stage2

DOCS = Path(__file__).parent
BASES = {  # Llama 2's own shapes
    "7B": Shape(32, 4096, 11008, 32, 32, 128, 32000),
    "13B": Shape(40, 5120, 13824, 40, 40, 128, 32000),
    "70B": Shape(80, 8192, 28672, 64, 8, 128, 32000),
}
HOW = {"rows": 4, "tokens": 1024, "answers": 0.5}
# Of the makers' data sheets: bfloat16 operations a second (dense), bytes a second of memory.
DEVICES = {"A100 80 GB": (312e12, 2.04e12), "H100 SXM": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
UTILISATION = 0.4  # of these operations; an assumption
PASSES = 1e8  # tokens
ENTRIES = 150e6  # an export's merged numbers a second and thread, as measured
SIZES = {"float32": 4, "bfloat16": 2}
MB, GB = 1e6, 1e9


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def predicted(row: dict[str, Any]) -> dict[str, float]:
    """In MB, by what is measured."""
    case, size = row["case"], SIZES[row["case"]["dtype"]]
    model = Fused(Shape(**row["shape"]), stored=size)
    how = Stage2(case["rows"], case["tokens"], size, case["checkpointing"], case["experts"], answers=0.5)
    told = {"load": size * model.base.parameters, "fused": model.weights}
    told |= {"training": memory.stage2(model, how)["total"], "export": memory.export_peak(model, size)}
    return {name: value / MB for name, value in {**told, "exported": memory.native_size(model, size)}.items()}


def measurements(found: dict[str, Any]) -> str:
    """Predicted / measured of every run."""

    def cell(row: dict[str, Any], name: str) -> str:
        if name not in row["measured_mb"]:
            return ""
        return f"{predicted(row)[name]:,.0f} / {row['measured_mb'][name]:,.0f}"

    def line(row: dict[str, Any]) -> list[str]:
        case = row["case"]
        kept = "recomputed" if case["checkpointing"] else "kept"
        learning = "factors, routers" if case["experts"] else "routers"
        told = [case["base"], case["dtype"], f"{case['rows']} × {case['tokens']}", learning, kept]
        return [*told, *(cell(row, name) for name in ("fused", "training", "export", "exported"))]

    head = ["base", "stored", "B × T", "learning", "activations", "fused model", "stage 2", "export", "file"]
    return table(head, map(line, found["rows"]))


def training() -> str:
    """Stage 2 of the large bases, one process on one device, and each of eight under FSDP2."""
    rows = []
    for name, base in BASES.items():
        for shards in (1, 8):
            for checkpointing in (False, True):
                parts = memory.stage2(Fused(base), Stage2(**HOW, checkpointing=checkpointing, shards=shards))
                kept = "recomputed" if checkpointing else "kept"
                rows.append([name, str(shards), kept, *(f"{value / GB:.2f}" for value in parts.values())])
    head = ["base", "W", "activations", "weights", "gradients", "AdamW", "activations", "logits", "together"]
    return table(head, rows)


def using() -> str:
    """Files, exports, and keys and values of the large bases."""
    rows = []
    for name, base in BASES.items():
        model = Fused(base)
        numbers = [model.weights / GB, memory.native_size(model) / GB, memory.export_peak(model) / GB]
        numbers += [memory.key_values(base, 1) / MB, memory.key_values(base, 32 * 4096) / GB]
        counts = f"{base.parameters / 1e9:.2f}", f"{(model.factors + model.routers) / 1e6:.1f}"
        rows.append([name, *counts, *(f"{number:.2f}" for number in numbers)])
    head = ["base", "parameters, 10⁹", "added, 10⁶", "fused, GB", "native export, GB", "export's peak, GB"]
    return table([*head, "keys and values a token, MB", "of 32 × 4096, GB"], rows)


def time_measurements(found: dict[str, Any]) -> str:
    """Predicted / measured ratios to the base's own pass."""
    forms = ("kept", "recomputed", "routers", "fused decoding")
    rows = []
    for row in found["rows"]:
        ratios = [f"{row['predicted'][form]:.2f} / {row['measured'][form]:.2f}" for form in forms]
        rows.append([row["base"], f"{row['rows']} × {row['tokens']}", *ratios, f"{row['utilisation']:.2f}"])
    return table(["base", "B × T", "kept", "recomputed", "routers only", "decoding", "of a plain product"], rows)


def training_time() -> str:
    """Stage 2 of the large bases in time."""
    rows = []
    for name, base in BASES.items():
        for checkpointing in (False, True):
            how = Stage2(**HOW, checkpointing=checkpointing)
            tokens = how.rows * how.tokens
            work = compute.stage2(Fused(base), how) / tokens
            ratio = work * tokens / compute.dense_forward(base, how.rows, how.tokens)
            speeds = [UTILISATION * peak / work for peak, _ in list(DEVICES.values())[:2]]
            hours = PASSES / (8 * speeds[1]) / 3600
            told = [f"{work / GB:.1f}", f"{ratio:.2f}", *(f"{speed:,.0f}" for speed in speeds), f"{hours:.1f}"]
            rows.append([name, "recomputed" if checkpointing else "kept", *told])
    head = ["base", "activations", "operations a token, 10⁹", "× base's forward pass"]
    return table([*head, "tokens/s, A100", "tokens/s, H100", "10⁸ tokens on 8 H100, hours"], rows)


def using_time() -> str:
    """Decoding and exports of the large bases in time."""
    rows = []
    for name, base in BASES.items():
        model, rate = Fused(base), [speed for _, speed in DEVICES.values()]
        alone = compute.decoding_bytes(model, 1, 1024)
        many = compute.decoding_bytes(model, 32, 1024)
        told = [f"{1000 * alone / speed:.1f}" for speed in rate] + [f"{32 * speed / many:,.0f}" for speed in rate]
        merging = 3 * 3 * base.layers * base.d * base.f / ENTRIES / 60
        writing = memory.native_size(model) / 1e9 / 60
        rows.append([name, *told, f"{merging:.1f}", f"{writing:.1f}"])
    devices = list(DEVICES)
    head = ["base", *(f"ms a token, {device}" for device in devices), *(f"32 rows, tokens/s, {d}" for d in devices)]
    return table([*head, "export's merging, minutes", "its writing at 1 GB/s"], rows)


def drawn(page: str, found: dict[str, Any], times: dict[str, Any]) -> str:
    """The page with its tables made anew."""
    tables = {"measured": measurements(found), "training": training(), "using": using()}
    tables |= {"times": time_measurements(times), "training time": training_time(), "using time": using_time()}
    for name, text in tables.items():
        place = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page, n = re.subn(place, rf"\g<1>{text}\n\g<2>", page, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"scale.md has {n} places for {name}")
    return page


def main() -> None:
    page = DOCS / "scale.md"
    found = json.loads((DOCS / "results" / "scale.json").read_text(encoding="utf-8"))
    times = json.loads((DOCS / "results" / "scale_time.json").read_text(encoding="utf-8"))
    page.write_text(drawn(page.read_text(encoding="utf-8"), found, times), encoding="utf-8")


if __name__ == "__main__":
    main()
