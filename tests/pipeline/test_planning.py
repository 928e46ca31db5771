"""What a recipe's run consists of: whose experts a variant has, where the rows' models are, what is refused first."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from triune.data.preparing import prepare
from triune.errors import InputError
from triune.pipeline.planning import Run, check_settings, models, plan
from triune.pipeline.variants import variant_experts
from triune.progress import SILENT
from triune.recipe import Recipe

OUT = Path("run")


def recipe(**changes: Any) -> Recipe:
    axes: dict[str, Any] = {axis: {"train": {"source": "miniature"}} for axis in ("helpful", "harmless")}
    return Recipe.model_validate(
        {"base": {"miniature": {}}, "axes": axes, "evaluate": [{"kind": "miniature"}], **changes}
    )


def test_variants_that_train_alike_share_their_experts() -> None:
    variants: dict[str, Any] = {
        "wide": {"fuse.top_k": 1},
        "long": {"train.fit.steps": 9},
        "long-1": {"fuse.top_k": 1, "train.fit.steps": 9},
        "same": {"train.lora.rank": 8},  # as the recipe has it
        "longer": {"train.fit.steps": 10},
    }
    found = variant_experts(recipe(variants=variants), OUT)
    owners = {"wide": OUT, "long": OUT / "variants/long", "long-1": OUT / "variants/long", "same": OUT}
    owners["longer"] = OUT / "variants/longer"
    assert found == {
        name: {axis: place / "experts" / axis for axis in ("helpful", "harmless")} for name, place in owners.items()
    }


def test_an_expert_made_elsewhere_is_every_variants() -> None:
    axes = {"helpful": {"train": {"source": "a"}, "expert": "mine"}, "harmless": {"train": {"source": "a"}}}
    found = variant_experts(recipe(axes=axes, variants={"long": {"train.fit.steps": 9}}), OUT)
    assert found == {"long": {"helpful": Path("mine"), "harmless": OUT / "variants/long/experts/harmless"}}


def test_the_sequential_rows_model_is_the_last_stage() -> None:
    assert models(recipe(compare=["base", "sequential"]), OUT) == {
        "base": None,
        "sequential": OUT / "sequential" / "2-harmless",
    }


def test_variants_and_mixtures_of_fewer_joint_rows_have_the_same_ones() -> None:
    axes = {axis: {"train": {"source": "miniature", "limit": 8}} for axis in ("helpful", "harmless")}
    few: dict[str, Any] = {
        "variants": {"few": {"joint": 2}},
        "mixtures": {"few": {"joint": 2, "mixture.fit.steps": 7}},
    }
    chosen = recipe(axes=axes, **few, compare=["mixture", "mixtures", "fused", "variants"])
    steps = plan(Run(chosen, OUT, prepare(chosen), SILENT))

    def arguments(name: str) -> tuple[Any, ...]:
        return cast("partial[Path]", steps[name]).args

    _, fewer, place, settings = arguments("mixtures/few")
    assert (place, settings.fit.steps) == (OUT / "mixtures/few", 7)
    rows = arguments("mixture")[1]
    assert len(rows) == 16
    assert sorted(row.axis for row in fewer) == ["harmless"] * 2 + ["helpful"] * 2
    assert set(fewer) < set(rows)
    assert arguments("variants/few/start")[4] == arguments("variants/few/fused")[2] == fewer
    assert arguments("fused")[2] == rows
    found = models(chosen, OUT)
    assert found["mixture:few"] == OUT / "mixtures/few"
    assert found["fused:few"] == OUT / "variants/few/fused"


def test_the_steps_of_variants_and_of_one_lora_over_the_axes() -> None:
    axes: dict[str, Any] = {axis: {"train": {"source": "miniature", "limit": 8}} for axis in ("helpful", "harmless")}
    axes["harmless"]["expert"] = "run/experts/harmless"  # as any folder: made elsewhere
    variants: dict[str, Any] = {"long": {"train.fit.steps": 9}, "long-1": {"fuse.top_k": 1, "train.fit.steps": 9}}
    train = {"fit": {"steps": 3}, "injection": {}}
    chosen = recipe(axes=axes, variants=variants, train=train, compare=["sequential", "variants"])
    steps = plan(Run(chosen, OUT, prepare(chosen), SILENT))
    made = [name for name in steps if not name.startswith(("samples/", "costs/"))]
    assert made == [
        *("data", "base", "experts/helpful", "sequential/1-helpful", "sequential/2-harmless"),
        *("variants/long/experts/helpful", "variants/long/start", "variants/long/fused"),
        *("variants/long-1/start", "variants/long-1/fused", "scores"),
    ]

    def arguments(name: str) -> tuple[Any, ...]:
        return cast("partial[Path]", steps[name]).args

    for name, previous in {"1-helpful": None, "2-harmless": OUT / "sequential" / "1-helpful"}.items():
        _, _, place, settings, before = arguments(f"sequential/{name}")
        assert (place, before) == (OUT / "sequential" / name, previous)
        assert (settings.fit.steps, settings.injection) == (3, None)  # as train, but not injected
    assert arguments("variants/long/experts/helpful")[3].fit.steps == 9
    experts = {"helpful": OUT / "variants/long/experts/helpful", "harmless": Path("run/experts/harmless")}
    assert arguments("variants/long/start")[1] == arguments("variants/long-1/start")[1] == experts


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"sequential": {"lora": {"targets": ["w1"]}}}, "sequential.lora.targets names"),
        (
            {"fuse": {"shared": "base"}, "variants": {"a": {"train.lora.targets": ["w1"]}}},
            "variants.a: train.lora.targets names",
        ),
        ({"variants": {"a": {"align.attention.targets": ["w1"]}}}, "variants.a: align.attention.targets names"),
    ],
)
def test_strange_targets_are_refused_with_their_place(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError, match=rf"^{place} \['w1'\]; the layers of these models are gate_proj"):
        check_settings(recipe(**changes))
