"""The page of `triune diagnose collapse`: one HTML file that opens from disk and loads nothing."""

import math
from collections.abc import Iterable

from triune.report.calibration_figures import Reliability, reliability_figures
from triune.report.calibration_sections import METRICS
from triune.report.collapse_account import CollapseAccount
from triune.report.collapse_figures import ALL, angle_figures, draw_forgetting, draw_likeness, separation_figures
from triune.report.collapse_parts import ForgettingMap, Reading
from triune.report.collapse_words import HOW, TITLES, WHAT, degrees_text, lead, reading_text, signs, title
from triune.report.html import Section, cell, data_table, details, escape, figure, grid, paragraph
from triune.report.shell import Shell, build_shell

METHODS = (
    '<a href="https://arxiv.org/abs/2602.07381">AlignX (arXiv 2602.07381)</a>, '
    '<a href="https://arxiv.org/abs/1905.00414">CKA (arXiv 1905.00414)</a>, unbiased as in '
    '<a href="https://arxiv.org/abs/2010.15327">arXiv 2010.15327</a>'
)


def build_collapse_page(found: CollapseAccount) -> str:
    """The whole page as text; what comes from files is escaped."""
    shell = Shell(
        title=title(found),
        lead=[sentence for sentence in lead(found) if sentence],
        kicker="Triune diagnosis",
        skip=("short", "numbers"),
        files='Also in this folder: <a href="collapse.md">collapse.md</a>, '
        '<a href="collapse.json">collapse.json</a>, <a href="record.json">record.json</a>.',
        made="Made by <code>triune diagnose collapse</code>; every number stands in collapse.json, none was computed "
        "for this page.",
        methods=METHODS,
        styles=("across.css", "collapse.css"),
    )
    return build_shell(shell, [section for make in SECTIONS if (section := make(found)) is not None])


def short(found: CollapseAccount) -> Section:
    """Every sign in one table."""
    rows = [
        (escape(sign.name), [cell(escape(sign.value)), cell(escape(sign.beside), kind="note")])
        for sign in signs(found)
    ]
    heads = ["sign", "measured", '<span class="leftward">to compare with</span>']
    last = (
        f"States are those after the last of {found.view.n_layers} blocks: CKA of all rows, angles and silhouettes "
        "of each axis's rows under its own expert. In brackets 95 % intervals."
    )
    return Section("short", "In short", data_table("The signs of axis collapse", heads, rows, notes=[last]))


def loss(found: CollapseAccount) -> Section:
    """The forgetting matrix of the loss."""
    return _forgetting("loss", found.view.loss)


def score(found: CollapseAccount) -> Section | None:
    """The forgetting matrix of judged answers, where there are some."""
    return None if found.view.score is None else _forgetting("score", found.view.score)


def _forgetting(name: str, matrix: ForgettingMap) -> Section:
    rows = [
        (escape(trained), [_reading(reading, matrix.unit, sign=True) for reading in cells])
        for trained, cells in zip(matrix.trained, matrix.cells, strict=True)
    ]
    heads = ["trained on", *(escape(axis) for axis in matrix.axes)]
    # Drawn as wide as it is: a matrix of three columns on the whole page would have letters like a heading's.
    width = 160 + 150 * len(matrix.axes)
    body = figure(_limited(draw_forgetting(f"forgetting-{name}", matrix), width), HOW[name]) + details(
        "The numbers", data_table(f"{TITLES[name]}, in {matrix.unit or 'its own unit'}", heads, rows)
    )
    return Section(name, TITLES[name], body)


def _limited(drawn: str, width: int) -> str:
    return f'<div style="max-width:{width}px">{drawn}</div>'


def likeness(found: CollapseAccount) -> Section:
    """CKA of all pairs of models over the layers: on all rows, and folded on each axis's."""
    view = found.view
    drawn = [draw_likeness("cka-all", view)]
    own = [draw_likeness(f"cka-{place}", view, axis) for place, axis in enumerate(view.axes)]
    rows = []
    for one, other, on in dict.fromkeys((row.one, row.other, row.rows) for row in view.likeness):
        table = {r.layer: r.cka for r in view.likeness if (r.one, r.other, r.rows) == (one, other, on)}
        head = f"{escape(one)} – {escape(other)} <small>{escape(on if on == ALL else f'{on} rows')}</small>"
        rows.append((head, [_reading(table.get(layer + 1), "") for layer in range(view.n_layers)]))
    inner = details("On the rows of each axis", grid(own, "panels"))
    numbers = details("The numbers", data_table("CKA by layer", _layers("models", view.n_layers), rows))
    return Section(
        "likeness", TITLES["likeness"], figure(_limited("".join(drawn), 620) + inner, HOW["likeness"]) + numbers
    )


