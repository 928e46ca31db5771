"""The numbers of H3Fusion's ablation: distances against dense matrices, routing by hand, seeds that lack a model."""

import json
import math
from pathlib import Path

import h3fusion_ablation as ablation
import pytest
import torch
import yaml
from ablation import scores_of, table_of
from made_runs import AXES, LAYERS, add_inside, random_factors, write_fused, write_json, write_run
from torch import Tensor
from transformers import LlamaConfig

from triune.fusion.building import layer_factors
from triune.fusion.configuration import TriuneConfig
from triune.fusion.modeling import TriuneForCausalLM

MODELS = ("base", *(f"expert:{axis}" for axis in AXES), "fused", "fused:gating-0", "fused:helpful-1e-2")


def made_run(folder: Path, mean: float, models: tuple[str, ...] = MODELS) -> Path:
    scores = {model: {"mean": mean + place, "helpful": mean} for place, model in enumerate(models)}
    add_inside(write_run(folder, scores), models)
    for place in (
        folder,
        *(folder / "variants" / m.removeprefix("fused:") for m in models if ":" in m and "fused" in m),
    ):
        write_fused(place / "start", random_factors(0))
        write_fused(place / "fused", random_factors(1))
    return folder


def dense(factors: dict[str, Tensor], layer: int, matrix: str, rows: slice) -> Tensor:
    a, b = (factors[f"model.layers.{layer}.mlp.{matrix}_{side}"][rows].double() for side in "ab")
    return b.T @ a


def test_moved_is_the_norm_of_the_dense_change(tmp_path: Path) -> None:
    start, now = random_factors(0), random_factors(1)
    write_fused(tmp_path / "start", start)
    write_fused(tmp_path / "fused", now)
    found = ablation.moved(tmp_path)["fused"]
    for expert, rows in zip(AXES, (slice(0, 1), slice(1, 3), slice(3, 4)), strict=True):
        norms = []
        for layer in range(LAYERS):
            squares = 0.0
            for matrix in ("gate", "up", "down"):
                change = dense(now, layer, matrix, rows) - dense(start, layer, matrix, rows)
                squares += sum(float(entry) ** 2 for entry in change.flatten())
            norms.append(math.sqrt(squares))
        assert found[expert] == pytest.approx(sum(norms) / LAYERS, rel=1e-12)


def test_moved_by_hand(tmp_path: Path) -> None:
    start = {name: torch.zeros_like(values) for name, values in random_factors(0).items()}
    now = {name: values.clone() for name, values in start.items()}
    # The first expert's row 0: gate changes by one entry of 3, up by one of 4, in the first of two layers.
    for matrix, size in (("gate", 3.0), ("up", 4.0)):
        now[f"model.layers.0.mlp.{matrix}_a"][0, 0] = 1.0
        now[f"model.layers.0.mlp.{matrix}_b"][0, 0] = size
    write_fused(tmp_path / "start", start)
    write_fused(tmp_path / "fused", now)
    assert ablation.moved(tmp_path)["fused"] == {"helpful": 2.5, "harmless": 0.0, "honest": 0.0}


def test_moved_is_zero_of_routers_alone(tmp_path: Path) -> None:
    place = tmp_path / "variants" / "routers"
    for folder in (tmp_path, place):
        write_fused(folder / "start", random_factors(0))
    write_fused(tmp_path / "fused", random_factors(1))
    write_fused(place / "fused", random_factors(0))
    found = ablation.moved(tmp_path)
    assert list(found) == ["fused", "fused:routers"]
    assert set(found["fused:routers"].values()) == {0.0}
    assert all(value > 0 for value in found["fused"].values())


