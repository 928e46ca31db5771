"""The report as Markdown: the lead, the score tables, the judges, the cost, the caveats, the settings."""

import re
from collections.abc import Iterable, Sequence

from triune.report.cost_columns import cost_columns, explanation
from triune.report.findings import fusing_pays, lead
from triune.report.labels import ARROWS, model_label, models_of, plain
from triune.report.numerals import count_text, interval_text, memory_text, seconds_text, size_text, value_text
from triune.report.run import ModelFacts, Run
from triune.report.tables import Cell, absent_lines, judge_lines, score_columns, score_table


def render_markdown(run: Run) -> str:
    """The report as GitHub-flavoured Markdown."""
    recipe = run.recipe
    title = (recipe.title if recipe else "") or run.folder.resolve().name
    blocks = [f"# {inline(title)}"]
    if recipe and recipe.about:
        blocks.append(inline(recipe.about))
    blocks += [inline(sentence) for sentence in lead(run)]
    blocks += ["## Scores", scores(run, scarce=False)]
    if models_of(run.scores, scarce=True):
        heading = "Where fusing pays: scarce joint data" if fusing_pays(run) else "When joint data is scarce"
        blocks += [f"## {heading}", scores(run, scarce=True)]
    if recipe and recipe.caveats:
        blocks += ["## What this does not show", bullets(recipe.caveats)]
    if run.models:
        blocks += ["## Models", models(run)]
    if run.timings:
        blocks += ["## Time and memory", timings(run)]
    if recipe:
        blocks += ["## Settings", fenced(recipe.text)]
    return "\n\n".join(blocks) + "\n"


def inline(text: str) -> str:
    """Text that Markdown leaves as it is: no markup, no HTML, no new line."""
    text = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", plain(text).replace("\n", " "))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; every column but the first to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    """A list of plain texts."""
    return "\n".join(f"* {inline(item)}" for item in items)


def fenced(text: str) -> str:
    """A YAML block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{plain(text).rstrip()}\n{fence}"


def scores(run: Run, scarce: bool) -> str:
    """One score table with its judges."""
    columns = score_columns(run, scarce)
    head = ["model"] + [
        " ".join((inline(column.label), inline(column.score.unit), ARROWS[column.score.better])).strip()
        + (f", {size_text(column.n)}" if column.n else "")
        for column in columns
    ]
    models_shown = models_of(run.scores, scarce)
    costs, facts = cost_columns(run, models_shown), run.models or {}
    head += [f"{column.head}, {column.below}" for column in costs]
    rows = [
        [inline(row.label)]
        + [_cell(cell, named=column.n is None) for cell, column in zip(row.cells, columns, strict=True)]
        + [column.text(facts.get(row.model, ModelFacts())) for column in costs]
        for row in score_table(run, scarce)
    ]
    shown = tuple(row for row in run.scores if row.model in models_shown)
    note = "Value [95 % interval]; bold: the best value of its column.\n\n"
    below = [*absent_lines(run, models_shown), *judge_lines(shown), *explanation(run, costs)]
    return f"{table(head, rows)}\n\n{note}{bullets(below)}"


def _cell(cell: Cell | None, named: bool) -> str:
    if cell is None:
        return "–"
    value = value_text(cell.score.value, cell.score.unit)
    size = size_text(cell.score.n) if named and cell.score.n else ""
    parts = (f"**{value}**" if cell.best else value, interval_text(cell.score), size)
    return " ".join(part for part in parts if part)


def models(run: Run) -> str:
    """What every model weighs and was trained on."""
    rows = [
        [
            inline(model_label(model) if not model.startswith("scarce:") else model),
            *map(count_text, (fact.parameters_total, fact.parameters_active, fact.train_steps, fact.train_examples)),
            inline(fact.note),
        ]
        for model, fact in (run.models or {}).items()
    ]
    return table(["model", "parameters", "active a token", "training steps", "training examples", "note"], rows)


def timings(run: Run) -> str:
    """Every step's time and peak memory, the total, and the machine."""
    if run.timings is None:
        return ""
    rows = [
        [
            inline(step.name),
            seconds_text(step.seconds) + (" (from an earlier run)" if step.skipped else ""),
            memory_text(step.peak_memory_bytes),
        ]
        for step in run.timings.steps
    ]
    machine = bullets(f"{key}: {value}" for key, value in run.timings.machine.items())
    total = f"{seconds_text(run.timings.total_seconds)} in all."
    return "\n\n".join(part for part in (table(["step", "time", "peak memory"], rows), total, machine) if part)
