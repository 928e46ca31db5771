"""The report of a sweep from points made up by hand: what stands in the table, the CSV, the pictures and the page."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from triune.errors import InputError
from triune.report.files import write_report
from triune.report.sweep_folder import load_sweep
from triune.report.sweep_run import side_by_side
from triune.report.sweep_words import best_of


def row(model: str, score: str, value: float | None, better: str = "higher") -> dict[str, Any]:
    ends = {"low": None, "high": None} if value is None else {"low": value - 2, "high": value + 2}
    return {
        **{
            "model": model,
            "score": score,
            "value": value,
            "n": 0 if value is None else 50,
            "better": better,
            "unit": "%",
            "judge": "made up",
        },
        **ends,
    }


def sweep_of(folder: Path, points: Mapping[str, tuple[dict[str, Any], float | None]], *, unfinished: str = "") -> Path:
    """A sweep whose points have the fused model's score, and 10 for the base."""
    folder.mkdir()
    keys = list(next(iter(points.values()))[0])
    listed = [{"name": name, "values": values} for name, (values, _) in points.items()]
    (folder / "sweep.json").write_text(json.dumps({"keys": keys, "points": listed}))
    for name, (_, value) in points.items():
        (folder / name).mkdir()
        if name != unfinished:
            rows = [row("base", "mean", 10.0), row("fused", "mean", value), row("fused", "facts", 5.0)]
            (folder / name / "scores.json").write_text(json.dumps(rows))
    return folder


def one_key(folder: Path, **own: Any) -> Path:
    values = {"0": 40.0, "0.1": 60.0, "1": 50.0}
    points = {f"gating={text}": ({"align.gating": float(text)}, value) for text, value in values.items()}
    return sweep_of(folder, points, **own)


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


def test_the_points_of_one_key_stand_side_by_side(tmp_path: Path) -> None:
    folder = one_key(tmp_path / "swept")
    assert write_report(folder) == folder / "report.html"
    rows = [r for r in table(folder) if (r["model"], r["score"]) == ("fused", "mean")]
    assert [(r["align.gating"], float(r["value"]), float(r["low"]), r["n"]) for r in rows] == [
        ("0.0", 40.0, 38.0, "50"),
        ("0.1", 60.0, 58.0, "50"),
        ("1.0", 50.0, 48.0, "50"),
    ]
    text = (folder / "report.md").read_text()
    assert "**60.0** [58.0,\u00a062.0]" in text
    assert "the best is gating=0.1: 60.0\u00a0% \\[58.0,\u00a062.0\\]." in text
    assert "Other settings whose interval overlaps with it: 0 of 2." in text
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2  # the mean, and the facts beside it
    assert "mean of axes against gating, higher is better: 0.0 40.0 [38.0,\u00a042.0]; 0.1 60.0" in page
    assert 'href="gating%3D0.1/report.html"' in page


def test_two_keys_are_a_heat_map_and_three_have_none(tmp_path: Path) -> None:
    points = {f"{a}{b}": ({"align.gating": a, "fuse.top_k": b}, 10.0 * a + b) for a in (1, 2) for b in (1, 2, 3)}
    page = write_report(sweep_of(tmp_path / "two", points)).read_text()
    assert "by gating and top_k. 1, 1: 11.0 [9.0,\u00a013.0]; 1, 2: 12.0" in page
    three = {name: ({**values, "new_tokens": 1}, value) for name, (values, value) in points.items()}
    page = write_report(sweep_of(tmp_path / "three", three)).read_text()
    assert "<svg" not in page


