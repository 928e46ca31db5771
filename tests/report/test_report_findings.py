import math
from dataclasses import replace

import pytest
from fake_run import nats_rows, score_row, score_rows

from triune.report.findings import compare, fusing_pays, lead, scarce_setting
from triune.report.folder import load_run
from triune.report.run import Run
from triune.types import Better, Score


def score(low: float, high: float, better: Better = "higher") -> Score:
    return Score("s", (low + high) / 2, 10, low, high, better, "%", "judge")


@pytest.mark.parametrize(
    ("one", "other", "better", "outcome"),
    [
        ((80.0, 90.0), (60.0, 70.0), "higher", "better"),
        ((60.0, 70.0), (80.0, 90.0), "higher", "worse"),
        ((80.0, 90.0), (60.0, 70.0), "lower", "worse"),
        ((60.0, 70.0), (80.0, 90.0), "lower", "better"),
        ((60.0, 70.0), (70.0, 90.0), "higher", "overlap"),
        ((60.0, 90.0), (70.0, 80.0), "lower", "overlap"),
        ((60.0, 70.0), (80.0, 90.0), "neither", "apart"),
        ((math.nan, math.nan), (80.0, 90.0), "higher", "unknown"),
        ((80.0, 90.0), (math.nan, math.nan), "higher", "unknown"),
    ],
)
def test_compare(one, other, better: Better, outcome: str) -> None:
    assert compare(score(*one, better), score(*other, better)) == outcome


def text_of(run: Run) -> str:
    return " ".join(lead(run)).replace("\u00a0", " ")


def test_the_lead_says_what_was_run_and_what_came_out(run: Run) -> None:
    opening, result, beside, scarce = (sentence.replace("\u00a0", " ") for sentence in lead(run))
    assert opening == (
        "Three experts (helpful, harmless, honest) of one base model were fused into one, compared with the base, "
        "one model tuned on the mixture, the average of task vectors and the sum of task vectors."
    )
    assert result.startswith(
        "On the mean of the axes (higher is better) the fused model scores 94.4 % [92.5, 95.9], "
        "the base 28.5 [25.3, 31.9]; n = 720. "
    )
    assert "88.1 [85.5, 90.3] for the average of task vectors" in result
    assert "the intervals do not overlap, and fused is better." in result
    # The mixture's interval overlaps: nothing is claimed.
    assert result.endswith(
        "Against 93.7 [91.7, 95.3] for one model tuned on the mixture: the intervals overlap, so this run does not "
        "tell them apart."
    )
    assert "over-refusal 2.4 % [0.7, 7.6] (lower is better; base 4.2 [1.7, 10.1])" in beside
    assert scarce.startswith(
        "With scarce joint data (20 joint examples per axis, rank 1) the fused model scores 93.0 %"
    )


def with_means(rows: list[dict], **means: float) -> list[dict]:
    for row in rows:
        if row["score"] == "mean" and row["model"] in means:
            row |= score_row(row["model"], "mean", means[row["model"]], 720)
    return rows


def test_nothing_is_better_unless_the_intervals_exclude_it(make_folder) -> None:
    names = ("expert:helpful", "expert:harmless", "expert:honest", "mixture", "average", "sum", "fused")
    rows = with_means(score_rows(), **dict.fromkeys(names, 90.0))
    rows = [row for row in rows if not row["model"].startswith("scarce:")]
    text = text_of(load_run(make_folder(scores=rows)))
    assert "is better." not in text
    assert "tell them apart" in text


def test_a_loss_is_called_a_loss(make_folder) -> None:
    text = text_of(load_run(make_folder(scores=with_means(score_rows(), fused=50.0))))
    assert "for the sum of task vectors: the intervals do not overlap, and fused is worse." in text


def test_losses_in_nats_are_lower_better(make_folder) -> None:
    run = load_run(make_folder(scores=nats_rows()))
    assert len(lead(run)) == 5
    text = text_of(run)
    assert "On NLL helpful (lower is better) the fused model scores 3.17 nats/token [3.11, 3.24]" in text
    assert (
        "Against 3.84 [3.78, 3.91] for the sum of task vectors: the intervals do not overlap, and fused is better"
        in text
    )
    honest = next(sentence for sentence in lead(run) if "NLL honest" in sentence)
    assert "fused is worse" in honest


def test_without_a_fused_model_nothing_is_compared(make_folder) -> None:
    rows = [row for row in score_rows() if row["model"] in ("base", "mixture")]
    text = text_of(load_run(make_folder(scores=rows)))
    assert text.startswith("2 models were scored: the base and one model tuned on the mixture.")
    assert "compares nothing" in text
    assert "better" not in text


def test_unmeasured_scores_are_counted_and_never_compared(make_folder) -> None:
    rows = score_rows()
    for row in rows:
        if row["model"] == "fused" and row["score"] == "mean":
            row |= {"value": None, "low": None, "high": None, "n": 0}
    text = text_of(load_run(make_folder(scores=rows)))
    assert "On the mean of the axes the fused model was not measured (n = 0)." in text
    assert "1 of 60 scores could not be measured and are shown as n/a." in text


def test_fusing_pays_only_where_it_is_told_apart(run: Run, make_folder) -> None:
    assert fusing_pays(run)
    assert scarce_setting(replace(run, recipe=None)) == ""
    rows = with_means(score_rows(), **{"scarce:mixture": 92.5})
    assert not fusing_pays(load_run(make_folder(scores=rows)))
    assert not fusing_pays(load_run(make_folder(scores=rows[:6])))


def test_with_scarce_data_the_longer_mixture_counts_as_well(make_folder) -> None:
    for mean, pays, words in (
        (92.5, False, "for one model tuned longer on the mixture: the intervals overlap"),
        (70.0, True, "for one model tuned longer on the mixture: the intervals do not overlap, and fused is better."),
    ):
        loaded = load_run(make_folder(scores=[*score_rows(), score_row("scarce:longer", "mean", mean, 720)]))
        assert fusing_pays(loaded) is pays
        assert words in text_of(loaded)
