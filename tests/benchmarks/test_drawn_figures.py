"""Figures of the documentation: valid pictures that name their numbers, whatever the results lack."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import draw_h3fusion
import draw_worlds
import drawing
import h3fusion_ablation as ablation
import pytest

from triune.metrics.across import across

SVG = "{http://www.w3.org/2000/svg}"
AXES = drawing.AXES


def made_result(n_seeds: int, shown: int | None = None) -> dict[str, Any]:
    """Every model of the tables, or the first few of each setting: mean 70 + the seed, over-refusal 10 + it."""
    names = {m for _, own in ablation.SWEEPS.values() for m in list(own.values())[:shown]}
    names |= {m for lines in ablation.SCARCE.values() for own in lines.values() for m in list(own.values())[:shown]}
    seeds = range(n_seeds)
    scores = {"mean": 70.0, **dict.fromkeys(AXES, 60.0), "over_refusal": 10.0, "facts": 90.0}
    points = {"x": [1.0, -2.0, 3.0], "y": [0.0, 1.0, 2.0]}
    fused = [name for name in names if name.startswith("fused")]
    return {
        "runs": [f"seed-{n}" for n in seeds],
        "cpu_seconds": 60.0,
        "sweeps": ablation.sweeps(dict.fromkeys(m for _, own in ablation.SWEEPS.values() for m in own.values()), 120),
        "scarce": ablation.SCARCE,
        "models": {m: {n: [value + seed for seed in seeds] for n, value in scores.items()} for m in names},
        "routing": {m: {a: {e: [0.8 if a == e else 0.1] * n_seeds for e in AXES} for a in AXES} for m in fused},
        "moved": {m: {a: [1.5] * n_seeds for a in AXES} for m in fused},
        "drift": {m: {a: [2.5] * n_seeds for a in AXES} for m in fused},
        "map": {
            "run": "seed-0",
            "method": "PCA",
            "rows": list(AXES),
            "models": dict.fromkeys(("base", "expert:helpful", "fused"), points),
        },
    }


def parsed(svg: str) -> tuple[str, str, str]:
    """Title, description and all text of a picture that stands alone."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    title, words = (root.findtext(f"{SVG}{name}") or "" for name in ("title", "desc"))
    assert "var(" not in svg
    assert not re.search(r'(?:href|src)="(?!#)', svg)
    return title, words, " ".join("".join(node.itertext()) for node in root.iter(f"{SVG}text"))


@pytest.fixture(scope="module")
def pictures() -> Mapping[str, str]:
    return draw_h3fusion.drawn(made_result(3))


def test_every_picture_is_there_and_has_words(pictures: Mapping[str, str]) -> None:
    assert set(pictures) == {"routing", "steps", "top_k", "gating", "drift", "map", "scarce"}
    for svg in pictures.values():
        title, words, text = parsed(svg)
        assert title in text
        assert len(words) > 100
        assert "nan" not in words


def test_pictures_name_their_numbers(pictures: Mapping[str, str]) -> None:
    # 70, 71, 72: mean 71, s = 1, t = 4.303 for three seeds, reach 2.48.
    assert "mean: 15 71.00 [68.52, 73.48], 25 71.00" in parsed(pictures["steps"])[1]
    assert "over-refusal ↓: 1 11.00 [8.52, 13.48]" in parsed(pictures["top_k"])[1]
    assert "helpful: 0 0.80 [0.80, 0.80], 0.001 0.80" in parsed(pictures["gating"])[1]
    assert "helpful expert on helpful rows 0.800 [0.800, 0.800]" in parsed(pictures["routing"])[1]
    assert "one LoRA, all 300 steps: 5 0.00 [0.00, 0.00]" in parsed(pictures["scarce"])[1]
    assert "harmless: 0 1.50 [1.50, 1.50], 0.0001 1.50" in parsed(pictures["drift"])[1]
    assert "fused: 1 helpful rows, 1 harmless rows, 1 honest rows, mean L2 distance" in parsed(pictures["map"])[1]
    for label in ("joint rows an axis", "mean score, %", "difference, points", "Experts and LoRA of rank 1"):
        assert label in parsed(pictures["scarce"])[2]


def test_the_command_draws_one_seed_and_missing_models_without_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.json").write_text(json.dumps(made_result(1, shown=2)), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["draw", str(tmp_path / "in.json"), str(tmp_path / "out")])
    draw_h3fusion.main()
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(draw_h3fusion.DRAWINGS)
    title, words, _ = parsed((tmp_path / "out" / "steps.svg").read_text(encoding="utf-8"))
    assert "mean: 15 70.00, 25 70.00, 30 n/a" in words
    assert "one seed, no intervals" in title


def worlds(n_seeds: int) -> dict[str, dict[str, list[float]]]:
    means = {"fused": 80.0, "mixture": 82.0, "average": 70.0, "sum": 50.0, "best expert": 40.0}
    return {m: {"mean": [v + s for s in range(n_seeds)], "latency": [1.5] * n_seeds} for m, v in means.items()}


def test_conflict_and_sizes_name_their_numbers() -> None:
    runs = ["seed-0", "seed-1", "seed-2"]
    told = {"runs": {"0": runs, "1": runs[:1]}, "cpu_seconds": None, "sharing": {"0": worlds(3), "1": worlds(1)}}
    _, words, text = parsed(draw_worlds.draw_conflict(told))
    assert "fused: 0 81.00 [78.52, 83.48], 1 80.00" in words
    assert "one LoRA on the mixture: 0 -2.00 [-2.00, -2.00], 1 -2.00" in words
    assert "TIES" not in words
    assert "shared part of the templates" in text
    size = {"parameters": 700_000, "cpu_seconds": 360.0, "runs": runs, "models": worlds(3)}
    large = {**size, "parameters": 9_800_000, "cpu_seconds": None}
    _, words, text = parsed(draw_worlds.draw_sizes({"cpu_seconds": None, "sizes": {"small": size, "large": large}}))
    assert "processor time: small\n0.7 M 2.00, large\n9.8 M n/a" in words
    assert "fused − best expert: small\n0.7 M 40.00" in words
    assert "processor minutes" in text


def test_a_result_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"runs": {"0": ["seed-0"]}, "cpu_seconds": 1.0, "sharing": {"0": worlds(1)}}
    (tmp_path / "conflict.json").write_text(json.dumps(told), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["draw", str(tmp_path), str(tmp_path / "out")])
    draw_worlds.main()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["conflict.svg"]
    assert "sizes.svg is not drawn" in capsys.readouterr().out


def test_numbers_in_words() -> None:
    assert drawing.number(across([1.0, 2.0, 3.0]), 2) == "2.00 [-0.48, 4.48]"
    assert drawing.number(across([1.0]), 2) == "1.00"
    assert drawing.number(across([]), 2) == "n/a"
    assert drawing.number(drawing.difference({"a": {"mean": [3.0]}, "b": {"mean": [1.0]}}, "a", "b")) == "2.0"
    assert drawing.difference({"a": {"mean": [3.0]}}, "a", "b").n == 0
