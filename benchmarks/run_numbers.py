"""What the scripts over several runs share: values by seed, what they cost, and how a result file is written."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation import Table

from triune.record import RECORD

DIGITS = 5
BEST = "best expert"
REPLACED = ".superseded"  # where a run keeps results of other settings


def gathered(parts: Sequence[Any]) -> Any:
    """One mapping a seed, of any depth, as one: its leaves are lists of a value a seed, None where a seed has none.

    The keys are those of all seeds, in the order in which they first come.
    """
    branches = [part for part in parts if isinstance(part, dict)]
    if not branches:
        return [None if part is None else round(part, DIGITS) for part in parts]
    keys = dict.fromkeys(key for branch in branches for key in branch)
    return {key: gathered([part.get(key) if isinstance(part, dict) else None for part in parts]) for key in keys}


def records(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The records of all finished steps below the folders but those that other settings have replaced."""
    paths = [path for folder in folders for path in sorted(folder.rglob(RECORD)) if REPLACED not in path.parts]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def cpu_seconds(folders: Iterable[Path]) -> float | None:
    """Processor time of all steps below the folders but superseded ones; None where a step did not record it."""
    spent = [record.get("cpu_seconds") for record in records(folders)]
    return None if not spent or None in spent else round(sum(spent), 1)


def by_parent(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Folders <group>/seed-<n> by the name of their group, both in the order given."""
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(folder.resolve().parent.name, []).append(folder)
    return groups


def best_expert(table: Table, number: str = "mean") -> Table:
    """A row of each seed's highest value among its experts: chosen with hindsight, which favours the experts.

    Empty where there are no experts.
    """
    columns = [own[number] for model, own in table.items() if model.startswith("expert:") and number in own]
    best: list[float | None] = []
    for values in zip(*columns, strict=True):
        known = [value for value in values if value is not None and not math.isnan(value)]
        best.append(max(known) if known else None)
    return {BEST: {number: best}} if columns else {}


def write(target: Path, result: Mapping[str, Any]) -> None:
    """A result file: indented, but a list of numbers on one line."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]) + "]", text)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(flat + "\n", encoding="utf-8")


def command(collect_into: Callable[[Path, Sequence[Path]], None], tables: Callable[[Mapping[str, Any]], str]) -> None:
    """The command line TARGET FOLDERS…: collect, and print the tables that are made of the result file alone."""
    target, folders = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    collect_into(target, folders)
    print(tables(json.loads(target.read_text(encoding="utf-8"))))