def test_seeds_become_a_mean_with_students_interval(tmp_path: Path) -> None:
    values = {(0, 1): 40.0, (0, 2): 44.0, (1, 1): 50.0, (1, 2): 50.0}
    points = {f"{g},{s}": ({"align.gating": g, "seed": s}, value) for (g, s), value in values.items()}
    folder = sweep_of(tmp_path / "seeds", points)
    write_report(folder)
    first, second = [r for r in table(folder) if (r["model"], r["score"]) == ("fused", "mean")]
    # s/√n = 2, and t of one degree of freedom is 12.706.
    assert (float(first["value"]), float(first["low"])) == pytest.approx((42.0, 42.0 - 12.7062 * 2), abs=1e-3)
    assert (first["n"], first["seed 1"], first["seed 2"]) == ("2", "40.0", "44.0")
    assert (float(second["value"]), float(second["low"]), float(second["high"])) == (50.0, 50.0, 50.0)
    assert "Student" in (folder / "report.md").read_text()


def test_seeds_alone_are_one_setting(tmp_path: Path) -> None:
    points = {f"seed={s}": ({"seed": s}, value) for s, value in ((0, 40.0), (1, 44.0))}
    folder = sweep_of(tmp_path / "seeds", points)
    page = write_report(folder).read_text()
    assert "<svg" not in page
    assert "| all |" in (folder / "report.md").read_text()


def test_an_unfinished_point_is_named_and_left_out(tmp_path: Path) -> None:
    folder = one_key(tmp_path / "swept", unfinished="gating=1")
    write_report(folder)
    assert "Not in here, because unfinished: gating=1." in (folder / "report.md").read_text()
    assert len([r for r in table(folder) if r["score"] == "facts"]) == 2
    for name in ("gating=0", "gating=0.1"):
        (folder / name / "scores.json").unlink()
    with pytest.raises(InputError, match="has no finished point"):
        write_report(folder)


def test_what_was_not_measured_is_no_number_and_never_the_best(tmp_path: Path) -> None:
    points = {
        name: ({"align.gating": place}, value) for place, (name, value) in enumerate({"a": None, "b": 3.0}.items())
    }
    run = side_by_side(load_sweep(sweep_of(tmp_path / "swept", points)))
    assert math.isnan(run.found[0]["fused", "mean"].value)
    assert best_of(run, "mean") == (1,)


def test_a_score_of_which_less_is_better_has_its_least_for_the_best(tmp_path: Path) -> None:
    folder = one_key(tmp_path / "swept")
    for path in folder.glob("*/scores.json"):
        path.write_text(path.read_text().replace('"higher"', '"lower"'))
    assert best_of(side_by_side(load_sweep(folder)), "mean") == (0,)


def test_points_of_other_units_cannot_stand_in_one_table(tmp_path: Path) -> None:
    folder = one_key(tmp_path / "swept")
    path = folder / "gating=1" / "scores.json"
    path.write_text(path.read_text().replace('"%"', '"nats"'))
    with pytest.raises(InputError, match=r"has unit and direction \('nats', 'higher'\)"):
        write_report(folder)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/etc", ".."])
def test_a_point_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = one_key(tmp_path / "swept")
    grid = json.loads((folder / "sweep.json").read_text())
    grid["points"][0]["name"] = name
    (folder / "sweep.json").write_text(json.dumps(grid))
    with pytest.raises(InputError, match="a folder's name"):
        write_report(folder)


def test_what_comes_from_files_stays_text(tmp_path: Path) -> None:
    points = {
        "a<b": ({"title": "<script>alert(1)</script>"}, 1.0),
        "c": ({"title": "x"}, 2.0),
    }
    page = write_report(sweep_of(tmp_path / "swept", points)).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_settings_that_are_equally_good_are_all_the_best_and_no_setting_where_all_are(tmp_path: Path) -> None:
    values = {"0": 60.0, "0.1": 60.0, "1": 55.0}
    points = {f"gating={text}": ({"align.gating": float(text)}, value) for text, value in values.items()}
    folder = sweep_of(tmp_path / "swept", points)
    write_report(folder)
    assert best_of(run := side_by_side(load_sweep(folder)), "mean") == (0, 1)
    assert best_of(run, "facts") == ()
    text = (folder / "report.md").read_text()
    assert "the best is gating=0.0; gating=0.1: 60.0" in text
    assert text.count("**") == 4
    assert "overlaps with it: 0 of 1." in text
