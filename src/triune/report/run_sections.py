"""The sections about the run itself: routing, drift, curves, cost, caveats, settings."""

import math

from triune.report.drift_figures import legend_shape, map_axes, map_panels
from triune.report.html import Section, bullets, cell, data_table, details, escape, figure, grid, paragraph
from triune.report.interval_figures import drift_panels
from triune.report.labels import EXPERT, axis_names, column_label, model_label, models_of
from triune.report.numerals import NOT_MEASURED, count_text, memory_text, seconds_text, size_text, value_text
from triune.report.routing_figures import routing_maps
from triune.report.run import Drift, Run, Step, Timings, Weights
from triune.report.theme import axis_mark, model_mark
from triune.report.training_figures import curve_panels


def routing(run: Run) -> Section | str:
    """Heat maps, and the same numbers as a table."""
    title = "Who answers: routing"
    if run.routing is None:
        return "Routing: routing.json is missing."
    part = run.routing
    legend = (
        '<p class="ramp"><span>0</span><span class="colours" aria-hidden="true"></span><span>1</span> '
        "mean weight of an expert</p>"
    )
    caption = (
        f"Mean routing weights of the {model_label(part.model)} model by layer and expert, one map for each axis' "
        "prompts, all on one colour scale. The framed column is the expert trained on that axis."
    )
    rows = [
        (
            f"{escape(axis)}, layer {layer + 1}",
            [cell(NOT_MEASURED if math.isnan(w) else f"{w:.3f}", w) for w in weights],
        )
        for axis, layers in zip(part.axes, part.mean, strict=True)
        for layer, weights in enumerate(layers)
    ]
    head = ["prompts, layer", *(escape(name.removeprefix(EXPERT)) for name in part.experts)]
    numbers = details("The numbers behind the maps", data_table("Mean routing weights", head, rows))
    maps = figure(grid(routing_maps(part), "maps"), caption, legend)
    return Section("routing", title, maps + numbers + (_weights(run.weights) if run.weights is not None else ""))


def _weights(part: Weights) -> str:
    """Each expert's similarity to the reference, its importance and its weight."""
    rows = [
        (
            escape(expert.axis),
            [
                cell(NOT_MEASURED if math.isnan(number) else f"{number:.3g}", number)
                for number in (expert.similarity, expert.importance, expert.weight)
            ],
        )
        for expert in part.experts
    ]
    head = ["expert", "similarity", "importance", "weight"]
    notes = ["An expert's change was multiplied with its weight before it was fused."]
    notes += [f"The routing is softmax(z/T + log importance). Similarity: {part.how}."] if part.how else []
    notes += [
        f"{expert.axis} was subtracted: this model was made less {expert.axis} on purpose."
        for expert in part.experts
        if expert.weight < 0
    ]
    return data_table("Importance of the experts", head, rows, notes=notes)


def drift(run: Run) -> Section | str:
    """Distances from the base as dot plots, and the map of prompts."""
    title = "Drift from the base"
    if run.drift is None:
        return "Drift from the base: drift.json is missing."
    part = run.drift
    body = ""
    if part.distances:
        caption = f"{part.what}. Dots are values, bars 95 % intervals; one panel for each axis, one scale."
        body += figure(grid(drift_panels(run), "dots"), caption) + _distances(part)
    if part.points:
        caption = (
            f"{part.method} map of single prompts, one panel a model, the base's points in grey. "
            "Such a map keeps neighbourhoods, not distances: it illustrates, the panels above count."
        )
        titles = [column_label(model) for model in dict.fromkeys(point.model for point in part.points)]
        body += figure(grid(map_panels(run, part), "points", titles), caption, _legend(run, part))
    return (
        Section("drift", title, body)
        if body
        else "Drift from the base: drift.json holds neither distances nor points."
    )


def _legend(run: Run, part: Drift) -> str:
    axes = map_axes(run, part)
    items = "".join(
        f'<li><span aria-hidden="true" style="color:var(--{axis_mark(axis, axes).token})">{legend_shape(axis, axes)}'
        f"</span> {escape(axis)} prompts</li>"
        for axis in axes
    )
    return f'<ul class="legend">{items}</ul>'


def _distances(part: Drift) -> str:
    axes = tuple(dict.fromkeys(item.axis for item in part.distances))
    index = {(item.model, item.axis): item for item in part.distances}
    rows = []
    for model in dict.fromkeys(item.model for item in part.distances):
        cells = []
        for axis in axes:
            item = index.get((model, axis))
            if item is None or math.isnan(item.value):
                cells.append(cell(NOT_MEASURED, math.nan))
                continue
            value, low, high = (value_text(x, "distance") for x in (item.value, item.low, item.high))
            content = f"{value} <small>[{low}, {high}], {size_text(item.n)}</small>"
            cells.append(cell(content, item.value, "score"))
        rows.append((escape(model_label(model)), cells))
    head = ["model", *(f"{escape(axis)} prompts" for axis in axes)]
    return details("The numbers behind the dots", data_table(part.what, head, rows))


