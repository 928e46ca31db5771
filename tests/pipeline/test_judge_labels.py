"""A judge's agreement with labels that the recipe gives: asked in the run, carried into the scores, refused early."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.test_judging import JUDGES, bench, recipe, scored, world
from triune.data.labelled import read_labelled
from triune.data.preparing import Prepared
from triune.errors import InputError
from triune.judge_settings import Labels
from triune.pipeline import judge_labels
from triune.pipeline.exam import load_prompts
from triune.pipeline.judge_labels import label_sets, read_labels
from triune.pipeline.judging import check_judging, judge_answers

REFUSES = "I'm sorry, but I can't help with that."
ROWS = [("one?", REFUSES, 1), ("two?", REFUSES, 0), ("three?", "With pleasure.", 0), ("four?", "Never.", 1)]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    lines = [json.dumps({"prompt": p, "response": r, "label": label}) for p, r, label in ROWS]
    path.write_text("\n".join(lines) + "\n")
    return path


def with_labels(**content: Any) -> dict[str, Any]:
    return {**JUDGES, "refusal": {**JUDGES["refusal"], "labels": content}}


def test_the_agreement_is_measured_and_stands_with_the_scores(labels: Path, tmp_path: Path) -> None:
    """Of four answers the rule finds one refusal of two and takes one for a refusal that is none."""
    own = recipe(judges=with_labels(source=str(labels)))
    agreement = scored(tmp_path / "run", own)["base", "over_refusal"]["agreement"]
    assert (agreement["accuracy"], agreement["n"]) == (0.5, 4)
    assert agreement["labels"] == f"{labels} (rows), asked in this run"
    measures = {row["name"]: row["value"] for row in agreement["measures"]}
    assert (measures["sensitivity"], measures["specificity"]) == (0.5, 0.5)


def test_labels_are_part_of_what_a_step_depends_on(labels: Path) -> None:
    own = recipe(judges=with_labels(source=str(labels))).judges
    before = label_sets(own, 0)["refusal"].identity
    assert set(label_sets(own, 0)) == {"refusal"}
    labels.write_text(labels.read_text().replace('"label": 0', '"label": 1', 1))
    assert label_sets(own, 0)["refusal"].identity != before


def test_a_run_reads_them_once(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(source: str, format: str) -> Any:
        read.append(source)
        return read_labelled(source, format)

    monkeypatch.setattr(judge_labels, "read_labelled", reading)
    own = recipe(judges=with_labels(source=str(labels)))
    context, exam, observed = world(tmp_path, own)
    held = check_judging(own, Prepared({}, {}, [], [], load_prompts(exam.data), []), tmp_path)
    judge_answers(context, replace(exam, labels=held), observed, tmp_path / "verdicts")
    assert read == [str(labels)]
    told = json.loads((tmp_path / "verdicts" / "judges.json").read_text())
    assert told["refusal"]["agreement"]["n"] == 4


def test_a_limit_draws_by_the_seed(labels: Path) -> None:
    wanted = Labels(source=str(labels), limit=2)
    drawn = {tuple(row.prompt for row in read_labels(wanted, "refuses", seed).rows) for seed in range(20)}
    assert len(drawn) > 1
    assert {len(rows) for rows in drawn} == {2}


def check(judges: dict[str, Any]) -> None:
    own = recipe(judges=judges, evaluate=[bench("xstest", "refusal"), bench("local", {"right": "exact"}, name="mine")])
    check_judging(own, Prepared({}, {}, [], [], {}, []), Path("nowhere"))


def test_refused_before_anything_is_asked(labels: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(labels.read_text().splitlines()[0])
    for content, message in (
        (
            {"source": str(labels), "format": "alpaca_eval"},
            r"is preferred to the other, the judge decides",
        ),
        ({"source": str(one)}, "has 1 labelled answers; an agreement wants two"),
        ({"source": str(tmp_path / "none.jsonl")}, "none.jsonl"),
        ({"source": str(labels), "format": "row"}, "labelled format"),
    ):
        with pytest.raises(InputError, match=f"judges.refusal.labels: .*{message}"):
            check(with_labels(**content))
    with pytest.raises(InputError, match=r"judges.exact.labels: labelled answers come without accepted ones"):
        check({**JUDGES, "exact": {**JUDGES["exact"], "labels": {"source": str(labels)}}})
