"""The page of a sweep: one HTML file that opens from disk and loads nothing."""

import math
from urllib.parse import quote

from triune.report.html import Section, bullets, cell, data_table, escape, figure, grid, paragraph
from triune.report.labels import ARROWS, DIRECTIONS, column_label, model_phrase, score_label
from triune.report.numerals import seconds_text, value_text
from triune.report.shell import Shell, build_shell
from triune.report.sweep_figures import sweep_pictures
from triune.report.sweep_run import Found, SweepRun
from triune.report.sweep_words import best_of, caveats, interval, lead, setting_name, title

NOTHING = '<span class="none">–<span class="spoken"> not measured</span></span>'


def build_sweep_page(run: SweepRun) -> str:
    """The whole page as text; what comes from files is escaped."""
    sections = [section for make in (scores, pictures, models, limits, points) if (section := make(run))]
    shell = Shell(
        title=title(run),
        lead=lead(run),
        kicker="Triune sweep",
        skip=("scores", "scores"),
        styles=("sweep.css",),
        files='Also in this folder: <a href="report.md">report.md</a>, <a href="sweep.csv">sweep.csv</a>, '
        '<a href="sweep.json">sweep.json</a>. <a href="#caveats">What this does not show</a>. '
        '<a href="#points">The points\' own pages</a>.',
        made="Made by <code>triune report</code> from the points' files in "
        f"<code>{escape(run.swept.folder.name)}</code>; means over seeds were computed from their scores.",
    )
    return build_shell(shell, sections)


def scores(run: SweepRun) -> Section:
    """The page's model at every setting."""
    best = {name: best_of(run, name) for name in run.headlines}
    rows = [
        (
            escape(setting_name(setting.values)),
            [_cell(row.get((run.subject, name)), place in best[name]) for name in run.headlines],
        )
        for place, (setting, row) in enumerate(zip(run.settings, run.found, strict=True))
    ]
    caption = f"Scores of {model_phrase(run.subject)} at every setting"
    heads = [_head(run, name) for name in run.headlines]
    hint = paragraph("The value with its 95 % interval; bold: the best value of its column.", "hint")
    return Section("scores", "Scores", hint + data_table(caption, ["setting", *heads], rows, sortable=True))


def _head(run: SweepRun, name: str) -> str:
    found = next(row[run.subject, name] for row in run.found if (run.subject, name) in row)
    return (
        f'<span class="name">{escape(score_label(name))}</span><br><small>{escape(found.unit)} '
        f'<span aria-hidden="true">{ARROWS[found.better]}</span>'
        f'<span class="spoken">, {DIRECTIONS[found.better]}</span></small>'
    )


def _cell(found: Found | None, best: bool = False) -> str:
    if found is None or math.isnan(found.value):
        return cell(NOTHING, math.nan)
    value = escape(value_text(found.value, found.unit))
    value = f'<strong>{value}<span class="spoken"> best</span></strong>' if best else value
    ends = interval(found)
    return cell(value + (f" <small>{escape(ends)}</small>" if ends else ""), found.value, "score")


def pictures(run: SweepRun) -> Section | None:
    """A score against the swept key, or a heat map of two keys."""
    drawn = sweep_pictures(run)
    if not drawn:
        return None
    phrase = model_phrase(run.subject)
    caption = (
        f"{phrase[:1].upper()}{phrase[1:]} with 95 % intervals; dashed: the base."
        if len(run.keys) == 1
        else "The better the darker, each map on its own scale."
    )
    return Section("pictures", "Against the swept values", figure(grid(drawn, "dots"), caption))


def models(run: SweepRun) -> Section | None:
    """Every model on the first headline score: what a setting does to the others."""
    if not run.headlines or len(run.models) < 2:
        return None
    name = run.headlines[0]
    shown = [model for model in run.models if any((model, name) in row for row in run.found)]
    rows = [
        (escape(setting_name(setting.values)), [_cell(row.get((model, name))) for model in shown])
        for setting, row in zip(run.settings, run.found, strict=True)
    ]
    heads = [f'<span class="name">{escape(column_label(model))}</span>' for model in shown]
    caption = f"Every model: {score_label(name)}"
    return Section("models", "Every model", data_table(caption, ["setting", *heads], rows, sortable=True))


def limits(run: SweepRun) -> Section:
    """What the page does not show."""
    return Section("caveats", "What this does not show", bullets(caveats(run), "caveats"))


def points(run: SweepRun) -> Section:
    """Each point with a link to its own page, and what it took."""
    rows = []
    for point in run.swept.points:
        seconds = point.run.timings.total_seconds if point.run.timings else math.nan
        link = f'<a href="{escape(quote(point.name))}/report.html">{escape(point.name)}</a>'
        rows.append((link, [cell(escape(seconds_text(seconds)), seconds, "count")]))
    caption = "The points' own pages. What a point took over from another is not counted in its time"
    return Section("points", "The points", data_table(caption, ["point", "time"], rows))
