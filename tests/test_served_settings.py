"""Served models in a recipe: which are refused, and what a variant makes of them."""

from typing import Any

import pytest
from pydantic import ValidationError

from triune.errors import InputError
from triune.recipe import Recipe
from triune.recipe_file import parse_recipe, to_yaml
from triune.served_settings import Served

THEIRS: dict[str, Any] = {"base_url": "http://localhost:8000/v1", "model": "org/model"}
SMALL: dict[str, Any] = {
    "base": {"path": "models/base"},
    "axes": {"helpful": {"train": {"source": "a.jsonl"}}, "harmless": {"train": {"source": "b.jsonl"}}},
    "evaluate": [{"kind": "miniature"}, {"kind": "nll"}],
    "compare": ["base", "fused", "served"],
    "served": {"theirs": THEIRS},
}


def test_names_become_settings_and_survive_the_file() -> None:
    recipe = Recipe.model_validate(SMALL)
    assert recipe.served["theirs"] == Served(**THEIRS)
    assert parse_recipe(to_yaml(recipe), "x") == recipe
    quick = parse_recipe(to_yaml(recipe), "x", overrides=["served.theirs.concurrency=2"])
    assert quick.served["theirs"].concurrency == 2


def test_a_variant_has_no_served_models() -> None:
    recipe = Recipe.model_validate(
        {**SMALL, "compare": ["served", "variants"], "variants": {"top-1": {"fuse.top_k": 1}}}
    )
    assert recipe.variant("top-1").served == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"served": {}}, "compare asks for served, but served is empty; name some"),
        ({"compare": ["base", "fused"]}, r"served has \['theirs'\], but compare has no row served; add it"),
        ({"served": {"a/b": THEIRS}}, r"served names \['a/b'\]; a name is letters"),
        ({"served": {"a:b": THEIRS}}, r"served names \['a:b'\]"),
        ({"evaluate": [{"kind": "nll"}]}, r"served models \['theirs'\] can only answer, and no benchmark"),
        ({"served": {"theirs": {"base_url": "http://localhost:8000/v1"}}}, "Field required"),
        ({"served": {"theirs": {**THEIRS, "base_url": "localhost:8000/v1"}}}, r"wanted http\(s\)://host:port/v1"),
        ({"served": {"theirs": {**THEIRS, "concurrency": 0}}}, "greater than or equal to 1"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({**SMALL, **changes})


def test_a_password_in_an_address_is_not_repeated() -> None:
    text = to_yaml(Recipe.model_validate(SMALL)).replace("http://localhost", "http://me:secret@localhost")
    with pytest.raises(InputError, match=r"'served.theirs.base_url': wanted http") as caught:
        parse_recipe(text, "mine.yaml")
    assert "secret" not in str(caught.value)


def test_an_unknown_key_has_its_nearest_named() -> None:
    text = to_yaml(Recipe.model_validate(SMALL)).replace("key_env", "key_enf")
    with pytest.raises(InputError, match=r"unknown key 'served.theirs.key_enf'; the nearest known one is 'key_env'"):
        parse_recipe(text, "mine.yaml")