def _layers(first: str, n_layers: int) -> list[str]:
    return [first, *(f"layer {layer + 1}" for layer in range(n_layers))]


def angles(found: CollapseAccount) -> Section:
    """Principal angles of each pair of axes over the layers."""
    view = found.view
    rows = []
    for one, other, states in dict.fromkeys((row.one, row.other, row.states) for row in view.angles):
        own = {r.layer: r for r in view.angles if (r.one, r.other, r.states) == (one, other, states)}
        for name in ("angle", "chance", "halves"):
            head = f"{escape(one)} – {escape(other)} <small>{escape(states)}: {KINDS[name]}</small>"
            values = [getattr(own[n + 1], name) if n + 1 in own else math.nan for n in range(view.n_layers)]
            rows.append((head, [cell(degrees_text(value), math.degrees(value)) for value in values]))
    numbers = details("The numbers", data_table("Angles by layer", _layers("axes", view.n_layers), rows))
    drawn = grid(angle_figures("angles", view), "panels")
    return Section("angles", TITLES["angles"], figure(drawn, HOW["angles"]) + numbers)


KINDS = {"angle": "angle", "chance": "unrelated directions", "halves": "halves of one axis"}


def separation(found: CollapseAccount) -> Section:
    """Silhouettes over the layers, and folded with them the ratio of distances."""
    view = found.view
    rows = []
    for states, metric in dict.fromkeys((row.states, row.metric) for row in view.separation):
        own = {r.layer: r for r in view.separation if (r.states, r.metric) == (states, metric)}
        for name in ("silhouette", "ratio"):
            head = f"{'silhouette' if name == 'silhouette' else 'distance ratio'} <small>{metric}, {states}</small>"
            values = [getattr(own[n + 1], name) if n + 1 in own else None for n in range(view.n_layers)]
            rows.append((head, [_reading(value, "") for value in values]))
    caption = "Silhouette; and mean distance of rows of two axes over that of rows of one"
    numbers = details("The numbers", data_table(caption, _layers("of", view.n_layers), rows))
    drawn = grid(separation_figures("separation", view), "panels")
    return Section("separation", TITLES["separation"], figure(drawn, HOW["separation"]) + numbers)


def routing(found: CollapseAccount) -> Section | None:
    """Misrouting and the calibration of a fused model's routing, if one was given."""
    if found.routing is None:
        return None
    rows = {(row.what, row.metric): row for row in found.routing.calibration}
    diagrams, lines = [], []
    for what in dict.fromkeys(row.what for row in found.routing.calibration):
        readings = {
            metric: Reading(row.value, row.low, row.high, row.n) for (own, metric), row in rows.items() if own == what
        }
        lines.append((escape(WHAT.get(what, what)), [_reading(readings.get(metric), "") for metric in _shown(rows)]))
        bins = next((own.bins for own in found.routing.diagrams if own.what == what), ())
        words = f"ECE {reading_text(readings.get('ece'), '')}"
        diagrams.append(Reliability(f"{WHAT.get(what, what)}, means over layers", bins, words))
    misrouted = f"Misrouted: {reading_text(found.routing.misrouting, '%')} % of {found.routing.misrouting.n} rows."
    heads = ["weights of", *(escape(METRICS[metric]) for metric in _shown(rows))]
    numbers = details("The numbers", data_table("Calibration of the routing", heads, lines))
    drawn = _limited(grid(reliability_figures("routing-reliability", diagrams), "maps"), 620)
    body = paragraph(misrouted) + figure(drawn, HOW["routing"]) + numbers
    return Section("routing", TITLES["routing"], body)


def _shown(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [metric for metric in METRICS if any(metric == own for _, own in rows)]


def _reading(reading: Reading | None, unit: str, *, sign: bool = False) -> str:
    """A table's cell: the value, and below it its interval."""
    value, bracket, ends = reading_text(reading, unit, sign=sign).partition(" [")
    below = f"<br><small>{escape(bracket.strip() + ends)}</small>" if ends else ""
    return cell(escape(value) + below, reading.value if reading else math.nan)


SECTIONS = (short, loss, score, likeness, angles, separation, routing)
