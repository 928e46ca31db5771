"""The comparison as CSV, as JSON, and as Markdown."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from triune.report.compare_run import Compared, Entry, Pair, facing, measured
from triune.report.compare_words import (
    cautions,
    flagged_text,
    gap_text,
    kind_label,
    lead,
    measure_texts,
    p_text,
    share_text,
    title,
    version_text,
    worded,
)
from triune.report.labels import ARROWS
from triune.report.markdown import bullets, inline, table
from triune.report.numerals import count_text, size_text, value_text
from triune.report.run import ModelScore
from triune.report.tables import agreement_text, csv_field, judge_lines

SCORE_COLUMNS = (
    *("model", "run", "benchmark", "score", "value", "n", "low", "high", "better", "unit", "judge"),
    *("agreement_accuracy", "agreement_n", "agreement_labels", "abstained"),
    *("corrected", "corrected_low", "corrected_high", "corrected_by", "n_labelled"),
)
PAIR_COLUMNS = (
    *("score", "benchmark", "model", "other", "value", "low", "high", "n", "p", "p_holm", "verdict"),
    *("wins", "losses"),
)


def scores_csv(found: Compared) -> str:
    """Every score of every run in full precision; a number that was not measured is an empty field."""
    runs = {subject.key: subject.run for subject in found.subjects}
    rows = []
    for entry in found.entries:
        score, agreement, other = entry.score, entry.score.agreement, entry.corrected
        known = (agreement.accuracy, agreement.n, agreement.labels) if agreement else ("", "", "")
        rate = (other.value, other.low, other.high, other.method, other.n_labelled) if other else ("",) * 5
        rows.append(
            (
                *(entry.subject, runs[entry.subject], entry.kind.benchmark, score.name, score.value, score.n),
                *(score.low, score.high, score.better, score.unit, score.judge, *known, score.abstained, *rate),
            )
        )
    return _csv(SCORE_COLUMNS, rows)


def pairs_csv(found: Compared) -> str:
    """Every comparison in full precision."""
    return _csv(PAIR_COLUMNS, [tuple(pair_row(pair).values()) for pair in found.pairs])


def pair_row(pair: Pair) -> dict[str, Any]:
    """A comparison as comparisons.json has it, with wins and losses."""
    named = (pair.kind.score, pair.kind.benchmark, pair.model, pair.other)
    numbers = (pair.value, pair.low, pair.high, pair.n, pair.p, pair.adjusted, pair.verdict, pair.wins, pair.losses)
    return dict(zip(PAIR_COLUMNS, (*named, *numbers), strict=True))


def compared_json(found: Compared) -> dict[str, Any]:
    """What was compared with what, and every comparison."""
    return {
        "reference": found.reference,
        "runs": [{"run": run.label, "folder": run.folder.resolve(), "verdicts": run.judged} for run in found.runs],
        "models": [{"key": subject.key, "run": subject.run, "model": subject.model} for subject in found.subjects],
        "rows": [pair_row(pair) for pair in found.pairs],
        "reasons": found.reasons,
    }


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(map(csv_field, row) for row in rows)
    return out.getvalue()


def render_comparison_markdown(found: Compared) -> str:
    """The comparison as GitHub-flavoured Markdown."""
    blocks = [f"# {inline(title(found))}", *(inline(sentence) for sentence in lead(found))]
    blocks += ["## Scores", _scores(found), "## Differences", _differences(found)]
    if found.reasons:
        blocks += ["### Not compared, and why", bullets(found.reasons)]
    if any(run.judges for run in found.runs):
        blocks += ["## Judges", _judges(found)]
    blocks += ["## How to read this, and what it does not show", bullets(cautions(found))]
    blocks += ["## The runs", bullets(f"{run.label}: {run.title}, {run.folder}" for run in found.runs)]
    return "\n\n".join(blocks) + "\n"


def _scores(found: Compared) -> str:
    index, kinds, against = found.index(), found.kinds(), facing(found, found.reference)
    heads = [(kind, found.sample_of(kind)) for kind in kinds]
    head = ["model"] + [
        f"{inline(kind_label(found, k))} {inline(s.unit)} {ARROWS[s.better]}".strip() for k, s in heads
    ]
    rows = [
        [
            inline(subject.label),
            *(_cell(index.get((subject.key, kind)), against.get((subject.key, kind))) for kind in kinds),
        ]
        for subject in found.subjects
    ]
    scored = tuple(ModelScore(found.label(entry.subject), entry.score) for entry in found.entries)
    note = f"Value [95 % interval], n; the standing is against {inline(found.label(found.reference))}.\n\n"
    return f"{table(head, rows)}\n\n{note}{bullets(judge_lines(scored))}"


def _cell(entry: Entry | None, pair: Pair | None) -> str:
    if entry is None:
        return "–"
    score, other = entry.score, entry.corrected
    parts = [value_text(score.value, score.unit)]
    if measured(score.low):
        parts.append(f"[{value_text(score.low, score.unit)}, {value_text(score.high, score.unit)}],")
    parts.append(size_text(score.n))
    parts += [f"({count_text(score.abstained)} undecided)"] if score.abstained else []
    parts += [f"corrected {value_text(other.value, score.unit)}"] if other else []
    parts += [f"**{pair.verdict}**" if pair.verdict != "not told apart" else pair.verdict] if pair else []
    return " ".join(parts)


def _differences(found: Compared) -> str:
    if not found.pairs:
        return "No two models could be compared prompt by prompt."
    head = ["model", "other", "score", "difference", "prompts", "won", "lost", "p", "p, Holm", "standing"]
    rows = [
        [
            *(inline(found.label(key)) for key in (pair.model, pair.other)),
            inline(kind_label(found, pair.kind)),
            inline(gap_text(pair, found.sample_of(pair.kind).unit)),
            count_text(pair.n),
            *("–" if n is None else share_text(n, pair.n) for n in (pair.wins, pair.losses)),
            inline(p_text(pair.p)),
            inline(p_text(pair.adjusted)),
            pair.verdict,
        ]
        for pair in found.pairs
    ]
    return table(head, rows)


def _judges(found: Compared) -> str:
    rows = []
    for judge in dict.fromkeys(judge for run in found.runs for judge in run.judges or ()):
        texts = [agreement_text(judge.agreement), *(measure_texts(judge.agreement) if judge.agreement else ())]
        texts += flagged_text(judge)
        name = f"{judge.name} {version_text(judge.version)}".strip()
        cells = (name, judge.event, "; ".join(texts), judge.cost, ", ".join(map(worded, judge.used_for)))
        rows.append([inline(text) for text in cells])
    return table(["judge", "decides", "agreement", "cost", "used for"], rows)
