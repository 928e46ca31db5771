"""The report over seeds as Markdown: the lead, the score tables, the differences, calibration, the caveats."""

from collections.abc import Sequence

from triune.report.across_findings import caveats, lead
from triune.report.across_run import COSTS, AcrossRun, Line, reference_in
from triune.report.across_tables import (
    best_lines,
    compared,
    difference_columns,
    group_columns,
    interval_words,
    metric_label,
    outcome,
    range_words,
    score_columns,
    signed_interval,
    signed_text,
)
from triune.report.labels import ARROWS, column_label, model_label, model_phrase, models_of, score_label
from triune.report.markdown import bullets, fenced, inline, table
from triune.report.numerals import seconds_text, size_text, value_text
from triune.report.page import page_title
from triune.report.tables import absent_lines, judge_lines


def render_across_markdown(run: AcrossRun) -> str:
    """The report as GitHub-flavoured Markdown."""
    recipe = run.means.recipe
    blocks = [f"# {inline(page_title(run.means))}"]
    if recipe and recipe.about:
        blocks.append(inline(recipe.about))
    blocks += [inline(sentence) for sentence in lead(run)]
    blocks += ["## Scores over seeds", _scores(run, few=False)]
    if models_of(run.means.scores, scarce=True):
        blocks += ["## When joint data is scarce", _scores(run, few=True)]
    for few in (False, True):
        if reference_in(run, few):
            data = " (scarce joint data)" if few else ""
            blocks += [f"## Differences from {inline(model_phrase(reference_in(run, few)))}{data}", _gaps(run, few)]
    if any(line.part == "calibration" for line in run.lines):
        blocks += ["## Calibration over seeds", _calibration(run)]
    blocks += ["## What this does not show", bullets(caveats(run)), "## The seeds", _seeds(run)]
    if recipe:
        blocks += ["## Settings", fenced(recipe.text)]
    return "\n\n".join(blocks) + "\n"


def _scores(run: AcrossRun, few: bool) -> str:
    models, columns = models_of(run.means.scores, few), score_columns(run, few)
    index, costs = run.index("score"), run.index("cost")
    standing = {name: best_lines(lines) for name, lines in columns.items()}
    shown = [cost for cost in COSTS if any((model, cost.name) in costs for model in models)]
    head = ["model", *(_head(lines[0]) for lines in columns.values()), *(f"{c.head}, {c.below}" for c in shown)]
    rows = []
    for model in models:
        cells = [_cell(run, index.get((model, name)), standing[name].get(model) == "best") for name in columns]
        spent = [costs.get((model, cost.name)) for cost in shown]
        cells += [cost.text(line.across.value) if line else "–" for cost, line in zip(shown, spent, strict=True)]
        rows.append([inline(model_label(model)), *cells])
    note = "Mean over seeds [95 % t interval], smallest–largest seed; bold: the best mean of its column.\n\n"
    below = [*absent_lines(run.parts[0].run, models)]
    below += judge_lines(tuple(row for row in run.means.scores if row.model in models))
    return f"{table(head, rows)}\n\n{note}{bullets(below)}"


def _head(line: Line, unit: str = "") -> str:
    return " ".join((inline(score_label(line.name)), inline(unit or line.unit), ARROWS[line.better])).strip()


def _cell(run: AcrossRun, line: Line | None, best: bool = False) -> str:
    if line is None or not line.across.n:
        return "–"
    value = value_text(line.across.value, line.unit)
    words = (interval_words(line.across, line.unit), range_words(line.across, line.unit), _missing(run, line))
    return " ".join(part for part in (f"**{value}**" if best else value, *words) if part)


def _missing(run: AcrossRun, line: Line) -> str:
    return size_text(line.across.n) if line.across.n < len(run.seeds) else ""


def _gaps(run: AcrossRun, few: bool) -> str:
    columns = difference_columns(run, few)
    first = [next(iter(lines.values())) for lines in columns.values()]
    head = ["model", *(_head(line, "points" if line.unit == "%" else "") for line in first)]
    rows = [
        [inline(model_label(model)), *(_gap(run, lines.get(model)) for lines in columns.values())]
        for model in compared(columns)
    ]
    note = "Mean over seeds of the paired difference [95 % t interval]; better and worse where it leaves out 0."
    return f"{table(head, rows)}\n\n{note}"


def _gap(run: AcrossRun, line: Line | None) -> str:
    if line is None or not line.across.n:
        return "–"
    side = "" if outcome(line) == "alike" else outcome(line)  # the interval's place says so
    words = (signed_interval(line.across, line.unit), side, _missing(run, line))
    return " ".join(part for part in (signed_text(line.across.value, line.unit), *words) if part)


def _calibration(run: AcrossRun) -> str:
    lines = [line for line in run.lines if line.part == "calibration" and not line.group]
    blocks = [
        f"### {inline(kind.capitalize())}\n\n{_calibrated(run, [line for line in lines if line.kind == kind])}"
        for kind in dict.fromkeys(line.kind for line in lines)
    ]
    for caption, (groups, rows) in group_columns(run).items():
        cells = [[inline(column_label(model)), *(_cell(run, line) for line in own)] for model, own in rows.items()]
        blocks.append(f"### {caption}\n\n{table(['model', *map(inline, groups)], cells)}")
    return "\n\n".join(blocks)


def _calibrated(run: AcrossRun, lines: Sequence[Line]) -> str:
    metrics = dict.fromkeys(line.name for line in lines)
    index = {(line.model, line.what, line.name): line for line in lines}
    rows = [
        [inline(column_label(model)), inline(what), *(_cell(run, index.get((model, what, name))) for name in metrics)]
        for model, what in dict.fromkeys((line.model, line.what) for line in lines)
    ]
    return table(["model", "of", *(inline(metric_label(name)) for name in metrics)], rows)


def _seeds(run: AcrossRun) -> str:
    rows = []
    for part in run.parts:
        place = f"seed-{part.seed}/report.md"
        time = seconds_text(part.run.timings.total_seconds) if part.run.timings else "–"
        rows.append([str(part.seed), f"[{place}]({place})", time])
    rows += [[str(seed), "unfinished", "–"] for seed in run.unfinished]
    return table(["seed", "page", "time"], rows)
