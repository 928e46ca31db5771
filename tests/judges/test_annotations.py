"""annotations.json of alpaca_eval: read, checked, written, imported; the published files and bad ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from triune.errors import InputError
from triune.judges.annotations import (
    Annotation,
    Annotations,
    annotated,
    annotation_judge,
    import_annotations,
    read_annotations,
    write_annotations,
)
from triune.judges.cache import cached, read_entries, verdict_key
from triune.judges.judge import Case
from triune.types import Verdict

ROW = {
    "instruction": "Say hello.",
    "output_1": "No.",
    "generator_1": "reference",
    "output_2": "Hello!",
    "generator_2": "ours",
    "annotator": "gpt",
    "preference": 2,
    "price_per_example": 0.5,
}


def rows(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [ROW | {"instruction": f"Say {number}."} | change for number, change in enumerate(changes)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.json"


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("preference", "value"),
    [
        (1, 0.0),
        (2, 1.0),
        (1.0, 0.0),
        (2.0, 1.0),
        (0, 0.5),
        (0.0, 0.5),
        (1.5, 0.5),
        (1.25, 0.25),
        (None, None),
        (-1, None),
        (math.nan, None),
    ],
)
def test_a_preference_is_the_models_share(path: Path, preference: float | None, value: float | None) -> None:
    read = read_annotations(written(path, rows({"preference": preference})))
    assert read.values == [value]
    assert read.abstained == (value is None)
    assert read.rows[0].verdict.value == value


def test_a_row_is_kept_whole(path: Path) -> None:
    row = read_annotations(written(path, rows({"preference": 1.25, "note": [1, {"a": None}]}))).rows[0]
    assert row.case == Case("Say 0.", response="Hello!", other="No.")
    assert (row.generator_1, row.generator_2, row.annotator) == ("reference", "ours", "gpt")
    assert row.extra == {"price_per_example": 0.5, "note": [1, {"a": None}]}
    assert row.verdict == Verdict(0.25, "annotated: preference 1.25")


def test_stored_files_without_models_are_read(path: Path) -> None:
    bare = {name: ROW[name] for name in ("instruction", "output_1", "output_2", "preference")}
    row = read_annotations(written(path, [bare])).rows[0]
    assert (row.generator_1, row.generator_2, row.annotator) == ("", "", "")


def test_one_model_of_several(path: Path) -> None:
    content = rows({}, {"generator_2": "theirs", "instruction": "Say 0."})
    read = read_annotations(written(path, content), model="theirs")
    assert [row.generator_2 for row in read.rows] == ["theirs"]
    with pytest.raises(InputError, match=r"2 models .*'ours' in 1 rows, 'theirs' in 1 rows; wanted one\. Name"):
        read_annotations(path)
    with pytest.raises(InputError, match=r"model 'their' is not known; known: ours, theirs\. Did you mean 'theirs'"):
        read_annotations(path, model="their")


def test_instructions_that_the_file_does_not_judge_are_named(path: Path) -> None:
    read = read_annotations(written(path, rows({}, {})), instructions=["Say 0.", "Say 1.", "Say 2."])
    assert read.absent == ("Say 2.",)
    assert len(read.rows) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"instruction": "x"}, r"wanted an array of objects, got an object with the fields instruction"),
        ([], "holds no rows"),
        (["x"], r"item 1 is '\"x\"'; wanted an object"),
        (rows({}, {"preference": 3}), r"row 2: preference is 3 \(int\); wanted a number from 1 .* to 2"),
        (rows({"preference": 0.5}), r"row 1: preference is 0\.5 \(float\)"),
        (rows({"preference": -2}), "preference is -2"),
        (rows({"preference": 10**400}), "a whole number of 401 digits"),
        (rows({"preference": math.inf}), "preference is inf"),
        (rows({"preference": "2"}), r"preference is '2' \(str\)"),
        (rows({"preference": True}), r"preference is True \(bool\)"),
        (rows({"preference": [1]}), r"preference is \[1\] \(list\)"),
        (rows({"output_2": None}), r"row 1: field 'output_2' is null; wanted a text"),
        (rows({"output_1": 5}), r"row 1: field 'output_1' is 5 \(int\); wanted a text"),
        (rows({"instruction": None}), "field 'instruction' is null"),
        (rows({"generator_2": 5}), "field 'generator_2' is 5"),
        (rows({"output_2": "\ud83d"}), "half of a character"),
        ([{"instruction": "x", "output_1": "y"}], r"row 1: has no 'output_2', 'preference'; an annotation wants"),
        (rows({}, {"instruction": "Say 0."}), r"row 2: has the instruction of row 1 again, 'Say 0\.'"),
        (rows({}, {"generator_1": "x"}), r"2 references \(field 'generator_1'\): .*wanted one\. Split the file"),
        (rows({}, {"annotator": "x"}), r"2 annotators \(field 'annotator'\)"),
        (
            rows({}, {"instruction": "Say 1!"}),
            r"row 2: instruction 'Say 1!' is not one of the benchmark's 2; so are 1 of 2 rows. Near: 'Say 1.'",
        ),
    ],
)
def test_bad_files_are_refused_by_name_and_row(path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(written(path, content), instructions=["Say 0.", "Say 1."])
    assert str(path) in str(caught.value)


def test_truncated_files_are_refused(path: Path) -> None:
    path.write_text(json.dumps(rows({}))[:-20], encoding="utf-8")
    with pytest.raises(InputError, match=r"annotations\.json:1: not JSON"):
        read_annotations(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_annotations(path.with_name("none.json"))


def test_verdicts_become_annotations_that_read_back(path: Path) -> None:
    cases = [Case("Say 1.", "one", "eins"), Case("Say 2.", "two", "zwei"), Case("Say é.", "", "")]
    verdicts = [Verdict(0.25, "text"), Verdict(None, "timeout"), Verdict(1.0)]
    rows = annotated(cases, verdicts, model="ours", reference="theirs", annotator="judge")
    assert [row.preference for row in rows] == [1.25, None, 2.0]
    write_annotations(path, rows)
    read = read_annotations(path)
    assert read.rows == tuple(rows)
    assert read.values == [0.25, None, 1.0]
    assert [row.case for row in read.rows] == cases
    with pytest.raises(InputError, match="3 cases and 1 verdicts"):
        annotated(cases, verdicts[:1], model="", reference="", annotator="")


def test_what_is_written_is_what_the_package_reads(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    cases = [Case(f"Say {n}.", "a", "b") for n in range(4)]
    verdicts = [Verdict(value) for value in (0.0, 1.0, 0.5, None)]
    write_annotations(path, annotated(cases, verdicts, model="m", reference="r", annotator="j"))
    # alpaca_eval 0.6 reads with pandas, finds a row by these four, and maps 1.5 to a tie (metrics/helpers.py).
    frame = pandas.read_json(path)
    assert {"instruction", "output_1", "output_2", "annotator", "preference"} <= set(frame.columns)
    assert (frame["preference"].dropna() - 1).mean() * 100 == 50.0
    assert frame["preference"].isna().sum() == 1


def test_import_into_a_cache(path: Path, tmp_path: Path) -> None:
    read = read_annotations(written(path, rows({"preference": 1.25}, {"preference": None, "price_per_example": None})))
    judge, store = annotation_judge("gpt"), tmp_path / "verdicts.sqlite"
    assert import_annotations(read, judge, store) == 2
    assert import_annotations(read, judge, store) == 0
    cases = [row.case for row in read.rows]
    said = cached(judge, store).decide([*cases, Case("another", "x")])
    assert [verdict.value for verdict in said] == [0.25, None, None]
    assert "gave no preference" in said[1].reason
    assert "cannot be asked" in said[2].reason
    key = verdict_key(judge, cases[0])
    entry = read_entries(store, [key])[key]
    assert (entry.payload, entry.cost) == ({"price_per_example": 0.5}, 0.5)


def test_nothing_is_an_average_of_nothing() -> None:
    assert (Annotations(()).values, Annotations(()).abstained) == ([], 0)
    assert Annotation("i", "a", "b", 2).value == 1.0


# n, verdicts of 1, of ½, null, all counted with json alone; and the leaderboard's win rate.
PUBLISHED = {
    "alpaca-7b/annotations_alpaca_eval_gpt4.json": (805, 205, 16, 0, 26.4596),
    "phi-2/annotations_alpaca_eval_gpt4.json": (805, 234, 22, 6, 30.6633),
    "text_davinci_001/annotations_alpaca_eval_gpt4.json": (805, 112, 20, 1, 15.1741),
    "llama-2-7b-chat-hf/annotations_alpaca_eval_gpt4.json": (805, 574, 1, 0, 71.3665),
    "alpaca-7b/annotations_weighted_alpaca_eval_gpt4_turbo.json": (805, 0, 3, 0, 2.5915),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_annotations(shared: Path, path: Path, tmp_path: Path, name: str) -> None:
    source = shared / "data" / "alpaca_eval" / name
    published = json.loads(source.read_text(encoding="utf-8"))
    reference = json.loads((shared / "data/alpaca_eval/text_davinci_003/model_outputs.json").read_text("utf-8"))
    read = read_annotations(source, instructions=[row["instruction"] for row in reference])
    decided = [value for value in read.values if value is not None]
    counts = (len(read.rows), read.values.count(1.0), read.values.count(0.5), read.abstained)
    assert (counts, read.absent) == (PUBLISHED[name][:4], ())
    assert round(100 * math.fsum(decided) / len(decided), 4) == PUBLISHED[name][4]
    write_annotations(path, read.rows)
    assert json.loads(path.read_text(encoding="utf-8")) == published
    judge, store = annotation_judge(read.rows[0].annotator), tmp_path / "v.sqlite"
    assert import_annotations(read, judge, store) == 805
    back = cached(judge, store, only_cached=True).decide([row.case for row in read.rows])
    assert [verdict.value for verdict in back] == read.values
