"""Subtracting an expert on a small miniature world takes away what it was trained for, merged and fused."""

import json
from pathlib import Path

import pytest

from triune import pipeline
from triune.baseline_settings import TaskArithmetic
from triune.pipeline import Context, evaluating, run
from triune.pipeline.running import demo_recipe
from triune.recipe import Fuse, MiniatureTests, Recipe

AXES = ("helpful", "harmless")


def small() -> Recipe:
    """The quick demo's base and experts alone, with more test prompts."""
    few = {"compare": ("base", "experts"), "scarce": None, "evaluate": (MiniatureTests(kind="miniature", limit=100),)}
    return demo_recipe(quick=True).model_copy(update=few)


@pytest.mark.slow
def test_a_subtracted_expert_does_less_of_what_it_was_trained_for(tmp_path: Path) -> None:
    recipe = small()
    done = run(recipe, tmp_path / "run")
    context = Context(recipe.base.model_copy(update={"path": str(done / "base")}), recipe.seed)
    experts = {axis: done / "experts" / axis for axis in AXES}
    models: dict[str, Path | None] = {"base": None}
    for name, weight in (("plus", 1.0), ("minus", -1.0)):
        how = TaskArithmetic(scale=1.0, weights={"harmless": weight})
        only = {"harmless": experts["harmless"]}
        models[name] = pipeline.merge(context, only, tmp_path / name, "task_arithmetic", how)
    for name, weights in (("fused", {}), *((f"less-{axis}", {axis: -1.0}) for axis in AXES)):
        settings = Fuse(router_init="zeros", weights=weights, allow_negated=True)
        models[name] = pipeline.fuse(context, experts, tmp_path / name, settings)
    exam = evaluating.Exam(done / "data", recipe.batch_size, recipe.new_tokens)
    rows = json.loads((evaluating.evaluate(context, models, exam, tmp_path) / "scores.json").read_text())
    refused, solved = (
        {row["model"]: row["value"] for row in rows if row["score"] == score} for score in ("harmless", "helpful")
    )
    assert refused["minus"] < refused["base"] < refused["plus"]
    assert refused["less-harmless"] < refused["base"] < refused["fused"]
    assert solved["less-helpful"] < solved["fused"]
