"""Values by seed, what runs cost, and the form of result files, by hand."""

import json
from pathlib import Path

import run_numbers
from made_runs import write_json, write_run


def test_gathered_lines_the_seeds_up() -> None:
    found = run_numbers.gathered([{"a": {"x": 1.0}}, {"a": {"x": 2.0, "y": 3.0}, "b": {"x": 4.0}}, {}])
    assert found == {"a": {"x": [1.0, 2.0, None], "y": [None, 3.0, None]}, "b": {"x": [None, 4.0, None]}}


def test_gathered_rounds_and_of_nothing_is_nothing() -> None:
    assert run_numbers.gathered([{"a": 1 / 3}]) == {"a": [0.33333]}
    assert run_numbers.gathered([]) == []


def test_cpu_seconds_are_of_all_steps(tmp_path: Path) -> None:
    for name, spent in (
        ("one/base", 1.5),
        ("one/variants/a/fused", 2.25),
        ("two/base", 10.0),
        ("one/.superseded/1", 99.0),
    ):
        write_json(tmp_path / name / "record.json", {"cpu_seconds": spent})
    assert run_numbers.cpu_seconds([tmp_path / "one", tmp_path / "two"]) == 13.8
    assert run_numbers.cpu_seconds([tmp_path / "one"]) == 3.8


def test_cpu_seconds_are_unknown_where_a_step_did_not_say(tmp_path: Path) -> None:
    write_json(tmp_path / "base" / "record.json", {"cpu_seconds": 1.0})
    write_json(tmp_path / "fused" / "record.json", {"seconds": 3.0})
    assert run_numbers.cpu_seconds([tmp_path]) is None
    assert run_numbers.cpu_seconds([]) is None


def test_the_best_expert_is_each_seeds_own() -> None:
    table = {
        "base": {"mean": [99.0, 99.0, 99.0]},
        "expert:a": {"mean": [10.0, 40.0, None]},
        "expert:b": {"mean": [30.0, 20.0, None], "facts": [1.0, 1.0, 1.0]},
    }
    assert run_numbers.best_expert(table) == {"best expert": {"mean": [30.0, 40.0, None]}}
    assert run_numbers.best_expert({"base": {"mean": [1.0]}}) == {}


def test_folders_by_their_parents(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, {}) for name in ("b/seed-1", "a/seed-0", "b/seed-0")]
    assert run_numbers.by_parent(folders) == {"b": [folders[0], folders[2]], "a": [folders[1]]}


def test_a_result_file_says_what_it_was_given_with_lists_on_a_line(tmp_path: Path) -> None:
    result = {"runs": ["seed-0", "seed-1"], "γ": {"a": [1.5, None], "b": []}, "deep": [{"x": [1, 2]}]}
    run_numbers.write(tmp_path / "new" / "out.json", result)
    text = (tmp_path / "new" / "out.json").read_text(encoding="utf-8")
    assert json.loads(text) == result
    assert '"a": [1.5, null]' in text
    assert '"runs": ["seed-0", "seed-1"]' in text
