"""Tables of an ablation over seeds from finished runs: collected numbers, means with intervals, paired differences.

What the scripts of single methods share. The interval of a mean is Student's over seeds; a difference is paired by
seed, and a star says that its interval leaves 0 out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from triune.metrics.across import Across, across, across_difference

Table = dict[str, dict[str, list[float | None]]]
Wanted = Mapping[str, Mapping[str, str]]  # by a number's name: what its row of calibration.json says
SCORES = ("helpful", "harmless", "honest", "mean", "over_refusal", "facts")
CHOICES = ("preference", "mc1", "mc2")  # of real data, with likelihoods


def collect(folders: Sequence[Path], calibration: Wanted) -> Table:
    """table[model][number] = one value a run, None where a run has none."""
    table: Table = {}
    for place, folder in enumerate(folders):
        for model, values in _numbers(folder, calibration).items():
            for name, value in values.items():
                row = table.setdefault(model, {}).setdefault(name, [None] * len(folders))
                row[place] = None if value is None else round(value, 5)
    return table


def _numbers(folder: Path, calibration: Wanted) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for row in json.loads((folder / "scores.json").read_text(encoding="utf-8")):
        found.setdefault(row["model"], {})[row["score"]] = row["value"]
    for row in json.loads((folder / "calibration.json").read_text(encoding="utf-8")):
        for name, wanted in calibration.items():
            if row["what"].startswith(wanted.get("what", "")) and all(
                row.get(key, "") == value for key, value in wanted.items() if key != "what"
            ):
                found[row["model"]][name] = row["value"]
    for model, fact in json.loads((folder / "models.json").read_text(encoding="utf-8")).items():
        if model in found:
            ratio = fact["latency_ratio"]
            found[model] |= {"latency": ratio and ratio["value"], "active": fact["parameters_active"]}
    return found


def scores_of(table: Table) -> tuple[list[str], int]:
    """What a run's tests score, and with how many decimals: percentages of the miniature world, else likelihoods."""
    if "mean" in table["base"]:
        return list(SCORES), 1
    return [name for name in table["base"] if name.startswith("nll:") or name in CHOICES], 3


def bounds(name: str, calibration: Wanted) -> tuple[float, float]:
    """What a number can be."""
    metric = calibration.get(name, {}).get("metric", "")
    if metric in ("nll", "brier") or name.startswith("nll:") or name == "latency":
        return (0.0, math.inf)
    return (0.0, 1.0) if metric and metric != "misrouting" else (0.0, 100.0)


def shown(value: Across, digits: int = 1) -> str:
    """Mean and interval; of a single seed the value alone, of none an en dash."""
    if math.isnan(value.value):
        return "–"
    mean = f"{value.value:.{digits}f}"
    return mean if math.isnan(value.low) else f"{mean} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def table_of(table: Table, names: Mapping[str, str], numbers: Sequence[str], digits: int, calibration: Wanted) -> str:
    """A Markdown table of the models that have one of the numbers: mean over seeds with its interval."""
    lines = [f"| model | {' | '.join(numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    for model, name in names.items():
        own = table.get(model, {})
        if any(number in own for number in numbers):
            cells = [
                shown(across(own[n], bounds=bounds(n, calibration)), digits) if n in own else "–" for n in numbers
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(
    table: Table, names: Mapping[str, str], pairs: Sequence[tuple[str, str]], numbers: Sequence[str], digits: int
) -> str:
    """A Markdown table of ours − theirs, paired by seed."""
    lines = [f"| difference | {' | '.join(numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    for ours, theirs in pairs:
        both = [(table[ours].get(n), table[theirs].get(n)) for n in numbers]
        found = [across_difference(a, b) if a and b else None for a, b in both]
        marks = ["–" if f is None else shown(f, digits) + (" *" if f.apart else "") for f in found]
        lines.append(f"| {names[ours]} − {names[theirs]} | {' | '.join(marks)} |")
    return "\n".join(lines)


def overview(head: str, tables: Mapping[str, Table], names: Mapping[str, str], number: str, digits: int = 1) -> str:
    """A Markdown table of one number: a row a table (`head` says what sets them apart), a column a model."""
    found = {
        model: name for model, name in names.items() if any(number in own.get(model, {}) for own in tables.values())
    }
    lines = [f"| {head} | {' | '.join(found.values())} |", "|---" * (len(found) + 1) + "|"]
    for label, table in tables.items():
        values = [table.get(model, {}).get(number) for model in found]
        cells = ["–" if own is None else shown(across(own, bounds=bounds(number, {})), digits) for own in values]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def overview_of_leads(
    head: str, tables: Mapping[str, Table], names: Mapping[str, str], pairs: Sequence[tuple[str, str]], number: str
) -> str:
    """As `overview`, a column a pair of models: ours − theirs, paired by seed."""
    lines = [f"| {head} | {' | '.join(f'{names[a]} − {names[b]}' for a, b in pairs)} |"]
    lines.append("|---" * (len(pairs) + 1) + "|")
    for label, table in tables.items():
        both = [(table.get(a, {}).get(number), table.get(b, {}).get(number)) for a, b in pairs]
        found = [across_difference(a, b) if a and b else None for a, b in both]
        cells = ["–" if own is None else shown(own) + (" *" if own.apart else "") for own in found]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kept(target: Path, folders: Sequence[Path], table: Table) -> None:
    """Write every value into a small file, from which the tables can be made again."""
    target.write_text(json.dumps({"runs": [f.name for f in folders], "models": table}, indent=1) + "\n")
