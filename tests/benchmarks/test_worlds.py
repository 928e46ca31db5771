"""Runs of several worlds and sizes put together: order, names, hand-worked means and costs."""

import json
from pathlib import Path

import conflict
import pytest
import sizes
from made_runs import write_json, write_run

from triune.errors import InputError

EXPERTS = {"expert:helpful": {"mean": 40.0}, "expert:honest": {"mean": 30.0}}


def scores(fused: float, other: float) -> dict[str, dict[str, float]]:
    return {"fused": {"mean": fused, "over_refusal": 5.0}, "mixture": {"mean": other}, "average": {"mean": 1.0}}


def test_conflict_by_shared_part(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"sharing-{part}" / f"seed-{n}", scores(80.0 + n, 70.0) | EXPERTS)
        for part in ("1.0", "0", "0.25")
        for n in (0, 1)
    ]
    conflict.collect_into(tmp_path / "out.json", folders[:-1])
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(result["sharing"]) == ["0", "0.25", "1"]
    assert result["runs"] == {"0": ["seed-0", "seed-1"], "0.25": ["seed-0"], "1": ["seed-0", "seed-1"]}
    assert result["sharing"]["0"]["fused"]["mean"] == [80.0, 81.0]
    assert result["sharing"]["0.25"]["fused"]["mean"] == [80.0]
    assert result["sharing"]["1"]["best expert"]["mean"] == [40.0, 40.0]
    assert result["cpu_seconds"] == 300.0
    told = conflict.shown(result)
    # 10 and 11: mean 10.5, s = 0.707, t = 12.71 for two seeds, reach 6.4.
    assert "| fused − one LoRA on the mixture | – | – | – | 10.5 (4.1 to 16.9) * | – | – |" in told
    assert "### Sharing 0.25 (1 seeds)" in told
    assert "| sharing | best expert (hindsight) | average | one LoRA on the mixture | fused |" in told
    assert "| 0 | 40.0 (40.0 to 40.0) | 1.0 (1.0 to 1.0) | 70.0 (70.0 to 70.0) | 80.5 (74.1 to 86.9) |" in told
    assert "| 0.25 | 40.0 | 1.0 | 70.0 | 80.0 |" in told
    assert "| sharing | fused − one LoRA on the mixture | fused − average |" in told
    assert "| 0 | 10.5 (4.1 to 16.9) * | 79.5 (73.1 to 85.9) * |" in told


@pytest.mark.parametrize("name", ["seed-0", "sharing-", "sharing-half", "sharing-1.5", "sharing--0.1", "0.5"])
def test_a_folder_must_say_the_shared_part(name: str) -> None:
    with pytest.raises(InputError, match=r"wanted sharing-<s>"):
        conflict.sharing_of(name)


def test_sizes_rise_and_cost(tmp_path: Path) -> None:
    folders = []
    for name, parameters, cpu in (("large", 9000, 240.0), ("small", 700, None)):
        for n in (0, 1):
            folder = write_run(tmp_path / name / f"seed-{n}", scores(80.0 + n, 70.0) | EXPERTS, cpu)
            costs = {"base": {"parameters_total": parameters + n, "parameters_active": 1, "latency_ratio": None}}
            fused = {"fused": {"parameters_total": 1, "parameters_active": 1, "latency_ratio": {"value": 1.5}}}
            write_json(folder / "models.json", costs | fused)
            folders.append(folder)
    sizes.collect_into(tmp_path / "out.json", folders)
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(result["sizes"]) == ["small", "large"]
    assert result["sizes"]["large"]["parameters"] == 9000
    assert result["sizes"]["large"]["cpu_seconds"] == 480.0
    assert result["sizes"]["small"]["cpu_seconds"] is None
    assert result["cpu_seconds"] is None
    told = sizes.shown(result)
    assert "| small | 700 | 2 | – |" in told
    assert "| large | 9,000 | 2 | 4.0 |" in told
    assert "| fused − best expert (hindsight) | – | – | – | 40.5 (34.1 to 46.9) * | – | – |" in told
    assert "| fused | 1.50 (1.50 to 1.50) |" in told
