"""The sections about scores: the tables, the trade-off, what lies beside the axes, the phrasings, the samples."""

import math

from triune.report import cost_columns
from triune.report.figures import NARROW, WIDE
from triune.report.findings import fusing_pays, scarce_setting, what_axes
from triune.report.html import Section, bullets, cell, data_table, details, escape, figure, grid, paragraph, two_widths
from triune.report.interval_figures import side_panels, span
from triune.report.labels import (
    ARROWS,
    DIRECTIONS,
    SCARCE,
    column_label,
    model_label,
    models_of,
    score_index,
    score_label,
    score_names,
)
from triune.report.numerals import count_text, interval_text, listed, size_text, value_text
from triune.report.run import ModelFacts, ModelScore, Run, SideBySide
from triune.report.tables import Cell, Column, absent_lines, judge_lines, score_columns, score_table
from triune.report.tradeoff import choose_tradeoff, draw_tradeoff
from triune.types import Score

VERDICTS = {True: ("right", "✓ judged right"), False: ("wrong", "✗ judged wrong"), None: ("open", "not judged")}


def scores(run: Run) -> Section:
    """The main table."""
    hint = (
        "Bold: the best value of its column. Dotted underline: the 95 % interval overlaps that of the best value, so "
        "this run does not tell the two apart. The bar under a value is the same interval drawn to the scale of its "
        "column."
    )
    body = paragraph(hint, "hint") + score_html(run, False, "Scores of every model with 95 % intervals")
    return Section("scores", "Scores", body)


def scarce(run: Run) -> Section | str:
    """The comparison on scarce joint data; its title claims something only where the intervals do."""
    if not models_of(run.scores, scarce=True):
        return "The scarce-data comparison: scores.json has no model named scarce:…."
    title = "Where fusing pays: scarce joint data" if fusing_pays(run) else "When joint data is scarce"
    facts = run.models or {}
    setting = scarce_setting(run)
    noted: dict[str, list[str]] = {}
    for model in models_of(run.scores, scarce=True):
        if model in facts and facts[model].note:
            noted.setdefault(facts[model].note, []).append(model_label(model))
    notes = [] if setting else [f"{listed(labels)}: {note}" for note, labels in noted.items()]
    text = "The same models, with little data that joins the axes" + (f": {setting}." if setting else ".")
    body = paragraph(text) + (bullets(notes) if notes else "")
    return Section("scarce", title, body + score_html(run, True, "Scores on scarce joint data with 95 % intervals"))


def score_html(run: Run, scarce: bool, caption: str) -> str:
    """Models as rows, scores as columns, the interval beside and drawn below each value, judges underneath."""
    columns = score_columns(run, scarce)
    index = score_index(run.scores)
    models = models_of(run.scores, scarce)
    limits = {
        name: span([(index[m, name].low, index[m, name].high) for m in models if (m, name) in index], unit)
        for name, unit in ((column.name, column.score.unit) for column in columns)
    }
    costs, facts = cost_columns.cost_columns(run, models), run.models or {}
    rows = [
        (
            escape(row.label),
            [_score_cell(c, column, limits[column.name]) for c, column in zip(row.cells, columns, strict=True)]
            + cost_columns.cells(costs, facts.get(row.model, ModelFacts())),
        )
        for row in score_table(run, scarce)
    ]
    shown = tuple(row for row in run.scores if row.model.startswith(SCARCE) == scarce)
    head = ["model", *map(_head, columns), *cost_columns.heads(costs)]
    notes = [*absent_lines(run, models), *judge_lines(shown), *cost_columns.explanation(run, costs)]
    return data_table(caption, head, rows, sortable=True, notes=notes)


def _head(column: Column) -> str:
    score = column.score
    size = size_text(column.n) if column.n else "n differs"
    arrow = ARROWS[score.better]
    return (
        f'<span class="name">{escape(column.label)}</span><br><small>{escape(score.unit)} '
        f'<span aria-hidden="true">{arrow}</span><span class="spoken">, {DIRECTIONS[score.better]}</span>'
        f"<br>{size}</small>"
    )


def _score_cell(item: Cell | None, column: Column, limits: tuple[float, float]) -> str:
    if item is None:
        return cell('<span class="none">–<span class="spoken"> not scored</span></span>', math.nan)
    content = value_html(item.score, item.best, item.tied)
    if column.n is None and item.score.n:
        content += f' <small class="n">{size_text(item.score.n)}</small>'
    return cell(content + interval_bar(item.score, limits), item.score.value, "score")


def value_html(score: Score, best: bool = False, tied: bool = False) -> str:
    """Value and interval; the words behind bold and underline are spoken too."""
    value = escape(value_text(score.value, score.unit))
    if best:
        value = f'<strong>{value}<span class="spoken"> best</span></strong>'
    elif tied:
        value = f'<span class="tied">{value}<span class="spoken"> not told apart from the best</span></span>'
    interval = escape(interval_text(score))
    return f"{value} <small>{interval}</small>" if interval else f'<span class="none">{value}</span>'


