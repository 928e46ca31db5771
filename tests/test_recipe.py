"""What a recipe may say, and what it says where it says nothing."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from triune.recipe import (
    MODELS,
    Align,
    Base,
    Calibrate,
    Fit,
    Fuse,
    Importance,
    Injection,
    Lora,
    Miniature,
    Recipe,
    Slice,
    Train,
)

SMALL: dict[str, Any] = {
    "base": {"path": "models/base"},
    "axes": {"helpful": {"train": {"source": "a.jsonl"}}, "harmless": {"train": {"source": "b.jsonl"}}},
    "evaluate": [{"kind": "nll"}],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**deepcopy(SMALL), **changes}


def judged(*benchmarks: dict[str, Any], judges: dict[str, Any] | None = None) -> dict[str, Any]:
    rule = {"r": {"kind": "rule", "rule": "refusal"}}
    whole = [{"kind": "generative", "benchmark": "xstest", "data": {"source": "x"}, **own} for own in benchmarks]
    return changed(evaluate=whole, judges=rule if judges is None else judges)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (judged({"judge": "gone"}), r"xstest asks the judges \['gone'\]; judges has \['r'\]: add them there"),
        (judged({"judge": {"refuses": "gone"}}, judges={}), "judges has none: add them there"),
        (changed(judges={"r": {"kind": "rule", "rule": "refusal"}}), r"judges has \['r'\], which no benchmark asks"),
        (judged({"judge": "r"}, {"judge": "r"}), r"evaluate has \['xstest'\] more than once; give all but one"),
        (judged({"judge": "r", "name": "a/b"}), r"evaluate names \['a/b'\]; a name is letters"),
        (judged({"judge": "r", "name": ""}), "at least 1 character"),
        (judged({"judge": "r", "benchmark": "mmlu"}), "'alpaca_eval', 'beavertails'"),
        (judged({"judge": "r", "limit": 0}), "greater than or equal to 1"),
        (judged({"judge": "r"}, judges={"r": {"kind": "rule", "rule": "guess"}}), "'exact', 'number'"),
    ],
)
def test_benchmarks_and_judges_that_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(content)


def test_two_benchmarks_of_one_kind_and_a_judge_that_both_ask() -> None:
    recipe = Recipe.model_validate(judged({"judge": "r"}, {"judge": {"refuses": "r"}, "name": "again"}))
    assert [getattr(own, "called", "") for own in recipe.evaluate] == ["xstest", "again"]


def test_defaults_are_those_of_the_h3fusion_paper() -> None:
    recipe = Recipe.model_validate(SMALL)
    lora, fit = recipe.train.lora, recipe.train.fit
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (8, 4.0, 0.1, ("gate_proj", "up_proj", "down_proj"))
    assert (fit.learning_rate, fit.epochs, fit.steps) == (5e-4, 3.0, None)
    assert (recipe.fuse.top_k, recipe.align.gating, recipe.base.max_length) == (2, 0.01, 300)
    assert recipe.compare == MODELS
    assert recipe.scarce is None


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe.model_validate(SMALL).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "content", "message"),
    [
        (Lora, {"rank": 0}, "greater than or equal to 1"),
        (Lora, {"rank": 1.5}, "valid integer"),
        (Lora, {"alpha": 0}, "greater than 0"),
        (Lora, {"alpha": float("inf")}, "finite"),
        (Lora, {"dropout": 1}, "less than 1"),
        (Lora, {"dropout": True}, "a number is wanted, not yes or no"),
        (Lora, {"ranks": 4}, "Extra inputs are not permitted"),
        (Fit, {"learning_rate": float("nan")}, "greater than 0|finite"),
        (Fit, {"steps": True}, "a number is wanted, not yes or no"),
        (Fit, {"warmup_steps": -1}, "greater than or equal to 0"),
        (Fit, {"schedule": "step"}, "'linear', 'cosine' or 'constant'"),
        (Fuse, {"top_k": 0}, "greater than or equal to 1"),
        (Fuse, {"temperature": 0}, "greater than 0"),
        (Fuse, {"router_init": "ones"}, "'means', 'logistic', 'zeros' or 'random'"),
        (Align, {"gating": -0.1}, "greater than or equal to 0"),
        (Align, {"drift": {"helpful": -1e-9}}, "greater than or equal to 0"),
        (Align, {"representation": float("inf")}, "finite"),
        (Align, {"trainable": "all"}, "'routers', 'routers.experts' or 'routers.experts.attention'"),
        (Slice, {}, "Field required"),
        (Slice, {"source": "a", "start": 0.5, "stop": 0.5}, r"start 0.5 is not below stop 0.5, so the slice is empty"),
        (Slice, {"source": "a", "stop": 1.1}, "less than or equal to 1"),
        (Base, {}, "give either path .* or miniature, not both and not neither"),
        (Base, {"path": "a", "miniature": {}}, "not both and not neither"),
        (Base, {"path": ""}, "at least 1 character"),
        (Base, {"path": "a", "max_length": 7}, "greater than or equal to 8"),
        (Miniature, {"hidden_size": 100, "heads": 4}, "hidden_size is 100; it must be a multiple of 2 x heads = 8"),
        (Recipe, changed(axes={"helpful": SMALL["axes"]["helpful"]}), "axes has 1; a fusion needs at least two"),
        (Recipe, changed(axes={}), "axes has 0; a fusion needs at least two"),
        (Recipe, changed(evaluate=[]), "evaluate is missing or empty, so that nothing would be measured; add"),
        (Recipe, changed(evaluate=[{"kind": "vibes"}]), "'nll', 'preference', 'multiple_choice', 'miniature'"),
        (Recipe, changed(compare=[]), "at least 1 item"),
        (Recipe, changed(compare=["best"]), "'base', 'experts', 'mixture'"),
        (Recipe, changed(fuse={"top_k": 3}), "fuse.top_k is 3, but there are only 2 experts; lower it"),
        (
            Recipe,
            changed(fuse={"shared": "honest"}),
            "'honest'; allowed: refuse, base, average, ties, helpful, harmless",
        ),
        (
            Recipe,
            changed(align={"drift": {"honest": 1}}),
            r"drift names \['honest'\], which are not axes; axes: .*ha",
        ),
        (Recipe, changed(fuse={"weights": {"honest": 2}}), r"weights names \['honest'\], which are no experts; exp"),
        (Recipe, changed(fuse={"weights": {"helpful": 0}}), r"gives \['helpful'\] the weight 0"),
        (Recipe, changed(fuse={"weights": {"helpful": -1}}), r"\['helpful'\] are below 0, .*set fuse.allow_negated"),
        (Fuse, {"weights": {"helpful": float("nan")}}, "finite"),
        (Fuse, {"importance": {"temperature": 0}}, "greater than 0"),
        (Fuse, {"importance": {"similarity": "angle"}}, "'cosine' or 'inner'"),
        (
            Recipe,
            changed(fuse={"importance": {"reference": "no/where"}}),
            "reference is 'no/where', which is no folder; allowed: mean, helpful, harmless, or the folder of",
        ),
        (Recipe, changed(align={"prior_shares": {"honest": 1}}), r"align.prior_shares names \['honest'\], which are"),
        (
            Recipe,
            changed(scarce={"align": {"prior_shares": {"kind": 1}}}),
            r"scarce.align.prior_shares names \['kind'\]",
        ),
        (Recipe, changed(align={"top_k": 3}), "align.top_k is 3, but there are only 2 experts; lower it"),
        (Recipe, changed(scarce={"align": {"top_k": 3}}), "scarce.align.top_k is 3"),
        (Recipe, changed(variants={"a": {"fuse.weights": {"b": 2}}}), r"variants.a: fuse.weights names \['b'\]"),
        (Recipe, changed(variants={"a": {"align.top_k": 3}}), "variants.a: align.top_k is 3, but there are only 2"),
        (
            Recipe,
            changed(variants={"a": {"fuse.importance": {"reference": "x/y"}}}),
            "variants.a: fuse.importance.reference is 'x/y', which is no folder",
        ),
        (Align, {"top_k": 0}, "greater than or equal to 1"),
        (Align, {"top_k": "most"}, "'all'"),
        (Align, {"running_decay": 1}, "less than 1"),
        (Calibrate, {"fit": "platt"}, "'temperature', 'layer_temperature', 'vector' or 'layer_vector'"),
        (Calibrate, {"least": 1}, "greater than or equal to 2"),
        (Recipe, changed(compare=["fused", "calibrated"]), r"missing of \['helpful', 'harmless'\]"),
        (Recipe, changed(compare=["fused", "variants"]), "asks for variants, but variants is empty; name some"),
        (Recipe, changed(variants={"a/b": {}}), "variants names 'a/b'; a name is letters"),
        (
            Recipe,
            changed(variants={"a": {"seed": 1}}),
            "variants.a sets seed; keys begin with joint or train. or fuse. or al",
        ),
        (Recipe, changed(variants={"a": {"joint": 0}}), "variants.a: joint: .*got 0"),
        (Recipe, changed(compare=["mixtures"]), "asks for mixtures, but mixtures is empty; name some"),
        (Recipe, changed(mixtures={"a/b": {}}), "mixtures names 'a/b'; a name is letters"),
        (
            Recipe,
            changed(mixtures={"a": {"train.fit.steps": 1}}),
            "mixtures.a sets train.fit.steps; keys begin with jo",
        ),
        (Recipe, changed(mixtures={"a": {"mixture.fit.steps": 0}}), "mixtures.a: mixture.fit.steps: .*got 0"),
        (Recipe, changed(variants={"a": {"fuse.top": 1}}), "variants.a: fuse.top: Extra inputs are not permitted"),
        (Recipe, changed(variants={"a": {"fuse.top_k.x": 1}}), "'fuse.top_k.x' \\(variants.a\\) leads nowhere"),
        (Recipe, changed(variants={"a": {"train": 3}}), "variants.a: train: .* or instance of Train .got 3."),
        (Recipe, changed(variants={"a": {"train.fit.steps": 0}}), "variants.a: train.fit.steps: .*got 0"),
        (
            Recipe,
            changed(variants={"a": {"train.lora.targets": ["q_proj"]}}),
            r"variants.a: the experts' lora.targets \['q_proj'\] lie outside the feed-forward blocks",
        ),
        (
            Recipe,
            changed(variants={"a": {"train.injection.texts.honest": "Be."}}),
            r"variants.a: train.injection.texts names \['honest'\], which are not axes",
        ),
        (
            Recipe,
            changed(
                axes={"helpful": {"train": {"source": "a"}}, "kind": {"train": {"source": "b"}}},
                variants={"a": {"train.injection": {}}},
            ),
            "variants.a: train: .*'kind'",
        ),
        (
            Recipe,
            changed(
                axes={axis: {"train": {"source": "a"}, "expert": axis} for axis in ("helpful", "kind")},
                variants={"a": {"train.fit.steps": 1}},
            ),
            "variants.a sets train.fit.steps, but every axis has an expert already; leave it out",
        ),
        (Recipe, changed(sequential={"injection": {}}), "sequential.injection is set, but it would be a second LoRA"),
        (Recipe, changed(variants={"a": {"fuse.top_k": 3}}), "variants.a: fuse.top_k is 3, but there are only 2"),
        (Align, {"prior_shares": {"a": 0}}, "greater than 0"),
        (Recipe, changed(scarce={"align": {"drift": {"kind": 1}}}), r"drift names \['kind'\], which are not axes"),
        (Recipe, changed(train={"lora": {"targets": ["q_proj", "up_proj"]}}), r"\['q_proj'\] lie outside the feed-f"),
        (
            Recipe,
            changed(scarce={"train": {"lora": {"targets": ["o_proj"]}}}),
            r"\['o_proj'\] lie outside .*choose",
        ),
    ],
)
def test_what_a_recipe_must_not_say(model: type[Any], content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(content)


@pytest.mark.parametrize("axis", ["", "a/b", "..", ".hidden", "a b", "-a", "a.b", "für", "a\n"])
def test_an_axis_names_folders(axis: str) -> None:
    rows = {"train": {"source": "a.jsonl"}}
    with pytest.raises(ValidationError, match="an axis's name is letters, digits, - and _"):
        Recipe.model_validate(changed(axes={"helpful": rows, axis: rows}))
    Recipe.model_validate(changed(axes={"helpful": rows, "Very-honest_2": rows}))


@pytest.mark.parametrize("shared", ["base", "average", "harmless"])
def test_attention_may_be_trained_where_it_is_said_what_becomes_of_it(shared: str) -> None:
    attention = {"lora": {"targets": ["q_proj", "up_proj"]}}
    Recipe.model_validate(changed(train=attention, fuse={"shared": shared}))
    Recipe.model_validate(changed(train=attention, compare=["base", "experts", "average"]))


def test_numbers_as_yaml_writes_them() -> None:
    # YAML 1.1 takes a number without a point for a text.
    assert Fit.model_validate({"learning_rate": "3e-3"}).learning_rate == 3e-3
    assert Train.model_validate({"lora": {"rank": 4}}).lora.rank == 4
    assert Align.model_validate({"gating": 0, "drift": {"helpful": 0}}).drift == {"helpful": 0.0}


def test_importance_and_weights(tmp_path: Path) -> None:
    fuse = {"weights": {"harmless": -1, "helpful": 0.5}, "allow_negated": True, "importance": {"reference": "helpful"}}
    recipe = Recipe.model_validate(changed(fuse=fuse, align={"top_k": "all", "prior_shares": {"helpful": 2}}))
    assert recipe.fuse.weights == {"harmless": -1.0, "helpful": 0.5}
    assert recipe.fuse.importance == Importance(similarity="cosine", reference="helpful", temperature=1.0)
    assert Recipe.model_validate(changed()).fuse.importance is None
    for reference in ("mean", str(tmp_path)):
        Recipe.model_validate(changed(fuse={"importance": {"reference": reference}}))
    assert Recipe.model_validate(changed(align={"top_k": 2})).align.top_k == 2


def test_k_may_be_all_experts() -> None:
    assert Recipe.model_validate(changed(fuse={"top_k": 2})).fuse.top_k == 2


def test_a_variant_is_the_recipe_with_other_settings() -> None:
    variants = {"a": {"fuse.top_k": 1, "fuse.importance": {}, "align.drift.helpful": 0.5}, "b": {}}
    recipe = Recipe.model_validate(changed(variants=variants, align={"gating": 0.3}))
    fuse, align = recipe.variant("a").fuse, recipe.variant("a").align
    assert (fuse.top_k, fuse.importance, align.gating, align.drift) == (1, Importance(), 0.3, {"helpful": 0.5})
    same = recipe.variant("b")
    assert (same.train, same.fuse, same.align) == (recipe.train, recipe.fuse, recipe.align)


def test_a_variant_trains_otherwise_where_it_says_so() -> None:
    variants: dict[str, Any] = {
        "plain": {"train.injection": None},
        "longer": {"train.fit.steps": 9},
        "anew": {"train.injection": None, "train.injection.rank": 2},
        "both": {"train.injection": {"rank": 3}, "train.injection.layer": 1},
        "importance": {"fuse.importance.temperature": 2},  # below a null
    }
    train = {"lora": {"rank": 4}, "injection": {"style": "chain_of_thought"}}
    recipe = Recipe.model_validate(changed(variants=deepcopy(variants), train=train))
    assert recipe.variants == variants  # nothing in it was changed by reading it
    found = {name: recipe.variant(name) for name in variants}
    assert found["plain"].train == recipe.train.model_copy(update={"injection": None})
    assert (found["longer"].train.fit.steps, found["longer"].train.injection) == (9, recipe.train.injection)
    assert found["anew"].train.injection == Injection(rank=2)
    assert found["both"].train.injection == Injection(rank=3, layer=1)
    assert found["importance"].fuse.importance == Importance(temperature=2)
    assert found["importance"].train == recipe.train
