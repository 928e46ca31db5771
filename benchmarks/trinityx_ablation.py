"""TrinityX's ablation over seeds: the tables and verdicts of docs/trinityx.md from finished runs.

    triune run recipes/trinityx-ablation.yaml --out runs/trinityx
    python benchmarks/trinityx_ablation.py docs/results/trinityx.json runs/trinityx/seed-*

Writes one value a seed of every number into the file named first, and prints the tables. The interval of a mean is
Student's over seeds; a difference is paired by seed.
"""

import json
import math
import sys
from pathlib import Path

from triune.metrics.across import Across, across, across_difference

NAMES = {
    "base": "base",
    "mixture": "one LoRA on the mixture",
    "task_arithmetic": "task arithmetic",
    "fused:plain-1": "plain MoE, top-1",
    "fused:plain-2": "plain MoE, top-2",
    "fused": "MoCaE, top-1",
    "fused:mocae-2": "MoCaE, top-2",
    "fused:gl-1": "MoCaE + GL, top-1",
    "fused:gl-2": "MoCaE + GL, top-2",
    "fused:rl-1": "MoCaE + RL, top-1",
    "fused:rl-2": "MoCaE + RL, top-2",
    "fused:both-1": "MoCaE + GL + RL, top-1",
    "fused:both-2": "MoCaE + GL + RL, top-2",
    "calibrated": "MoCaE, top-1, calibrated",
}
CALIBRATION = {
    "routing ECE": ("routing", "all layers", "ece"),
    "routing ECE, isotonic": ("routing", "all layers", "ece_isotonic"),
    "routing Brier": ("routing", "all layers", "brier"),
    "routing NLL": ("routing", "all layers", "nll"),
    "routing accuracy": ("routing", "all layers", "accuracy"),
    "rows ECE": ("routing", "whole rows", "ece"),
    "answer ECE": ("answer", "", "ece"),
    "answer Brier": ("answer", "", "brier_event"),
}
COMPARED = ("fused:plain-1", "fused:plain-2")
Table = dict[str, dict[str, list[float | None]]]


def collect(folders: list[Path]) -> Table:
    """table[model][number] = one value a run, None where a run has none."""
    table: Table = {}
    for place, folder in enumerate(folders):
        for model, values in _numbers(folder).items():
            for name, value in values.items():
                row = table.setdefault(model, {}).setdefault(name, [None] * len(folders))
                row[place] = None if value is None else round(value, 5)
    return table


def _numbers(folder: Path) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for row in json.loads((folder / "scores.json").read_text(encoding="utf-8")):
        found.setdefault(row["model"], {})[row["score"]] = row["value"]
    for row in json.loads((folder / "calibration.json").read_text(encoding="utf-8")):
        for name, (kind, what, metric) in CALIBRATION.items():
            if (row["kind"], row["metric"]) == (kind, metric) and row["what"].startswith(what):
                found[row["model"]][name] = row["value"]
    for model, fact in json.loads((folder / "models.json").read_text(encoding="utf-8")).items():
        if model in found:
            ratio = fact["latency_ratio"]
            found[model] |= {"latency": ratio and ratio["value"], "active": fact["parameters_active"]}
    return found


def bounds(name: str) -> tuple[float, float]:
    """What a number can be."""
    if name.endswith("NLL") or name.startswith("nll:") or name == "latency":
        return (0.0, math.inf)
    return (0.0, 1.0) if name in CALIBRATION and not name.endswith("Brier") else (0.0, 100.0)


def shown(value: Across, digits: int = 1) -> str:
    """Mean and interval."""
    return f"{value.value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def table_of(table: Table, numbers: list[str], digits: int) -> str:
    """A Markdown table: mean over seeds with its interval."""
    lines = [f"| model | {' | '.join(numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    for model, name in NAMES.items():
        if model in table and any(number in table[model] for number in numbers):
            cells = [
                shown(across(table[model][n], bounds=bounds(n)), digits) if n in table[model] else "–" for n in numbers
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(table: Table, ours: str, theirs: str, numbers: list[str], digits: int) -> str:
    """A row: ours − theirs, paired by seed; a star where the interval leaves 0 out."""
    both = [(table[ours].get(n), table[theirs].get(n)) for n in numbers]
    found = [across_difference(a, b) if a and b else None for a, b in both]
    marks = ["–" if f is None else shown(f, digits) + (" *" if f.apart else "") for f in found]
    return f"| {NAMES[ours]} − {NAMES[theirs]} | {' | '.join(marks)} |"


def differences(table: Table, numbers: list[str], digits: int) -> str:
    """Every form less the plain mixture with as many experts a token; calibration and top-1 by themselves."""
    pairs = [
        (model, COMPARED[1 if model.endswith("-2") else 0])
        for model in NAMES
        if model == "fused" or (model.startswith("fused:") and model not in COMPARED)
    ]
    pairs += [("calibrated", "fused"), ("fused", "fused:mocae-2"), COMPARED, ("fused:mocae-2", "mixture")]
    rows = [difference(table, *pair, numbers, digits) for pair in pairs]
    return "\n".join([f"| difference | {' | '.join(numbers)} |", "|---" * (len(numbers) + 1) + "|", *rows])


def main() -> None:
    """The command line."""
    target, folders = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    table = collect(folders)
    target.write_text(json.dumps({"runs": [f.name for f in folders], "models": table}, indent=1) + "\n")
    generated = "mean" in table["base"]  # the miniature world's tests; elsewhere likelihoods
    likelihood = [name for name in table["base"] if name.startswith("nll:") or name in ("preference", "mc1", "mc2")]
    scores = ["helpful", "harmless", "honest", "mean", "over_refusal", "facts"] if generated else likelihood
    digits = 1 if generated else 3
    for numbers, places in ((scores, digits), (list(CALIBRATION), 3), (["latency"], 2)):
        print(table_of(table, numbers, places), end="\n\n")
    for numbers, places in ((scores, digits), (list(CALIBRATION), 3)):
        print(differences(table, numbers, places), end="\n\n")


if __name__ == "__main__":
    main()
