"""Whether conclusions keep their sign as the model grows: the table of runs of one job at several sizes.

    triune run recipes/miniature-large.yaml --out runs/sizes/large
    python benchmarks/sizes.py docs/results/sizes.json runs/sizes/*/seed-*

Writes one value a seed of every number into the file named first, and prints the tables, which are made from that file
alone; docs/draw_worlds.py draws the figure from it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation import SCORES, collect, differences, overview, overview_of_leads, table_of
from run_numbers import BEST, best_expert, by_parent, command, cpu_seconds, write

NAMES = {
    "base": "base",
    BEST: "best expert (hindsight)",
    "average": "average",
    "sum": "sum",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "mixture": "one LoRA on the mixture",
    "fused": "fused",
    "scarce:mixture": "scarce: one LoRA on the mixture",
    "scarce:longer": "scarce: one LoRA, longer",
    "scarce:fused": "scarce: fused",
}
PAIRS = (
    ("fused", "average"),
    ("fused", "sum"),
    ("fused", "task_arithmetic"),
    ("fused", "ties"),
    ("fused", "mixture"),
    ("fused", BEST),
    ("scarce:fused", "scarce:mixture"),
    ("scarce:fused", "scarce:longer"),
)


def collect_into(target: Path, folders: Sequence[Path]) -> None:
    """Write the numbers of runs in folders <name of the size>/seed-<n>, by size, into one small file."""
    sizes = {name: _size(own) for name, own in by_parent(folders).items()}
    ordered = dict(sorted(sizes.items(), key=lambda item: item[1]["parameters"]))
    write(target, {"cpu_seconds": cpu_seconds(folders), "sizes": ordered})


def _size(folders: Sequence[Path]) -> dict[str, Any]:
    table = collect(folders, {})
    return {
        "parameters": parameters(folders),
        "cpu_seconds": cpu_seconds(folders),
        "runs": [folder.name for folder in folders],
        "models": table | best_expert(table),
    }


def parameters(folders: Sequence[Path]) -> int:
    """Of the base; the mean over seeds, since worlds differ by a few words."""
    found = [json.loads((folder / "models.json").read_text(encoding="utf-8")) for folder in folders]
    return round(sum(own["base"]["parameters_total"] for own in found) / len(found))


def shown(result: Mapping[str, Any]) -> str:
    """The Markdown tables of a result file: cost of each size, means over seeds, paired differences."""
    rows = [
        f"| {name} | {own['parameters']:,} | {len(own['runs'])} | {minutes(own)} |"
        for name, own in result["sizes"].items()
    ]
    head = "| size | parameters | seeds | processor minutes a seed |\n|---|---|---|---|"
    blocks = ["\n".join([head, *rows])]
    tables = {name: own["models"] for name, own in result["sizes"].items()}
    leads = [pair for pair in PAIRS if any(set(pair) <= own.keys() for own in tables.values())]
    for number in ("mean", "over_refusal", "facts"):
        blocks.append(f"### {number} by size")
        blocks.append(overview("size", tables, NAMES, number))
        blocks.append(overview_of_leads("size", tables, NAMES, leads, number))
    for name, own in result["sizes"].items():
        pairs = [pair for pair in PAIRS if set(pair) <= own["models"].keys()]
        blocks.append(f"### {name}")
        blocks.append(table_of(own["models"], NAMES, SCORES, 1, {}))
        blocks.append(differences(own["models"], NAMES, pairs, SCORES, 1))
        blocks.append(table_of(own["models"], NAMES, ["latency"], 2, {}))
    return "\n\n".join(blocks)


def minutes(size: Mapping[str, Any]) -> str:
    """Processor time of one seed's whole run, an en dash where it was not recorded."""
    spent = size["cpu_seconds"]
    return "–" if spent is None else f"{spent / len(size['runs']) / 60:.1f}"


if __name__ == "__main__":
    command(collect_into, shown)
