"""The page of a recipe over several seeds: one HTML file that opens from disk and loads nothing."""

import math
from collections.abc import Mapping, Sequence

from triune.report import run_sections
from triune.report.across_figures import reach, seed_panels
from triune.report.across_findings import caveats, lead
from triune.report.across_run import COSTS, AcrossRun, Cost, Line, reference_in
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
from triune.report.calibration_sections import METRICS, TITLES, WHOLE, group_words
from triune.report.html import Section, bullets, cell, data_table, details, escape, figure, grid, paragraph
from triune.report.interval_figures import span
from triune.report.labels import (
    ARROWS,
    DIRECTIONS,
    axis_scores,
    column_label,
    headline_scores,
    model_label,
    model_phrase,
    models_of,
    score_label,
    score_names,
)
from triune.report.numerals import listed, seconds_text, size_text, value_text
from triune.report.page import page_title
from triune.report.shell import Shell, build_shell
from triune.report.tables import absent_lines, judge_lines

# The costs that the score tables show; across.json has all.
SHOWN_COSTS = ("parameters_active", "train_steps", "latency_ratio", "memory_bytes")
TOGETHER = 6  # panels that two rows of the figure hold
NOTHING = '<span class="none">–<span class="spoken"> not measured</span></span>'
SIDES = {"better": ("right", "better"), "worse": ("wrong", "worse"), "apart": ("open", "differs")}


def build_across_page(run: AcrossRun) -> str:
    """The whole page as text; what comes from files is escaped."""
    recipe = run.means.recipe
    shell = Shell(
        title=page_title(run.means),
        lead=lead(run),
        kicker="Triune report over seeds",
        skip=("scores", "scores"),
        files='Also in this folder: <a href="report.md">report.md</a>, <a href="across.csv">across.csv</a>, '
        '<a href="across.json">across.json</a>. <a href="#caveats">What this does not show</a>. '
        '<a href="#seeds">The seeds\' own pages</a>.',
        made="Made by <code>triune report</code> from the seeds' files in "
        f"<code>{escape(run.means.folder.name)}</code>; every mean, interval and difference stands in "
        "across.json with the seeds' own values.",
        about=paragraph(recipe.about, "about") if recipe and recipe.about else "",
        styles=("across.css",),
    )
    return build_shell(shell, [section for make in SECTIONS if isinstance(section := make(run), Section)])


def scores(run: AcrossRun) -> Section:
    """The one table: models, scores and costs."""
    hint = (
        "The mean over seeds; below it its 95 % t interval, then its smallest and largest seed. Bold: the best mean "
        "of its column. Dotted underline: seed by seed not told apart from the best (the paired difference's interval "
        "holds 0). The bar is the interval to the scale of its column, with a tick for each seed and a darker one "
        "for the mean."
    )
    table = _score_table(run, False, "Scores of every model over seeds")
    return Section("scores", "Scores over seeds", paragraph(hint, "hint") + table)


def scarce(run: AcrossRun) -> Section | None:
    """The comparison on scarce joint data, where the recipe has one."""
    if not models_of(run.means.scores, scarce=True):
        return None
    table = _score_table(run, True, "Scores on scarce joint data over seeds")
    return Section("scarce", "When joint data is scarce", table)


def _score_table(run: AcrossRun, few: bool, caption: str) -> str:
    models, columns = models_of(run.means.scores, few), score_columns(run, few)
    index, costs = run.index("score"), run.index("cost")
    shown = [c for c in COSTS if c.name in SHOWN_COSTS and any((model, c.name) in costs for model in models)]
    standing = {name: best_lines(lines) for name, lines in columns.items()}
    limits = {name: span([reach(line) for line in lines], lines[0].unit) for name, lines in columns.items()}
    rows = []
    for model in models:
        cells = [_score_cell(run, index.get((model, name)), standing[name], limits[name]) for name in columns]
        rows.append((escape(model_label(model)), cells + [_cost_cell(costs.get((model, c.name)), c) for c in shown]))
    head = ["model", *(_head(lines[0]) for lines in columns.values())]
    head += [f'<span class="name">{escape(c.head)}</span><br><small>{escape(c.below)}</small>' for c in shown]
    notes = list(absent_lines(run.parts[0].run, models))
    notes += judge_lines(tuple(row for row in run.means.scores if row.model in models))
    if any(c.name == "latency_ratio" for c in shown):
        notes.append(
            "Latency: mean over seeds of each seed's median ratio to the base, with its smallest and largest seed. "
            "Training: steps of the model itself, not those of the experts that it is made of."
        )
    return data_table(caption, head, rows, sortable=True, notes=notes)


