"""Lines over seeds as JSON, as CSV, and which of them are best."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from triune.metrics.across import Across, across_difference
from triune.metrics.intervals import LEVEL
from triune.report.across_run import AcrossRun, Line, reference_in
from triune.report.calibration_sections import GROUP_METRICS, METRICS, PARTS
from triune.report.labels import models_of, score_names
from triune.report.numerals import MINUS, NO_BREAK_SPACE, listed, value_text
from triune.report.tables import csv_field

COLUMNS = (
    *("part", "model", "name", "kind", "what", "group", "reference", "unit", "better", "n", "missing"),
    *("value", "low", "high", "min", "max"),
)


def across_json(run: AcrossRun) -> dict[str, Any]:
    """What across.json holds: every line with the seeds' own values."""
    return {
        "seeds": run.seeds,
        "unfinished": run.unfinished,
        "level": LEVEL,
        "reference": reference_in(run) or None,
        "rows": [
            {**_row(line), "values": dict(zip(map(str, run.seeds), line.values, strict=True))} for line in run.lines
        ],
    }


def across_csv(run: AcrossRun) -> str:
    """The same in full precision, one column a seed; a number that was not measured is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*COLUMNS, *(f"seed {seed}" for seed in run.seeds)))
    for line in run.lines:
        writer.writerow(map(csv_field, (*_row(line).values(), *line.values)))
    return out.getvalue()


def _row(line: Line) -> dict[str, Any]:
    found = line.across
    named = (
        line.part,
        line.model,
        line.name,
        line.kind,
        line.what,
        line.group,
        line.reference,
        line.unit,
        line.better,
    )
    numbers = (found.n, found.missing, found.value, found.low, found.high, found.smallest, found.largest)
    return dict(zip(COLUMNS, (*named, *numbers), strict=True))


def score_columns(run: AcrossRun, few: bool) -> dict[str, list[Line]]:
    """The scores of the full or of the scarce-data comparison in order, each with its models' lines."""
    models, index = models_of(run.means.scores, few), run.index("score")
    names = score_names(run.means.scores, models)
    return {name: [index[model, name] for model in models if (model, name) in index] for name in names}


def difference_columns(run: AcrossRun, few: bool) -> dict[str, dict[str, Line]]:
    """The scores that models differ in from the reference: each with the models' lines by model."""
    index = run.index("difference")
    found = {
        name: {line.model: index[line.model, name] for line in lines if (line.model, name) in index}
        for name, lines in score_columns(run, few).items()
    }
    return {name: lines for name, lines in found.items() if lines}


def group_columns(run: AcrossRun) -> dict[str, tuple[list[str], dict[str, list[Line | None]]]]:
    """Calibration of groups of prompts: caption -> the groups, and each model's lines in their order; {} for none."""
    index = {(line.model, line.group, line.name, line.what): line for line in run.lines if line.group}
    groups, models = (list(dict.fromkeys(key[place] for key in index)) for place in (1, 0))
    if not groups:
        return {}
    return {
        caption: (groups, {model: [index.get((model, group, *key)) for group in groups] for model in models})
        for key, caption in GROUP_METRICS.items()
    }


def compared(columns: Mapping[str, Mapping[str, Line]]) -> list[str]:
    """The models that such columns have, in order."""
    return list(dict.fromkeys(model for lines in columns.values() for model in lines))


def best_lines(lines: Sequence[Line]) -> Mapping[str, str]:
    """Of one score's lines: model -> "best", or "tied" where seed by seed it is not told apart from the best.

    Told apart is what differs from the best by a paired difference whose interval leaves out 0.
    """
    measured = [line for line in lines if line.across.n and line.better != "neither"]
    sign = 1.0 if measured and measured[0].better == "higher" else -1.0
    top = max(measured, key=lambda line: sign * line.across.value, default=None)
    if top is None:
        return {}
    standing = {line.model: "best" for line in measured if line.across.value == top.across.value}
    for line in measured:
        gap = across_difference(line.values, top.values)
        if line.model not in standing and gap.n > 1 and not gap.apart and not (gap.alike and gap.value):
            standing[line.model] = "tied"
    return standing


def interval_words(found: Across, unit: str) -> str:
    """The interval over seeds, "[91.9, 96.2]"; empty below two seeds, and where all agree, which bounds nothing."""
    if math.isnan(found.low) or found.alike:
        return ""
    return f"[{value_text(found.low, unit)},{NO_BREAK_SPACE}{value_text(found.high, unit)}]"


def range_words(found: Across, unit: str) -> str:
    """The seeds' extremes, "91.5–95.2"; "every seed" where several agree; empty below two seeds."""
    if found.n < 2:
        return ""
    if found.alike:
        return "every seed"
    return f"{value_text(found.smallest, unit)}–{value_text(found.largest, unit)}"


def signed_text(value: float, unit: str) -> str:
    """A difference with its sign, "+1.2"; 0 has none."""
    text = value_text(value, unit)
    plain = text.strip("0.") == "" or math.isnan(value) or text.startswith(MINUS)
    return text if plain else f"+{text}"


def signed_interval(found: Across, unit: str) -> str:
    """The interval of a difference, "[−0.3, +2.7]"; "every seed" where several agree."""
    if math.isnan(found.low):
        return ""
    if found.alike:
        return "every seed"
    return f"[{signed_text(found.low, unit)},{NO_BREAK_SPACE}{signed_text(found.high, unit)}]"


def outcome(line: Line) -> str:
    """Where a difference's model stands: "better", "worse", "apart" (no side is better), or "" if not told apart.

    "alike": the difference is the same in every seed and not 0, of which no interval says how sure it is.
    """
    if line.across.alike and line.across.value:
        return "alike"
    if not line.across.apart:
        return ""
    if line.better == "neither":
        return "apart"
    return "better" if (line.across.value > 0) == (line.better == "higher") else "worse"


def metric_label(metric: str) -> str:
    """The heading of a calibration metric, with its direction; one that is not known stays as it is."""
    return METRICS.get(metric) or PARTS.get(metric, metric)


def seeds_text(seeds: Sequence[int]) -> str:
    """ "seeds 0, 1 and 3"."""
    return ("seed " if len(seeds) == 1 else "seeds ") + listed([str(seed) for seed in seeds])