def interval_bar(score: Score, limits: tuple[float, float]) -> str:
    """The interval as a bar and the value as a tick, on the scale `limits`; decoration, since the numbers stand by."""
    if math.isnan(score.value):
        return ""
    low, value, high = (
        100 * min(1.0, max(0.0, (x - limits[0]) / (limits[1] - limits[0])))
        for x in (score.low, score.value, score.high)
    )
    return (
        f'<span class="bar" aria-hidden="true"><i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        f'<b style="left:{value:.1f}%"></b></span>'
    )


def tradeoff(run: Run) -> Section | str:
    """The picture of one axis against the others."""
    chosen = choose_tradeoff(run)
    if chosen is None:
        return "The trade-off: it takes two scores with a direction, and two models that have both."
    caption = (
        f"{score_label(chosen.x)} (across) against {listed([score_label(name) for name in chosen.y])} (up). "
        "Bars are 95 % intervals"
    )
    if len(chosen.y) > 1:
        caption += (
            "; the upright one spans the mean of the lower to the mean of the upper ends, which is at least as wide "
            "as an interval of the mean"
        )
    left = [model_label(model) for model in chosen.left_out]
    if "lower" in chosen.better:
        caption += ". An axis on which lower is better runs backwards"
    caption += f". Not drawn, because a score is missing: {listed(left)}." if left else "."
    plots = two_widths(draw_tradeoff(run, chosen, WIDE), draw_tradeoff(run, chosen, NARROW))
    return Section("tradeoff", "The trade-off", figure(plots, caption))


def beside(run: Run) -> Section | str:
    """Scores beside the axes as dot plots."""
    panels = side_panels(run)
    if not panels:
        return "What lies beside the axes: scores.json has no such score (over-refusal, facts kept)."
    caption = f"What a model gains on {what_axes(run)} can cost elsewhere. Dots are values, bars 95 % intervals."
    return Section("beside", "Beside the axes", figure(grid(panels, "dots"), caption))


def phrasings(run: Run) -> Section | str:
    """breakdown.json: one folded table a score, groups as rows and models as columns."""
    if not run.breakdown:
        return "Scores group by group: breakdown.json is missing or empty."
    models = (*models_of(run.breakdown), *models_of(run.breakdown, scarce=True))
    parts = []
    for name in score_names(run.breakdown, models):
        rows = tuple(row for row in run.breakdown if row.score.name == name)
        parts.append(details(f"{score_label(name)}, {DIRECTIONS[rows[0].score.better]}", _groups(rows, models)))
    text = "The same scores for each group of prompts, such as one phrasing. Small groups have wide intervals."
    return Section("groups", "Group by group", paragraph(text) + "".join(parts))


def _groups(rows: tuple[ModelScore, ...], models: tuple[str, ...]) -> str:
    index = {(row.group, row.model): row.score for row in rows}
    present = [model for model in models if any(row.model == model for row in rows)]
    table = []
    for group in dict.fromkeys(row.group for row in rows):
        found = [index.get((group, model)) for model in present]
        counts = {score.n for score in found if score}
        size = f" <small>{size_text(min(counts))}{f'–{count_text(max(counts))}' if len(counts) > 1 else ''}</small>"
        cells = [cell(value_html(s), s.value, "score") if s else cell("–", math.nan) for s in found]
        table.append((escape(group or "all") + size, cells))
    score = rows[0].score
    caption = f"{score_label(score.name)} ({score.unit}) for each group of prompts"
    head = ["group", *(escape(column_label(model)) for model in present)]
    return data_table(caption, head, table, notes=judge_lines(rows))


def samples(run: Run) -> Section | str:
    """A few prompts with every model's answer side by side."""
    if not run.samples:
        return "Answers side by side: samples.json is missing or empty."
    text = "A few prompts and what each model answered. They illustrate; the scores above count."
    seen: set[str] = set()
    parts = []
    for sample in run.samples:
        # The first of each benchmark is unfolded.
        parts.append(_sample(sample, opened=sample.benchmark not in seen))
        seen.add(sample.benchmark)
    return Section("samples", "Answers side by side", paragraph(text) + "".join(parts))


def _sample(sample: SideBySide, opened: bool) -> str:
    cards = "".join(_answer(model, text, sample.verdicts.get(model)) for model, text in sample.answers.items())
    return (
        f'<details class="sample"{" open" if opened else ""}><summary>'
        f'<span class="tag">{escape(score_label(sample.benchmark))}</span> '
        f'<span class="prompt" dir="auto">{escape(sample.prompt)}</span></summary>'
        f'<dl class="answers">{cards}</dl></details>'
    )


def _answer(model: str, text: str, verdict: bool | None) -> str:
    kind, words = VERDICTS[verdict]
    return (
        f'<div><dt>{escape(column_label(model))} <span class="verdict {kind}">{words}</span></dt>'
        f'<dd dir="auto">{escape(text) if text.strip() else "<em>(empty answer)</em>"}</dd></div>'
    )