def _head(line: Line, unit: str = "") -> str:
    arrow = ARROWS[line.better]
    return (
        f'<span class="name">{escape(score_label(line.name))}</span><br><small>{escape(unit or line.unit)} '
        f'<span aria-hidden="true">{arrow}</span><span class="spoken">, {DIRECTIONS[line.better]}</span></small>'
    )


def _missing(run: AcrossRun, line: Line) -> str:
    """How many seeds a value is of, where they are not all."""
    return f" <small>{size_text(line.across.n)}</small>" if line.across.n < len(run.seeds) else ""


def _score_cell(run: AcrossRun, line: Line | None, standing: Mapping[str, str], limits: tuple[float, float]) -> str:
    if line is None or not line.across.n:
        return cell(NOTHING, math.nan)
    value = escape(value_text(line.across.value, line.unit))
    if standing.get(line.model) == "best":
        value = f'<strong>{value}<span class="spoken"> best</span></strong>'
    elif standing.get(line.model) == "tied":
        value = f'<span class="tied">{value}<span class="spoken"> not told apart from the best</span></span>'
    content = value + _missing(run, line) + _ends(line) + _bar(line, limits)
    return cell(content, line.across.value, "score")


def _ends(line: Line) -> str:
    interval, extremes = interval_words(line.across, line.unit), range_words(line.across, line.unit)
    first = f" <small>{escape(interval)}</small>" if interval else ""
    return f'{first} <small class="range">{escape(extremes)}</small>'


def _bar(line: Line, limits: tuple[float, float]) -> str:
    """Interval, seeds and mean drawn to scale; decoration, since the numbers stand by."""

    def place(x: float) -> float:
        return 100 * min(1.0, max(0.0, (x - limits[0]) / (limits[1] - limits[0])))

    found = line.across
    ends = ""
    if not math.isnan(found.low):
        left, right = place(found.low), place(found.high)
        ends = f'<i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
    ticks = "".join(f'<u style="left:{place(value):.1f}%"></u>' for value in line.values if not math.isnan(value))
    return f'<span class="bar" aria-hidden="true">{ends}{ticks}<b style="left:{place(found.value):.1f}%"></b></span>'


def _cost_cell(line: Line | None, cost: Cost) -> str:
    if line is None:
        return cell(NOTHING, math.nan)
    found = line.across
    text, low, high = (cost.text(x) for x in (found.value, found.smallest, found.largest))
    extremes = f"<br><small>{escape(low)}–{escape(high)}</small>" if low != high else ""
    return cell(escape(text) + extremes, found.value, "count")


def dots(run: AcrossRun) -> Section:
    """The one figure: every model on every score; of many scores those beside the axes and their mean are folded."""
    names = score_names(run.means.scores, models_of(run.means.scores))
    main = (*axis_scores(run.means), *headline_scores(run.means))
    chosen = [name for name in names if name in main or len(names) <= TOGETHER]
    reference = reference_in(run)
    line = f" The dashed line is the mean of {model_phrase(reference)}." if reference else ""
    caption = f"Marks are means over seeds, bars their 95 % t intervals, upright ticks the single seeds.{line}"
    rest = [name for name in names if name not in chosen]
    folded = details("The other scores", grid(seed_panels(run, rest, "rest"), "dots")) if rest else ""
    body = figure(grid(seed_panels(run, chosen, "seeds"), "dots") + folded, caption)
    return Section("dots", "Every seed", body)


def differences(run: AcrossRun) -> Section | None:
    """Paired differences from the reference, in both comparisons."""
    tables = [_difference_table(run, few) for few in (False, True) if reference_in(run, few)]
    if not tables:
        return None
    text = (
        "The mean over seeds of a model's score less that of the reference with the same seed, with its 95 % t "
        "interval. Better and worse stand where the interval leaves out 0."
    )
    title = f"Differences from {model_phrase(reference_in(run) or reference_in(run, True))}"
    return Section("differences", title, paragraph(text, "hint") + "".join(tables))


def _difference_table(run: AcrossRun, few: bool) -> str:
    columns = difference_columns(run, few)
    rows = [
        (escape(model_label(model)), [_difference_cell(run, lines.get(model)) for lines in columns.values()])
        for model in compared(columns)
    ]
    data = " on scarce joint data" if few else ""
    caption = f"Score less that of {model_label(reference_in(run, few))}{data}, paired by seed"
    first = [next(iter(lines.values())) for lines in columns.values()]
    heads = [_head(line, "points" if line.unit == "%" else "") for line in first]
    return data_table(caption, ["model", *heads], rows, sortable=True)


