"""AlignX's ablation over seeds: the tables of docs/alignx.md from finished runs.

    triune run recipes/alignx-ablation.yaml --out runs/alignx
    python benchmarks/alignx_ablation.py docs/results/alignx.json runs/alignx/seed-*

Writes one value a seed of every number into the file named first, and prints the tables; see `ablation`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ablation import Table, collect, differences, kept, scores_of, table_of

NAMES = {
    "base": "base",
    "mixture": "one LoRA on the mixture",
    "sequential": "one LoRA, axis after axis",
    "task_arithmetic": "task arithmetic",
    "fused:plain": "plain router",
    "fused:fractal": "+ fractal",
    "fused:natural": "+ natural",
    "fused:both": "+ both",
    "fused:output": "plain router + output calibration",
    "fused": "AlignX: both + output calibration",
    "fused:two-pass": "AlignX, two passes",
    "fused:late": "AlignX, routed at layer 2 of 3",
    "fused:top-2": "AlignX, top-2",
    "fused:token": "a router a token, top-1",
    "fused:token-2": "a router a token, top-2",
    "fused:sft": "AlignX without injection",
    "fused:sft-plain": "plain router without injection",
    "fused:sft-token": "a router a token, top-1, without injection",
}
PAIRS = (
    ("fused:fractal", "fused:plain"),
    ("fused:natural", "fused:plain"),
    ("fused:both", "fused:plain"),
    ("fused:output", "fused:plain"),
    ("fused", "fused:both"),
    ("fused", "fused:plain"),
    ("fused:two-pass", "fused"),
    ("fused:late", "fused"),
    ("fused:top-2", "fused"),
    ("fused", "fused:token"),
    ("fused:plain", "fused:token"),
    ("fused", "fused:sft"),
    ("fused:plain", "fused:sft-plain"),
    ("fused:token", "fused:sft-token"),
    ("fused", "mixture"),
    ("fused", "sequential"),
    ("mixture", "sequential"),
)
ROWS = "whole rows"
METRICS = ("misrouting", "ece", "brier")


def calibration(folders: Sequence[Path]) -> dict[str, dict[str, str]]:
    """The numbers wanted of routing: of the test rows and of every group of prompts that there is."""
    rows = json.loads((folders[0] / "calibration.json").read_text(encoding="utf-8"))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    found = {
        f"{group or 'test rows'}: {metric}": {"kind": "routing", "what": ROWS, "metric": metric, "group": group}
        for metric in METRICS
        for group in groups
    }
    return {**found, "answer ECE": {"kind": "answer", "metric": "ece", "group": ""}}


def collect_into(target: Path, folders: Sequence[Path]) -> Table:
    """Write every value of finished runs into one small file; the same as a table."""
    table = collect(folders, calibration(folders))
    kept(target, folders, table)
    return table


def main() -> None:
    """The command line."""
    target, folders = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    wanted, table = calibration(folders), collect_into(target, folders)
    scores, digits = scores_of(table)
    by_metric = [[name for name in wanted if name.endswith(f": {metric}")] for metric in METRICS]
    blocks = [(scores, digits), *zip(by_metric, (1, 3, 3), strict=True), (["answer ECE"], 3), (["latency"], 2)]
    pairs = [pair for pair in PAIRS if set(pair) <= table.keys()]
    for numbers, places in blocks:
        print(table_of(table, NAMES, numbers, places, wanted), end="\n\n")
        print(differences(table, NAMES, pairs, numbers, places), end="\n\n")


if __name__ == "__main__":
    main()
