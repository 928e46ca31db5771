"""Tables of an ablation over seeds from finished runs: collected numbers, means with intervals, paired differences.

What the scripts of single methods share. The interval of a mean is Student's over seeds; a difference is paired by
seed, and a star says that its interval leaves 0 out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from triune.metrics.across import Across, across, across_difference

Values = list[float | None]
Table = dict[str, dict[str, Values]]
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


def generated(table: Table) -> bool:
    """Whether answers of the miniature world were judged; elsewhere their likelihood is scored."""
    return "mean" in table["base"]


def scores_of(table: Table) -> tuple[list[str], int]:
    """What a run's tests score, and with how many decimals: percentages of the miniature world, else likelihoods."""
    if generated(table):
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


def _level(values: Values | None, limits: tuple[float, float], digits: int) -> str:
    return "–" if values is None else shown(across(values, bounds=limits), digits)


def _lead(ours: Values | None, theirs: Values | None, digits: int) -> str:
    if not ours or not theirs:
        return "–"
    found = across_difference(ours, theirs)
    return shown(found, digits) + (" *" if found.apart else "")


def table_of(table: Table, names: Mapping[str, str], numbers: Sequence[str], digits: int, calibration: Wanted) -> str:
    """A Markdown table of the models that have one of the numbers: mean over seeds with its interval."""
    lines = [f"| model | {' | '.join(numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    for model, name in names.items():
        own = table.get(model, {})
        if any(number in own for number in numbers):
            cells = [_level(own.get(n), bounds(n, calibration), digits) for n in numbers]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(
    table: Table, names: Mapping[str, str], pairs: Sequence[tuple[str, str]], numbers: Sequence[str], digits: int
) -> str:
    """A Markdown table of ours − theirs, paired by seed."""
    lines = [f"| difference | {' | '.join(numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    for ours, theirs in pairs:
        marks = [_lead(table[ours].get(n), table[theirs].get(n), digits) for n in numbers]
        lines.append(f"| {names[ours]} − {names[theirs]} | {' | '.join(marks)} |")
    return "\n".join(lines)


def overview(head: str, tables: Mapping[str, Table], names: Mapping[str, str], number: str, digits: int = 1) -> str:
    """A Markdown table of one number: a row a table (`head` says what sets them apart), a column a model."""
    found = {
        model: name for model, name in names.items() if any(number in own.get(model, {}) for own in tables.values())
    }
    lines = [f"| {head} | {' | '.join(found.values())} |", "|---" * (len(found) + 1) + "|"]
    for label, table in tables.items():
        cells = [_level(table.get(model, {}).get(number), bounds(number, {}), digits) for model in found]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def overview_of_leads(
    head: str, tables: Mapping[str, Table], names: Mapping[str, str], pairs: Sequence[tuple[str, str]], number: str
) -> str:
    """As `overview`, a column a pair of models: ours − theirs, paired by seed."""
    lines = [f"| {head} | {' | '.join(f'{names[a]} − {names[b]}' for a, b in pairs)} |"]
    lines.append("|---" * (len(pairs) + 1) + "|")
    for label, table in tables.items():
        cells = [_lead(table.get(a, {}).get(number), table.get(b, {}).get(number), 1) for a, b in pairs]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kept(target: Path, folders: Sequence[Path], table: Table) -> None:
    """Write every value into a small file, from which the tables can be made again."""
    target.write_text(json.dumps({"runs": [f.name for f in folders], "models": table}, indent=1) + "\n")
