"""Score tables as rows, as CSV, and for the terminal."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triune.report.findings import compare
from triune.report.labels import ARROWS, model_label, models_of, plain, score_index, score_label, score_names
from triune.report.numerals import count_text, listed, value_text
from triune.report.run import ModelScore, Run
from triune.types import Agreement, Score

if TYPE_CHECKING:
    import rich.table

COLUMNS = (
    *("model", "score", "value", "n", "low", "high", "better", "unit", "judge"),
    *("agreement_accuracy", "agreement_n", "agreement_labels", "abstained"),
)


@dataclass(frozen=True, slots=True)
class Column:
    """One score over all models; `n` is the common sample size, None where the models differ in it."""

    name: str
    label: str
    score: Score
    n: int | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One score. `best`: no model has a better value; `tied`: its interval overlaps that of the best."""

    score: Score
    best: bool
    tied: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One model; `cells` stand in the order of the columns, None where the model was not scored."""

    model: str
    label: str
    cells: tuple[Cell | None, ...]


def score_columns(run: Run, scarce: bool = False) -> tuple[Column, ...]:
    """One column a score; `score` is the first model's, for unit and direction."""
    models = models_of(run.scores, scarce)
    columns = []
    for name in score_names(run.scores, models):
        scores = [row.score for row in run.scores if row.model in models and row.score.name == name]
        counts = {score.n for score in scores if score.n}
        columns.append(Column(name, score_label(name), scores[0], counts.pop() if len(counts) == 1 else None))
    return tuple(columns)


def score_table(run: Run, scarce: bool = False) -> tuple[Row, ...]:
    """Models as rows in file order, scores as columns; the scarce-data models form their own table."""
    index = score_index(run.scores)
    models = models_of(run.scores, scarce)
    columns = score_columns(run, scarce)
    best = {column.name: _best([index.get((m, column.name)) for m in models]) for column in columns}
    return tuple(
        Row(model, model_label(model), tuple(_cell(index.get((model, c.name)), best[c.name]) for c in columns))
        for model in models
    )


def _best(scores: list[Score | None]) -> Score | None:
    measured = [score for score in scores if score and not math.isnan(score.value) and score.better != "neither"]
    sign = 1.0 if measured and measured[0].better == "higher" else -1.0
    return max(measured, key=lambda score: sign * score.value, default=None)


def _cell(score: Score | None, best: Score | None) -> Cell | None:
    if score is None:
        return None
    if best is None or math.isnan(score.value):
        return Cell(score, best=False, tied=False)
    top = score.value == best.value
    return Cell(score, best=top, tied=not top and compare(score, best) == "overlap")


def agreement_text(agreement: Agreement | None) -> str:
    """How far a judge was found right: "agrees with 98.3 % of 400 labels"."""
    if agreement is None:
        return "agreement with known labels not measured"
    if math.isnan(agreement.accuracy) or agreement.n == 0:
        return "agreement n/a, for want of labels"
    return f"agrees with {value_text(100 * agreement.accuracy, '%')} % of {count_text(agreement.n)} labels"


def absent_lines(run: Run, models: tuple[str, ...]) -> tuple[str, ...]:
    """Why some of these models have no value in places: "– of the served, theirs: …", one line a reason."""
    facts, found = run.models or {}, dict[str, list[str]]()
    for model in models:
        if model in facts and facts[model].absent:
            found.setdefault(facts[model].absent, []).append(model_label(model))
    return tuple(f"“–” of {listed(labels)}: {reason}." for reason, labels in found.items())


def judge_lines(rows: tuple[ModelScore, ...]) -> tuple[str, ...]:
    """One line a judge: which scores it decided, how far it was found right on each, how often it abstained."""
    judges: dict[str, list[ModelScore]] = {}
    for row in rows:
        judges.setdefault(row.score.judge, []).append(row)
    return tuple(_judge_line(judge or "not named", decided) for judge, decided in judges.items())


def _judge_line(judge: str, decided: list[ModelScore]) -> str:
    groups: dict[Agreement | None, list[str]] = {}
    for row in decided:
        groups.setdefault(row.score.agreement, []).append(score_label(row.score.name))
    parts = [f"{', '.join(dict.fromkeys(names))} ({agreement_text(known)})" for known, names in groups.items()]
    sources = dict.fromkeys(known.labels for known in groups if known is not None)
    labels = f". Labels: {listed(list(sources))}" if sources else ""
    abstained = sum(row.score.abstained for row in decided)
    left = f". Abstained on {count_text(abstained)} answers, which are not in n" if abstained else ""
    return f"Judge “{judge}”: {listed(parts)}{labels}{left}."


def csv_text(run: Run) -> str:
    """Every row of scores.json in full precision; a number that was not measured is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in run.scores:
        score, agreement = row.score, row.score.agreement
        known = (agreement.accuracy, agreement.n, agreement.labels) if agreement else ("", "", "")
        numbers = (score.value, score.n, score.low, score.high)
        cells = (row.model, score.name, *numbers, score.better, score.unit, score.judge, *known, score.abstained)
        writer.writerow(map(csv_field, cells))
    return out.getvalue()


def csv_field(value: object) -> object:
    """A number in full precision, text as any file can hold it; empty for what was not measured."""
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return plain(value) if isinstance(value, str) else "" if value is None else value


def write_csv(run: Run, path: Path) -> None:
    """Write `csv_text` to `path`."""
    path.write_text(csv_text(run), encoding="utf-8", newline="")


def render_terminal(run: Run) -> "rich.table.Table":
    """The closing table of the command line: models as rows, scores as columns, best value bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rule = "bold: best value of its column; below each value its 95 % interval"
    lines = (*absent_lines(run, models_of(run.scores)), *judge_lines(run.scores))
    caption = Text("\n".join((rule, *map(plain, lines))), style="dim", justify="left")
    table = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("model", overflow="fold")
    named = {column.name: column for scarce in (True, False) for column in score_columns(run, scarce)}
    columns = [named[name] for name in dict.fromkeys(row.score.name for row in run.scores)]
    for column in columns:
        unit = " ".join((column.score.unit, ARROWS[column.score.better])).strip()
        head = plain(column.label).replace("-", "-\n")
        table.add_column(Text(f"{head}\n{plain(unit)}"), justify="right")
    for scarce in (False, True):
        order = [column.name for column in score_columns(run, scarce)]
        rows = score_table(run, scarce)
        if rows and scarce:
            table.add_section()
        for row in rows:
            cells = dict(zip(order, row.cells, strict=True))
            # A row has two lines anyway; the name's second half on the second keeps the table within 80 columns.
            name = Text(plain(row.model).replace(":", ":\n", 1))
            table.add_row(name, *(_terminal_cell(cells.get(c.name)) for c in columns))
    return table


def _terminal_cell(cell: Cell | None) -> "rich.text.Text":
    from rich.text import Text

    if cell is None:
        return Text("–", style="dim")
    unit = cell.score.unit
    text = Text(value_text(cell.score.value, unit), style="bold" if cell.best else "")
    if not math.isnan(cell.score.value):
        text.append(f"\n{value_text(cell.score.low, unit)}–{value_text(cell.score.high, unit)}", style="not bold dim")
    return text
