"""What of a recipe's training is refused before the first step."""

from typing import Any

import pytest

from triune.errors import InputError
from triune.launch_settings import Launch
from triune.pipeline.fit_checks import check_batches, check_packed_routing, check_packing
from triune.recipe import Fit, Recipe


def test_batches_that_processes_do_not_divide() -> None:
    check_batches(Launch(processes=4), {"train.fit": Fit(batch_size=8)})
    with pytest.raises(InputError, match=r"align\.fit\.batch_size is 6, which launch\.processes = 4"):
        check_batches(Launch(processes=4), {"train.fit": Fit(batch_size=8), "align.fit": Fit(batch_size=6)})


def test_rows_that_are_shorter_than_an_example_may_be() -> None:
    check_packing({"train.fit": Fit(packing=32), "align.fit": Fit()}, 32)
    with pytest.raises(InputError, match=r"align\.fit\.packing is 31 .*base\.max_length = 32; raise it"):
        check_packing({"train.fit": Fit(), "align.fit": Fit(packing=31)}, 32)


def test_packed_rows_of_a_model_that_routes_whole_prompts() -> None:
    def recipe(**own: Any) -> Recipe:
        axes = {name: {"train": {"source": name}, "test": {"source": name}} for name in "xy"}
        return Recipe.model_validate({"base": {"path": "b"}, "axes": axes, "evaluate": [{"kind": "nll"}], **own})

    packed: dict[str, Any] = {"align": {"fit": {"packing": 300}}}
    whole: dict[str, Any] = {"fuse": {"prompt_routing": {}}}
    check_packed_routing({"": recipe(**packed), "variants.a: ": recipe(**whole)})
    with pytest.raises(InputError, match=r"variants\.a: align\.fit\.packing is set, and fuse\.prompt_routing"):
        check_packed_routing({"": recipe(), "variants.a: ": recipe(**packed, **whole)})
