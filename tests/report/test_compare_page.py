"""The comparison page: valid, accessible, nothing loaded, nothing from a file becomes markup."""

import base64
import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report_figures import contrast
from test_report_page import ATTACK, check, text_of

from tests.report.compared_runs import answered, edit_json, write_run
from triune.pipeline.reporting import compare_runs, compared_pairs
from triune.report.compare_browser import DATA, answer_data, clean, json_text
from triune.report.compare_folder import load_runs, side_by_side
from triune.report.compare_run import Kind, Pair, turned
from triune.report.compare_words import gap_text, p_text, share_text
from triune.report.labels import plain
from triune.report.theme import THEME

MODELS = ("base", "expert:harmless", "fused")


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two made-up runs, of 3 and 2 models with 60 prompts a benchmark."""
    place = tmp_path_factory.mktemp("compared")
    one = write_run(place / "first", answered(MODELS, 60, 1), "The first")
    two = write_run(place / "second", answered(("base", "mixture"), 60, 2, first=10), "The second")
    return compare_runs([one, two], place / "out", "first/base").parent


@pytest.fixture(scope="session")
def comparison_page(compared: Path) -> str:
    return (compared / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{DATA}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_is_valid_and_loads_nothing(comparison_page: str) -> None:
    reader = check(comparison_page)
    names = [tag for tag, _ in reader.tags]
    for landmark in ("header", "main", "footer", "h1"):
        assert names.count(landmark) == 1
    # scores, the differences twice, three of wins, three of categories, judges, runs
    assert names.count("table") == names.count("caption") == 1 + 2 + 3 + 3 + 1 + 1
    assert names.count("svg") == 3
    navs = [attrs.get("aria-label") for tag, attrs in reader.tags if tag == "nav"]
    assert navs == ["Contents", "Pages of prompts"]
    assert names.count("script") == 2


def test_every_control_has_its_label(comparison_page: str) -> None:
    body = comparison_page.split('id="browser"')[1].split("<script")[0]
    labels = re.findall(r"<label>([^<]+) <(?:select|input)", body)
    assert labels == ["Model", "Beside", "Axis or benchmark", "Verdict", "Text"]
    assert body.count("<select") + body.count("<input") == len(labels)
    assert 'role="status" aria-live="polite"' in body
    assert 'role="search" aria-label="Filter the answers"' in body


def test_only_the_pages_own_scripts_may_run(comparison_page: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", comparison_page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in comparison_page
    assert "table.sortable" in script
    assert "answers-data" in script


def test_better_stands_only_where_a_comparison_says_so(compared: Path, comparison_page: str) -> None:
    with (compared / "comparisons.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "first/base" in (row["model"], row["other"])]
    words = {"better": 0, "worse": 0, "not told apart": 0}
    opposite = {"better": "worse", "worse": "better", "not told apart": "not told apart"}
    for row in rows:
        words[opposite[row["verdict"]] if row["model"] == "first/base" else row["verdict"]] += 1
    assert min(words["better"], words["worse"]) > 0
    table = comparison_page.split('<section id="scores"')[1].split("</table>")[0]
    assert {word: table.count(f"{word}</small>") for word in words} == words
    assert "<strong>" not in table  # no value is best by itself


def test_a_cell_says_all_of_a_score(comparison_page: str, compared: Path) -> None:
    with (compared / "scores.csv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if (row["model"], row["score"]) == ("fused", "unsafe"))
    text = text_of(comparison_page.split('<section id="scores"')[1].split("</table>")[0]).replace("\u00a0", " ")
    value, low, high = (f"{float(row[name]):.1f}" for name in ("value", "low", "high"))
    corrected = f"{float(row['corrected']):.1f} [{float(row['corrected_low']):.1f}"
    undecided = f", {row['abstained']} undecided" if row["abstained"] != "0" else ""
    assert f"{value} [{low}, {high}] n = {row['n']}{undecided} corrected {corrected}" in text
    whole_page = text_of(comparison_page)
    assert "the judge's error taken out by Rogan–Gladen with 1 200 labelled answers." in whole_page
    assert "agrees with 87.1 % of 1 200 labels (PKU-SafeRLHF, held-out prompts) F1 0.861" in whole_page
    assert "flags 4.0 % of 50 plain refusals" in whole_page
    assert "Not corrected: fused unsafe compliance, base unsafe compliance: too few labels." in whole_page


def test_forest_plots_tell_their_numbers(comparison_page: str) -> None:
    told = re.findall(r'<svg[^>]*aria-label="(Differences from [^"]*)"', comparison_page)
    assert len(told) == 3
    for words in told:
        assert "percentage points" in words
        assert len(re.findall(r"\], (better|worse|not told apart)[;.]", words)) == 4


def test_text_and_background_are_far_enough_apart() -> None:
    style = (Path(__file__).parents[2] / "src/triune/report/compare.css").read_text()
    used = set(re.findall(r"(?<![-\w])color: var\(--(\w+)\)", style))
    assert {"second", "fused", "muted", "ink"} <= used
    for mode in (0, 1):
        for token in used:
            for behind in ("paper", "card"):
                assert contrast(THEME[token][mode], THEME[behind][mode]) >= 4.5, (token, behind, mode)
        for token in ("ink", "muted"):  # under the pointer, and where a search hit is marked
            assert contrast(THEME[token][mode], THEME["shade"][mode]) >= 4.5
    assert "tr:hover small.verdict { color: var(--ink); }" in style


def test_json_in_a_script_is_never_markup() -> None:
    texts = [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>&amp;",
        "\u2028\u2029",
        "ü 漢 \U0001f600",
        '"\\',
    ]
    made = json_text(texts)
    assert not set("<>&\u2028\u2029") & set(made)
    assert json.loads(made) == texts


def test_text_that_no_file_can_hold() -> None:
    assert clean("a\x00b\x1b[1m\r\nc\td\ud800") == "a\ufffdb\ufffd[1m\nc\td\ufffd"
    assert plain("x\udfffy") == "x\ufffdy"


def attacked(place: Path) -> Path:
    """A run in which every name, text and note is an attack."""
    rows = [
        row
        | {
            name: f"{row[name]}{ATTACK}"
            for name in ("model", "prompt", "response", "kind", "score", "judge", "reason")
        }
        | {"benchmark": "xstest"}
        for row in answered(("base", "fused"), 4, 3)[:4] + answered(("fused",), 4, 4)[:4]
    ]
    rows = [row | {"response": "</script><script>alert(1)</script>\ud800"} for row in rows]
    for row in rows:
        row["model"] = row["model"].replace("/", "∕")  # its answers lie in a folder of that name
    run = write_run(place / "run", rows, ATTACK)
    judge: dict[str, Any] = {"name": ATTACK, "version": ATTACK, "event": ATTACK, "cost": ATTACK, "used_for": [ATTACK]}
    judge |= {"uncorrected": {ATTACK: ATTACK}}
    measure = {"name": ATTACK, "value": 1.0, "low": 0.0, "high": 1.0, "unit": ATTACK}
    agreement = {"accuracy": 0.5, "n": 3, "labels": ATTACK, "measures": [measure]}
    (run / "judges.json").write_text(json.dumps([judge | {"agreement": agreement}]))
    rate = {"method": ATTACK, "value": 1.0, "low": 0.0, "high": 2.0, "n_labelled": 3}
    edit_json(run / "scores.json", lambda found: [row | {"corrected": rate, "unit": ATTACK} for row in found])
    edit_json(run / "breakdown.json", lambda found: [row | {"unit": ATTACK, "group": ATTACK} for row in found[:1]])
    return run


def test_nothing_from_a_file_becomes_markup(tmp_path: Path) -> None:
    run = attacked(tmp_path)
    page = compare_runs([run], tmp_path / "out").read_text(encoding="utf-8")
    reader = check(page)
    names = [tag for tag, _ in reader.tags]
    assert names.count("script") == 2
    assert "img" not in names
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    data = data_of(page)
    assert data["items"][0][3][0][1] == "</script><script>alert(1)</script>\ufffd"
    assert ATTACK in data["items"][0][2]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "<img" not in text


def test_the_browsers_data_has_every_answer(compared: Path, comparison_page: str) -> None:
    data = data_of(comparison_page)
    place = compared.parent
    found = side_by_side(load_runs([place / "first", place / "second"]))
    assert data == json.loads(json.dumps(answer_data(found)))
    assert data["models"] == ["base (first)", "harmless expert", "fused", "base (second)", "tuned on the mixture"]
    assert data["benchmarks"] == ["beavertails", "xstest", "alpaca eval"]
    # 60 prompts of each benchmark, and 10 more that only the second run was asked.
    assert len(data["items"]) == 3 * 70
    assert sorted(len(item[3]) for item in data["items"]) == [2] * 30 + [3] * 30 + [5] * 150
    assert sum(len(item[3]) for item in data["items"]) == 5 * 180
    item = data["items"][0]
    assert item[1:3] == ["violence", "Question 0 of beavertails: what should I do about case 0?"]
    undecided = [said for item in data["items"] for answer in item[3] for said in answer[2] if said[1] is None]
    assert undecided
    assert all(said[2] == "too short to judge" for said in undecided)


def test_two_answers_to_one_prompt_are_two_items(tmp_path: Path) -> None:
    rows = [row | {"prompt": "again", "model": model} for model in "ab" for row in answered(("base",), 3, 0)[:3]]
    run = write_run(tmp_path / "run", rows)
    items = answer_data(side_by_side(load_runs([run])))["items"]
    assert [len(item[3]) for item in items] == [2, 2, 2]


def test_the_other_side_of_a_comparison() -> None:
    pair = Pair(Kind("s"), "a", "b", 3.0, 1.0, 6.0, 9, 0.01, 0.02, "better", 5, 2)
    other = turned(pair)
    assert (other.model, other.other, other.value, other.low, other.high) == ("b", "a", -3.0, -6.0, -1.0)
    assert (other.verdict, other.wins, other.losses, other.adjusted) == ("worse", 2, 5, 0.02)
    assert turned(other) == pair
    assert gap_text(other, "%").replace("\u00a0", " ") == "−3.0 [−6.0, −1.0]"
    assert (p_text(0.0004), p_text(0.04), p_text(float("nan"))) == ("<\u00a00.001", "0.040", "n/a")
    assert (share_text(1, 8), share_text(0, 0)) == ("12.5\u00a0%", "n/a")


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", answered(("base",), 3, 0))
    for name in ("breakdown.json", "judges.json", "verdicts.jsonl", "recipe.yaml"):
        (run / name).unlink()
    for path in (run / "samples").rglob("*.jsonl"):
        path.unlink()
    page = compare_runs([run], tmp_path / "out").read_text(encoding="utf-8")
    check(page)
    text = text_of(page)
    assert "Scores by category: no run has a breakdown.json." in text
    assert "The browser of answers: no run kept samples." in text
    assert "No judges.json, so only what stands below the scores: run." in text
    assert "no two models have verdicts on the same prompts" in text
    assert "run has no verdicts.jsonl" in text
    assert compared_pairs(side_by_side(load_runs([run])))[0] == ()
