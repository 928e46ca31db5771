"""TrinityX's ablation over seeds: the tables and verdicts of docs/trinityx.md from finished runs.

    triune run recipes/trinityx-ablation.yaml --out runs/trinityx
    python benchmarks/trinityx_ablation.py docs/results/trinityx.json runs/trinityx/seed-*

Writes one value a seed of every number into the file named first, and prints the tables; see `ablation`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ablation import Table, collect, differences, kept, scores_of, table_of

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
LAYERS = {"kind": "routing", "what": "all layers", "group": ""}
CALIBRATION = {
    "routing ECE": {**LAYERS, "metric": "ece"},
    "routing ECE, isotonic": {**LAYERS, "metric": "ece_isotonic"},
    "routing Brier": {**LAYERS, "metric": "brier"},
    "routing NLL": {**LAYERS, "metric": "nll"},
    "routing accuracy": {**LAYERS, "metric": "accuracy"},
    "rows ECE": {"kind": "routing", "what": "whole rows", "metric": "ece", "group": ""},
    "answer ECE": {"kind": "answer", "metric": "ece"},
    "answer Brier": {"kind": "answer", "metric": "brier_event"},
}
COMPARED = ("fused:plain-1", "fused:plain-2")


def pairs() -> list[tuple[str, str]]:
    """Every form and the plain mixture with as many experts a token; calibration and top-1 by themselves."""
    found = [
        (model, COMPARED[1 if model.endswith("-2") else 0])
        for model in NAMES
        if model == "fused" or (model.startswith("fused:") and model not in COMPARED)
    ]
    return [*found, ("calibrated", "fused"), ("fused", "fused:mocae-2"), COMPARED, ("fused:mocae-2", "mixture")]


def collect_into(target: Path, folders: Sequence[Path]) -> Table:
    """Write every value of finished runs into one small file; the same as a table."""
    table = collect(folders, CALIBRATION)
    kept(target, folders, table)
    return table


def main() -> None:
    """The command line."""
    table = collect_into(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    scores, digits = scores_of(table)
    for numbers, places in ((scores, digits), (list(CALIBRATION), 3), (["latency"], 2)):
        print(table_of(table, NAMES, numbers, places, CALIBRATION), end="\n\n")
    for numbers, places in ((scores, digits), (list(CALIBRATION), 3)):
        print(differences(table, NAMES, pairs(), numbers, places), end="\n\n")


if __name__ == "__main__":
    main()
