import csv
import io
import math
import re
from pathlib import Path

import pytest
from fake_run import score_row, score_rows
from rich.console import Console

from triune.report.folder import load_run
from triune.report.markdown import fenced, inline, render_markdown
from triune.report.run import Run
from triune.report.score_sections import scores
from triune.report.tables import absent_lines, judge_lines, render_terminal, score_columns, score_table, write_csv


def printed(run: Run, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(render_terminal(run))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def unmeasured(model: str, score: str) -> dict:
    return score_row(model, score, 0, 1) | {"value": None, "low": None, "high": None, "n": 0}


def test_what_a_served_model_has_not_is_said_below_every_table(make_folder) -> None:
    names = ("served:one", "served:two")
    rows = [score_row(name, "helpful", 30, 50) for name in ("base", *names)] + [score_row("base", "nll:helpful", 2, 9)]
    facts = {name: {"note": "", "absent": "a server only answers"} for name in names} | {"base": {"train_steps": 3}}
    run = load_run(make_folder(None, scores=rows, models=facts))
    line = "“–” of served, one and served, two: a server only answers."
    assert absent_lines(run, ("base", *names)) == (line,)
    assert absent_lines(run, ("base",)) == ()
    text = render_markdown(run)
    assert f"* {line}" in text
    assert re.search(r"^\| served, one \| .*\| – \|", text, re.MULTILINE)
    assert line in scores(run).body
    assert "a server only answers" in " ".join(printed(run).split())


def test_rows_and_columns_stand_in_file_order(run: Run) -> None:
    rows = score_table(run)
    assert [row.model for row in rows] == [
        *("base", "expert:helpful", "expert:harmless", "expert:honest"),
        *("mixture", "average", "sum", "fused"),
    ]
    assert [column.name for column in score_columns(run)] == [
        *("helpful", "harmless", "honest", "mean", "over_refusal", "facts"),
    ]
    assert [row.model for row in score_table(run, scarce=True)] == ["scarce:mixture", "scarce:fused"]


def test_best_and_tied(run: Run) -> None:
    cells = {row.model: row.cells for row in score_table(run)}

    def state(model: str, column: int) -> tuple[bool, bool]:
        cell = cells[model][column]
        assert cell is not None
        return cell.best, cell.tied

    assert state("mixture", 0) == (True, False)
    assert state("fused", 0) == (False, True)
    assert state("average", 0) == (False, False)
    # Equal values share the first place; lower is better in column 4.
    assert state("expert:harmless", 1) == state("sum", 1) == (True, False)
    assert state("expert:helpful", 4) == (True, False)
    assert state("sum", 4) == (False, False)


def test_nothing_is_best_where_no_direction_is(make_folder) -> None:
    rows = [score_row(model, "length", value, 100, "neither") for model, value in (("base", 10), ("fused", 90))]
    for row in score_table(load_run(make_folder(scores=rows))):
        assert row.cells[0] is not None
        assert (row.cells[0].best, row.cells[0].tied) == (False, False)


def test_a_model_without_a_score_has_an_empty_cell(make_folder) -> None:
    rows = [score_row("base", "helpful", 30, 50), score_row("fused", "honest", 90, 60), unmeasured("fused", "helpful")]
    run = load_run(make_folder(scores=rows))
    base, fused = score_table(run)
    assert base.cells[1] is None
    assert fused.cells[0] is not None
    assert math.isnan(fused.cells[0].score.value)
    assert [column.n for column in score_columns(run)] == [50, 60]
    assert "n/a" in render_markdown(run)
    assert "n/a" in printed(run)


def test_csv_equals_scores_json(run: Run, tmp_path: Path) -> None:
    write_csv(run, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = score_rows()
    assert len(rows) == len(expected)
    for row, want in zip(rows, expected, strict=True):
        for name in ("model", "score", "better", "unit", "judge"):
            assert row[name] == want[name]
        for name in ("value", "low", "high"):
            assert float(row[name]) == want[name]
        assert (int(row["n"]), int(row["abstained"])) == (want["n"], want["abstained"])
        known = want["agreement"]
        assert (float(row["agreement_accuracy"]), int(row["agreement_n"])) == (known["accuracy"], known["n"])
        assert row["agreement_labels"] == known["labels"]


def test_csv_leaves_unmeasured_fields_empty_and_quotes(make_folder, tmp_path: Path) -> None:
    rows = [unmeasured('odd, "name"', "helpful") | {"agreement": None}]
    write_csv(load_run(make_folder(scores=rows)), tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["model"] == 'odd, "name"'
    assert [row[name] for name in ("value", "low", "high", "agreement_accuracy")] == [""] * 4
    assert row["n"] == "0"


def test_judges_are_named_with_their_agreement(make_folder) -> None:
    rows = score_rows()[:2]
    rows[1] |= {"judge": "likelihood", "agreement": None, "abstained": 3}
    lines = judge_lines(load_run(make_folder(scores=rows)).scores)
    assert lines == (
        "Judge “made-up rules”: helpful (agrees with 98.5 % of 400 labels). Labels: made-up labels.",
        "Judge “likelihood”: harmless (agreement with known labels not measured). "
        "Abstained on 3 answers, which are not in n.",
    )


def test_terminal_fits_eighty_columns(run: Run) -> None:
    text = printed(run)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("85.1", "80.0–89.1", "over-", "refusal", "expert:", "harmless", "agrees with 98.5"):
        assert part in text
    assert "…" not in text


def test_terminal_prints_the_best_value_bold(run: Run) -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(render_terminal(run))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert re.search(r"\x1b\[1m *94\.4", text)
    assert not re.search(r"\x1b\[1m *93\.7", text)
    assert "93.7" in text


def test_terminal_takes_names_as_text(make_folder) -> None:
    rows = [score_row("[red]x[/red]\x1b[31m", "helpful", 30, 50)]
    text = printed(load_run(make_folder(scores=rows)))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_markdown_holds_every_part(run: Run) -> None:
    text = render_markdown(run)
    assert text.startswith("# A made-up run of the miniature world\n")
    for heading in ("Scores", "Where fusing pays", "What this does not show", "Models", "Time and memory", "Settings"):
        assert f"\n## {heading}" in text
    assert "| fused | 85.1 [80.0, 89.1] |" in text
    assert "**94.4** [92.5, 95.9]" in text
    assert "* Judge “made-up rules”: helpful, harmless, honest, mean of axes, over-refusal, facts kept (agrees" in text
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 4
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_markdown_without_the_optional_parts(make_folder) -> None:
    run = load_run(make_folder(recipe=None, models=None, timings=None, scores=score_rows()[:6]))
    text = render_markdown(run)
    assert text.startswith("# made-up-run\n")
    assert "## Settings" not in text
    assert "scarce" not in text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("*x* [l](u) `c`\n# h", r"\*x\* \[l\](u) \`c\` \# h"),
        ("a & b", "a &amp; b"),
    ],
)
def test_markdown_escapes(text: str, safe: str) -> None:
    assert inline(text) == safe


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a: ```` b").splitlines()[0] == "`````yaml"
    assert fenced("a: b") == "```yaml\na: b\n```"


def test_sample_sizes_that_differ_stand_in_the_cells(make_folder) -> None:
    rows = [score_row("base", "helpful", 30, 50), score_row("fused", "helpful", 90, 60)]
    run = load_run(make_folder(scores=rows))
    assert score_columns(run)[0].n is None
    page = scores(run).body
    assert "n differs" in page
    assert "n\u00a0=\u00a060" in page
    assert "90.0** [79.9, 95.3] n\u00a0=\u00a060" in render_markdown(run)


def test_a_judge_without_labels_or_name(make_folder) -> None:
    row = score_row("base", "helpful", 30, 50) | {
        "judge": "",
        "agreement": {"accuracy": None, "n": 0, "labels": "none"},
    }
    (line,) = judge_lines(load_run(make_folder(scores=[row])).scores)
    assert line == "Judge “not named”: helpful (agreement n/a, for want of labels). Labels: none."
