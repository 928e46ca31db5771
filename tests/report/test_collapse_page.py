"""The page, Markdown and table of axis collapse: every sign with what it is compared with; nothing is code."""

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_collapse_figures import content, score
from test_report_page import ATTACK, check

from triune.errors import InputError
from triune.report.collapse_account import load_collapse, parse_account
from triune.report.collapse_files import render_collapse_markdown, render_collapse_terminal, write_collapse
from triune.report.collapse_page import build_collapse_page
from triune.report.collapse_parts import Reading
from triune.report.collapse_words import HOW, TITLES, degrees_text, lead, reading_text, signs

BIN = {"low": 0.5, "high": 0.6, "confidence": 0.55, "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8, "n": 4}


def whole(**changes: Any) -> dict[str, Any]:
    """collapse.json of two axes, three experts and a fused model."""
    found = content()
    found["loss"] |= {"off_diagonal": score(2.5), "gain": score(1.25), "worst": None, "worst_at": None}
    cells = [[score(v, "forgetting:score", "%") for v in row] for row in ([-40.0, 12.0], [0.0, 3.0])]
    found["score"] = {"trained": ["kind", "mix"], "axes": ["kind", "safe"], "cells": cells}
    found["score"] |= {"off_diagonal": score(5.0), "gain": score(40.0), "worst": score(12.0)}
    found["score"]["worst_at"] = ["kind", "safe"]
    rows = [
        {"kind": "routing", "what": what, "metric": metric, "value": 0.25, "low": 0.2, "high": 0.3, "n": 9}
        for what in ("all layers", "whole rows")
        for metric in ("accuracy", "confidence", "ece")
    ]
    diagrams = [{"kind": "routing", "what": what, "bins": [BIN]} for what in ("all layers", "whole rows")]
    routing = {"misrouting": score(12.5, "misrouting", "%"), "calibration": rows, "diagrams": diagrams}
    more = {"about": "the run x", "held_out": "proved", "n_prompts": [7, 9], "n_left_out": 2, "routing": routing}
    return copy.deepcopy({**found, **more, **changes})


def test_signs_stand_beside_what_they_are_compared_with() -> None:
    found = {sign.name: (sign.value, sign.beside) for sign in signs(parse_account(whole(), "c"))}
    assert found["forgetting, loss, nats/token"] == (
        "+2.50 [2.40, 2.60]",
        "gain on the own axis +1.25 [1.15, 1.35]",
    )
    assert found["forgetting, score, %"] == (
        "+5.0 [4.9, 5.1]",
        "gain on the own axis +40.0 [39.9, 40.1]; worst: kind on safe +12.0 [11.9, 12.1]",
    )
    assert found["CKA of kind and safe"] == ("0.900 [0.800, 1.000]", "with the base: kind 0.900 and safe 0.900")
    assert found["angle of kind and safe"] == (
        "30.0°",
        "under the base 30.0°, unrelated 60.0°, halves of one axis 10.0°",
    )
    assert found["silhouette of the axes, cosine"] == ("0.250 [0.150, 0.350]", "under the base 0.250 [0.150, 0.350]")
    assert found["misrouted rows, %"] == ("12.5 [12.4, 12.6]", "guessing among the axes 50.0")
    assert found["ECE of the routing, tokens"][0] == "0.250 [0.200, 0.300]"
    assert len(found) == 2 + 3 + 1 + 2 + 1 + 2


def test_numbers_in_words() -> None:
    assert reading_text(None, "%") == reading_text(Reading(math.nan, math.nan, math.nan, 0), "%") == "n/a"
    assert reading_text(Reading(1.0, math.nan, math.nan, 1), "%", sign=True) == "+1.0"
    assert reading_text(Reading(0.001, 0.0, 0.002, 1), "%", sign=True) == "0.0 [0.0, 0.0]"
    assert reading_text(Reading(-1.0, -2.0, 0.0, 1), "nats/token", sign=True) == "−1.00 [−2.00, 0.00]"
    assert (degrees_text(math.pi / 4), degrees_text(math.nan)) == ("45.0°", "n/a")


def test_the_lead_says_whose_rows() -> None:
    words = " ".join(lead(parse_account(whole(), "c")))
    assert "3 experts (kind, safe and mix) and a fused model beside their base" in words
    assert "7 prompts of kind and 9 prompts of safe. 2 rows did not fit" in words
    assert words.endswith("The rows: proved.")
    few = " ".join(lead(parse_account(whole(routing=None, n_left_out=0, held_out=""), "c")))
    assert "fused" not in few
    assert "did not fit" not in few
    assert "The rows" not in few


def test_the_page_has_a_figure_and_a_sentence_for_each_sign() -> None:
    page = build_collapse_page(parse_account(whole(), "c"))
    check(page)
    assert "<h1>Axis collapse of the run x</h1>" in page
    for name, heading in TITLES.items():
        section = page.split(f'<section id="{name}"')[1].split("</section>")[0]
        assert f">{heading}</h2>" in section
        assert "<svg" in section
        assert HOW[name].replace("'", "&#x27;") in section
        assert "<details><summary>The numbers</summary>" in section
    for text in ("+2.50", "+12.0", "0.900", "30.0°", "Misrouted: 12.5 [12.4, 12.6] % of 10 rows.", "ECE ↓"):
        assert text in page


def test_what_was_not_measured_has_no_section() -> None:
    found = parse_account(whole(score=None, routing=None), "c")
    page = build_collapse_page(found)
    check(page)
    assert 'id="score"' not in page
    assert 'id="routing"' not in page
    assert found.score is None
    assert [sign.name for sign in signs(found) if "score" in sign.name or "rout" in sign.name] == []


def test_names_are_text_everywhere() -> None:
    odd = json.loads(json.dumps(whole(about=ATTACK, held_out=ATTACK)).replace('"kind"', json.dumps(ATTACK)))
    for row in (*odd["routing"]["calibration"], *odd["routing"]["diagrams"]):
        row["kind"] = row.pop(ATTACK, row.get("kind"))
    found = parse_account(odd, "c")
    page = build_collapse_page(found)
    check(page)
    assert ATTACK not in page
    assert ATTACK not in render_collapse_markdown(found)


def test_markdown_and_terminal_have_the_table() -> None:
    found = parse_account(whole(), "c")
    text = render_collapse_markdown(found)
    assert "| sign | measured | to compare with |" in text
    assert "| kind | −1.25 \\[−1.35, −1.15\\] | +2.50 \\[2.40, 2.60\\] |" in text
    assert f"## {TITLES['score']}" in text
    out = io.StringIO()
    Console(width=150, file=out).print(render_collapse_terminal(found))
    shown = out.getvalue()
    for sign in signs(found):
        assert sign.name in shown
        assert sign.value in shown


def test_files_are_written_from_the_json(tmp_path: Path) -> None:
    (tmp_path / "collapse.json").write_text(json.dumps(whole()))
    assert write_collapse(tmp_path) == tmp_path / "collapse.html"
    assert (tmp_path / "collapse.html").read_text() == build_collapse_page(load_collapse(tmp_path))
    assert (tmp_path / "collapse.md").read_text().startswith("# Axis collapse of the run x\n")


WRONG = {
    "counts": (lambda c: c.update(n_prompts=[7]), "n_prompts in c is .7.; allowed: one count for each of 2 axes"),
    "summary": (lambda c: c["loss"]["gain"].pop("n"), "gain in loss in c has no field 'n'"),
    "routing": (lambda c: c["routing"].pop("diagrams"), "routing in c has no field 'diagrams'"),
    "left": (lambda c: c.pop("n_left_out"), "c has no field 'n_left_out'"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_damaged_file_is_refused(case: str) -> None:
    change, message = WRONG[case]
    broken = whole()
    change(broken)
    with pytest.raises(InputError, match=message):
        parse_account(broken, "c")
