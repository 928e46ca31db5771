"""What a recipe may say of a quantised base."""

from typing import Any

import pytest
from pydantic import ValidationError

from triune.quantised_settings import Quantised
from triune.recipe import Base, Recipe

AXIS = {"train": {"source": "a.jsonl"}, "test": {"source": "b.jsonl"}}
CONTENT: dict[str, Any] = {
    "base": {"path": "x", "quantised": "nf4"},
    "axes": {"helpful": AXIS, "harmless": AXIS},
    "evaluate": [{"kind": "nll"}],
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(CONTENT | changes)


def test_a_plain_name_is_short_for_the_mapping() -> None:
    assert Base(path="x", quantised="fp4").quantised == Quantised(quant_type="fp4")  # type: ignore[arg-type]
    assert recipe().base.quantised == Quantised()


@pytest.mark.parametrize("given", ["nf8", {"quant_type": "q4"}, {"int8_threshold": -1}, {"bits": 4}, 4])
def test_other_values_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        Base(path="x", quantised=given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"launch": {"processes": 2, "sharded": True}}, "launch.sharded is true"),
        ({"fuse": {"prompt_routing": {}}}, "fuse.prompt_routing is set"),
        ({"fuse": {"shared": "ties"}}, "fuse.shared is 'ties'"),
        ({"align": {"trainable": "routers+experts+attention"}}, "align.trainable is"),
        ({"train": {"injection": {"style": "axis"}}}, "train.injection is set"),
        ({"compare": ["base", "fused", "xlora"]}, r"compare is \['xlora'\]"),
    ],
)
def test_what_a_packed_base_cannot_have_is_said_before_a_run(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(**changes)
    # and only then
    Recipe.model_validate(CONTENT | changes | {"base": {"path": "x"}})
