"""How far the axes conflict: the table of runs with more and fewer templates shared by the axes.

    triune run recipes/conflict.yaml base.miniature.world.sharing=0.5 --out runs/conflict/sharing-0.5
    python benchmarks/conflict.py docs/results/conflict.json runs/conflict/sharing-*/seed-*

Writes one value a seed of every number into the file named first, and prints the tables, which are made from that file
alone; docs/draw_worlds.py draws the figure from it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation import SCORES, collect, differences, overview, overview_of_leads, table_of
from run_numbers import BEST, best_expert, by_parent, command, cpu_seconds, write

from triune.errors import InputError

PREFIX = "sharing-"
NAMES = {
    "base": "base",
    BEST: "best expert (hindsight)",
    "average": "average",
    "sum": "sum",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "mixture": "one LoRA on the mixture",
    "fused": "fused",
}
OTHERS = ("mixture", "average", "sum", "task_arithmetic", "ties")


def collect_into(target: Path, folders: Sequence[Path]) -> None:
    """Write the numbers of runs in folders sharing-<s>/seed-<n>, by s in rising order, into one small file.

    Raises InputError for a folder that is in none of that name.
    """
    groups = sorted((sharing_of(name), own) for name, own in by_parent(folders).items())
    tables = {f"{sharing:g}": collect(own, {}) for sharing, own in groups}
    result = {
        "runs": {f"{sharing:g}": [folder.name for folder in own] for sharing, own in groups},
        "cpu_seconds": cpu_seconds(folders),
        "sharing": {sharing: table | best_expert(table) for sharing, table in tables.items()},
    }
    write(target, result)


def sharing_of(folder: str) -> float:
    """The shared part of the templates, from a folder's name. Raises InputError where that has no such number."""
    try:
        found = float(folder.removeprefix(PREFIX)) if folder.startswith(PREFIX) else math.nan
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise InputError(f"the folder {folder!r}; wanted {PREFIX}<s> with s from 0 to 1, such as {PREFIX}0.25")
    return found


def shown(result: Mapping[str, Any]) -> str:
    """The Markdown tables of a result file: means with 95 % intervals over seeds, and paired differences."""
    blocks = [f"Processor time {result['cpu_seconds']} s."]
    leads = [("fused", other) for other in OTHERS if any(other in own for own in result["sharing"].values())]
    for number in ("mean", "over_refusal", "facts"):
        blocks.append(f"### {number} by sharing")
        blocks.append(overview("sharing", result["sharing"], NAMES, number))
        blocks.append(overview_of_leads("sharing", result["sharing"], NAMES, leads, number))
    for sharing, table in result["sharing"].items():
        pairs = [("fused", other) for other in OTHERS if other in table]
        blocks.append(f"### Sharing {sharing} ({len(result['runs'][sharing])} seeds)")
        blocks.append(table_of(table, NAMES, SCORES, 1, {}))
        blocks.append(differences(table, NAMES, pairs, SCORES, 1))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    command(collect_into, shown)