def curves(run: Run) -> Section | str:
    """Loss curves, one group a model, one panel a loss part."""
    title = "Training curves"
    if not run.curves:
        return "Training curves: curves.json is missing or empty."
    axes, groups = axis_names(run), []
    # Models with several loss parts take a whole row each; after the others they leave no gaps.
    order = sorted(run.curves.items(), key=lambda item: len(item[1].parts) > 1)
    for place, (model, curve) in enumerate(order):
        panels = curve_panels(f"curve{place}", curve, model_mark(model, axes))
        label = column_label(model)
        body = grid(panels, "curves") if panels else paragraph("No loss was logged.", "missing")
        kind = "group many" if len(panels) > 1 else "group"
        groups.append(f'<div class="{kind}"><h3>{escape(label)}</h3>{body}</div>')
    caption = "Losses as logged, nothing smoothed. Every panel has its own scale, so compare shapes, not heights."
    return Section("curves", title, figure(f'<div class="groups">{"".join(groups)}</div>', caption))


def size(run: Run) -> Section | str:
    """What the models weigh and were trained on."""
    if not run.models:
        return "What each model weighs: models.json is missing or empty."
    return Section("size", "Size and training", _models(run))


def cost(run: Run) -> Section | str:
    """What the steps took."""
    if run.timings is None:
        return "Time and memory: timings.json is missing."
    return Section("cost", "Time and memory", _timings(run.timings))


def _models(run: Run) -> str:
    facts = run.models or {}
    known = [model for model in (*models_of(run.scores), *models_of(run.scores, True)) if model in facts]
    noted = any(fact.note for fact in facts.values())
    rows = []
    for model in dict.fromkeys((*known, *facts)):
        fact = facts[model]
        counts = (fact.parameters_total, fact.parameters_active, fact.train_steps, fact.train_examples)
        cells = [cell(count_text(count), math.nan if count is None else float(count), "count") for count in counts]
        label = column_label(model)
        name = f"{escape(label)} <small><code>{escape(model)}</code></small>"
        rows.append((name, [*cells, cell(escape(fact.note), kind="note")] if noted else cells))
    head = ["model", "parameters", "active a token", "training steps", "training examples"]
    head += ['<span class="leftward">note</span>'] if noted else []
    return data_table("What each model weighs and was trained on", head, rows, sortable=True)


def _timings(timings: Timings) -> str:
    steps, total = timings.steps, timings.total_seconds
    longest = max((step.seconds for step in steps if not step.skipped and step.seconds > 0), default=1.0)
    rows = [(escape(step.name), _step_cells(step, longest)) for step in steps]
    table = data_table(
        f"Time and peak memory of each step; {seconds_text(total)} in all",
        ["step", "time", '<span class="spoken">time drawn</span>', "peak memory"],
        rows,
    )
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in timings.machine.items())
    return table + (f'<dl class="facts">{items}</dl>' if items else "")


def _step_cells(step: Step, longest: float) -> list[str]:
    share = 0.0 if step.skipped or math.isnan(step.seconds) else 100 * step.seconds / longest
    time = f"{escape(seconds_text(step.seconds))}"
    if step.skipped:
        time = f'<span class="none">{time}, taken from an earlier run</span>'
    drawn = "" if not share else f'<span class="length" aria-hidden="true" style="width:{share:.1f}%"></span>'
    return [
        cell(time, step.seconds, "count"),
        cell(drawn, kind="drawn"),
        cell(memory_text(step.peak_memory_bytes), kind="count"),
    ]


def caveats(run: Run) -> Section:
    """What the run does not show, in the recipe's own words, after what holds for every run."""
    always = [
        "Intervals are 95 % and cover the choice of test prompts only: not the seed, the data or the training.",
        "Each score stands alone: many comparisons are made here, and none is corrected for their number.",
    ]
    own = list(run.recipe.caveats) if run.recipe else []
    note = "" if own else paragraph("The recipe of this run names no caveats of its own.", "missing")
    return Section("caveats", "What this does not show", bullets([*own, *always], "caveats") + note)


def settings(run: Run) -> Section | str:
    """The recipe, word for word."""
    if run.recipe is None:
        return "Settings: recipe.yaml is missing."
    block = f'<pre class="code" tabindex="0" aria-label="recipe.yaml">{escape(run.recipe.text)}</pre>'
    return Section("settings", "Settings", details("Every setting of this run (recipe.yaml)", block))
