"""A sweep as CSV and as Markdown."""

import csv
import io
from collections.abc import Sequence

from triune.report.labels import ARROWS, column_label, score_label
from triune.report.markdown import bullets, inline, table
from triune.report.numerals import value_text
from triune.report.sweep_run import Found, SweepRun
from triune.report.sweep_words import best_of, caveats, interval, lead, setting_name, short_keys, title, value_name
from triune.report.tables import csv_field

NUMBERS = ("value", "low", "high", "n")


def sweep_csv(run: SweepRun) -> str:
    """Every score of every model at each setting in full precision, one column a seed where seeds are swept."""
    seeds = seeds_of(run)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*run.keys, "model", "score", "unit", "better", *NUMBERS, *(f"seed {seed}" for seed in seeds)))
    for setting, rows in zip(run.settings, run.found, strict=True):
        for found in rows.values():
            named = (*map(value_name, setting.values.values()), found.model, found.name, found.unit, found.better)
            numbers = (found.value, found.low, found.high, found.n, *(found.seeds.get(s, float("nan")) for s in seeds))
            writer.writerow(map(csv_field, (*named, *numbers)))
    return out.getvalue()


def seeds_of(run: SweepRun) -> list[int]:
    """The seeds of all points."""
    return list(dict.fromkeys(seed for rows in run.found for found in rows.values() for seed in found.seeds))


def render_sweep_markdown(run: SweepRun) -> str:
    """The report as GitHub-flavoured Markdown."""
    blocks = [f"# {inline(title(run))}", *(inline(sentence) for sentence in lead(run))]
    blocks += [f"## Scores of {inline(column_label(run.subject))}", _scores(run)]
    blocks += ["## What this does not show", bullets(caveats(run)), "## The points", _points(run)]
    return "\n\n".join(blocks) + "\n"


def _scores(run: SweepRun) -> str:
    names, labels = run.headlines, short_keys(run.swept.keys)
    kinds = [next(row[run.subject, name] for row in run.found if (run.subject, name) in row) for name in names]
    head = [*(inline(labels[key]) for key in run.keys)] or ["setting"]
    head += [" ".join((inline(score_label(k.name)), inline(k.unit), ARROWS[k.better])).strip() for k in kinds]
    best = {name: best_of(run, name) for name in names}
    rows = []
    for place, (setting, found) in enumerate(zip(run.settings, run.found, strict=True)):
        cells = [inline(value_name(value)) for value in setting.values.values()] or [setting_name({})]
        rows.append([*cells, *(_cell(found.get((run.subject, name)), place in best[name]) for name in names)])
    return f"{table(head, rows)}\n\nValue [95 % interval]; bold: the best value of its column."


def _cell(found: Found | None, best: bool) -> str:
    if found is None:
        return "–"
    value = value_text(found.value, found.unit)
    return f"{f'**{value}**' if best else value} {interval(found)}".strip()


def _points(run: SweepRun) -> str:
    names: Sequence[str] = [point.name for setting in run.settings for point in setting.runs]
    return "\n".join(f"* [{inline(name)}](<{name}/report.html>)" for name in names)