def _difference_cell(run: AcrossRun, line: Line | None) -> str:
    if line is None or not line.across.n:
        return cell(NOTHING, math.nan)
    value, interval = signed_text(line.across.value, line.unit), signed_interval(line.across, line.unit)
    side = SIDES.get(outcome(line))
    mark = f' <span class="verdict {side[0]}">{side[1]}</span>' if side else ""
    content = f"{escape(value)}{mark}{_missing(run, line)} <small>{escape(interval)}</small>"
    return cell(content, line.across.value, "score")


def calibration(run: AcrossRun) -> Section | None:
    """calibration.json over seeds: a table for each kind, with layers and the parts of the Brier score folded."""
    lines = [line for line in run.lines if line.part == "calibration"]
    if not lines:
        return None
    text = (
        "Routing: is the router's confidence its accuracy? Answers: is the probability that a model gives its answer "
        "its accuracy? Means over seeds with 95 % t intervals, and the smallest and the largest seed."
    )
    body = paragraph(text)
    for kind in dict.fromkeys(line.kind for line in lines):
        title = TITLES[kind][0] if kind in TITLES else kind
        own = [line for line in lines if line.kind == kind and not line.group]
        whole = [line for line in own if line.name in METRICS and not line.what.startswith("layer")] or own
        rest = [line for line in own if line not in whole]
        body += _calibration_table(run, f"{title}: calibration over seeds", whole)
        body += details(f"{title}: the rest", _calibration_table(run, f"{title}: the rest", rest)) if rest else ""
    return Section("calibration", "Calibration over seeds", body + _group_tables(run))


def _calibration_table(run: AcrossRun, caption: str, lines: Sequence[Line]) -> str:
    names = list(dict.fromkeys(line.name for line in lines))
    index = {(line.model, line.what, line.name): line for line in lines}
    rows = []
    for model, what in dict.fromkeys((line.model, line.what) for line in lines):
        found = [index.get((model, what, name)) for name in names]
        head = escape(column_label(model)) + (f" <small>{escape(what)}</small>" if what != WHOLE else "")
        rows.append((head, [_plain_cell(run, line) for line in found]))
    heads = [f'<span class="name">{escape(metric_label(name))}</span>' for name in names]
    return data_table(caption, ["model", *heads], rows, sortable=True)


def _group_tables(run: AcrossRun) -> str:
    """Misrouting and ECE by group of prompts, a table each."""
    body = ""
    for caption, (groups, lines) in group_columns(run).items():
        rows = [(escape(column_label(model)), [_plain_cell(run, one) for one in own]) for model, own in lines.items()]
        body += data_table(f"{caption} over seeds", ["model", *map(escape, groups)], rows, sortable=True)
    return group_words(groups) + body if body else ""


def _plain_cell(run: AcrossRun, line: Line | None) -> str:
    if line is None or not line.across.n:
        return cell(NOTHING, math.nan)
    value = escape(value_text(line.across.value, line.unit))
    return cell(value + _missing(run, line) + _ends(line), line.across.value, "score")


def limits(run: AcrossRun) -> Section:
    """What the page does not show."""
    return Section("caveats", "What this does not show", bullets(caveats(run), "caveats"))


def seeds(run: AcrossRun) -> Section:
    """Each seed with a link to its own page, and what it took."""
    rows = []
    total = 0.0
    for part in run.parts:
        seconds = part.run.timings.total_seconds if part.run.timings else math.nan
        total += 0.0 if math.isnan(seconds) else seconds
        place = f"seed-{part.seed}"
        link = f'<a href="{place}/report.html">{place}/report.html</a>'
        rows.append((str(part.seed), [cell(link), cell(escape(seconds_text(seconds)), seconds, "count")]))
    caption = f"The seeds' own pages; {seconds_text(total)} of work in all"
    left = paragraph(f"Unfinished: {listed(list(map(str, run.unfinished)))}.", "missing") if run.unfinished else ""
    return Section("seeds", "The seeds", data_table(caption, ["seed", "page", "time"], rows) + left)


def settings(run: AcrossRun) -> Section | str:
    """The recipe, word for word."""
    return run_sections.settings(run.means)


SECTIONS = (scores, scarce, dots, differences, calibration, limits, seeds, settings)