def test_increments_are_those_of_the_model(tmp_path: Path) -> None:
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    text = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    ranks = {"gate": [1, 2], "up": [2, 0], "down": [1, 1]}
    model = TriuneForCausalLM(TriuneConfig(text_config=text.to_dict(), expert_names=["a", "b"], expert_ranks=ranks))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    model.save_pretrained(tmp_path)
    found = ablation.increments(tmp_path)
    for index, expert in enumerate("ab"):
        for ours, theirs in zip(found[expert], layer_factors(model, index), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one.b.dtype == torch.float64
                assert torch.equal(one.b @ one.a, other.b.double() @ other.a.double())


def test_routing_is_the_mean_over_layers(tmp_path: Path) -> None:
    add_inside(tmp_path, ("base", "fused", "fused:gating-0"))
    found = ablation.routing(tmp_path, ["base", "fused", "fused:gating-0", "fused:absent"])
    assert list(found) == ["fused", "fused:gating-0"]
    assert found["fused"]["honest"] == pytest.approx({"helpful": 0.15, "harmless": 0.15, "honest": 0.7})
    shares = {"one": {"a": [0.2, None]}, "two": {"a": [0.6, 0.5]}}
    assert ablation.overall(shares, "a") == [pytest.approx(0.4), None]


def test_the_file_holds_every_seed_and_says_what_is_missing(tmp_path: Path) -> None:
    folders = [made_run(tmp_path / "seed-0", 50.0), made_run(tmp_path / "seed-1", 60.0, MODELS[:-1])]
    ablation.collect_into(tmp_path / "out.json", folders)
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["runs"] == ["seed-0", "seed-1"]
    assert result["cpu_seconds"] == 120.0
    assert result["models"]["fused"]["mean"] == [54.0, 64.0]
    assert result["models"]["fused:helpful-1e-2"]["mean"] == [56.0, None]
    assert result["models"]["best expert"]["mean"] == [53.0, 63.0]
    assert result["routing"]["fused"]["helpful"] == {
        "helpful": [0.7, 0.7],
        "harmless": [0.15] * 2,
        "honest": [0.15] * 2,
    }
    assert result["drift"]["fused"] == {"helpful": [2.0, 2.0], "harmless": [3.0, 3.0], "honest": [4.0, 4.0]}
    assert result["moved"]["fused:helpful-1e-2"]["honest"][1] is None
    assert result["map"]["method"] == "PCA"
    assert result["map"]["rows"] == [axis for axis in AXES for _ in range(2)]
    assert {len(own["x"]) for own in result["map"]["models"].values()} == {6}
    assert set(result["map"]["models"]) == {"base", *(f"expert:{axis}" for axis in AXES), "fused"}


def test_tables_show_means_and_paired_differences(tmp_path: Path) -> None:
    folders = [made_run(tmp_path / f"seed-{n}", mean) for n, mean in enumerate((50.0, 60.0, 70.0))]
    ablation.collect_into(tmp_path / "out.json", folders)
    told = ablation.tables(json.loads((tmp_path / "out.json").read_text(encoding="utf-8")))
    # 54, 64, 74: mean 64, s = 10, t = 4.303 for three seeds, reach 24.8.
    assert "| fused | 60.0 (35.2 to 84.8) | – | – | 64.0 (39.2 to 88.8) |" in told
    assert "| fused − best expert (hindsight) | – | – | – | 1.0 (1.0 to 1.0) |" in told
    assert "| λ 0 − λ 0.01 | 0.0 (0.0 to 0.0) |" in told
    assert "Seeds: seed-0, seed-1, seed-2; processor time 180.0 s." in told


def test_every_model_of_the_recipes_is_in_a_table() -> None:
    made = set()
    for name in ("h3fusion-ablation", "h3fusion-ablation-real-tiny"):
        path = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        made |= {f"fused:{name}" for name in recipe["variants"]} | {f"mixture:{name}" for name in recipe["mixtures"]}
    shown = {model for _, own in ablation.SWEEPS.values() for model in own.values()}
    shown |= {model for lines in ablation.SCARCE.values() for own in lines.values() for model in own.values()}
    assert shown == made | {"fused", "mixture"}


def test_a_sweep_names_the_recipe_s_steps_and_what_was_run(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "seed-0", 50.0, (*MODELS, "fused:steps-25"))
    found = ablation.sweeps(ablation.collect([folder], {}), ablation.steps_of(folder))
    assert found["steps"] == {"symbol": "steps", "models": {"25": "fused:steps-25", "120": "fused"}}
    assert found["top_k"]["models"] == {"2": "fused"}


def test_one_run_s_differences_have_intervals_over_prompts(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "seed-0", 50.0)
    row = {"score": "nll:helpful", "model": "base", "other": "fused", "value": 1.5, "low": 1.0, "high": 2.25}
    rows = [row, {**row, "model": "fused:gating-0"}, {**row, "score": "mean"}]
    write_json(folder / "comparisons.json", {"reference": "fused", "rows": rows})
    table = {"base": {"nll:helpful": [2.0]}}
    found = ablation.over_prompts(folder, table)
    assert found == {"run": "seed-0", "differences": {"base": {"nll:helpful": [-1.5, -2.25, -1.0]}}}
    assert ablation._prompts(found, ["nll:helpful"])[1].endswith("| base | -1.500 (-2.250 to -1.000) |")
    assert ablation.over_prompts(folder, {"base": {"mean": [2.0]}}) == {}


def test_likelihoods_are_shown_where_nothing_is_generated(tmp_path: Path) -> None:
    table = {"base": {"nll:helpful": [2.0, 4.0], "mc1": [0.5, 0.5], "latency": [1.0, 1.0]}}
    assert scores_of(table) == (["nll:helpful", "mc1"], 3)
    assert table_of(table, {"base": "base"}, *scores_of(table), {}).splitlines()[-1] == (
        "| base | 3.000 (0.000 to 15.706) | 0.500 (0.500 to 0.500) |"
    )
    assert "| base | 2.000 |" in table_of({"base": {"nll:helpful": [2.0]}}, {"base": "base"}, ["nll:helpful"], 3, {})
