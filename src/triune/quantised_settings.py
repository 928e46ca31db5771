"""A base held in 4 or 8 bits: how, and what of a recipe is then refused."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from triune.settings import NotNegative, Settings

QUANT_TYPES = ("nf4", "fp4", "int8")
MIXTURES = ("ensemble", "ranking", "instruct", "xlora", "arrow", "mergekit_moe")


class Quantised(Settings):
    """The base's linear layers as bitsandbytes holds them, quantised when the base is loaded.

    QLoRA (arXiv 2305.14314, §3) for 4 bits, LLM.int8() (arXiv 2208.07339) for 8. The keys are transformers'
    (`BitsAndBytesConfig`) without their prefixes. What is computed with has `base.dtype`. A plain name, `nf4`, is
    short for `{quant_type: nf4}`.
    """

    quant_type: Literal["nf4", "fp4", "int8"] = "nf4"
    double_quant: bool = Field(True, description="nf4, fp4: the scales of the blocks of 64 in 8 bits too (QLoRA)")
    int8_threshold: NotNegative = Field(
        6.0, description="int8: input features with a larger entry are multiplied unquantised (LLM.int8())"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"quant_type": given} if isinstance(given, str) else given


def check_quantised(recipe: Any) -> None:
    """Raise ValueError, with the way out, for what a recipe asks of a quantised base that it cannot have."""
    if recipe.base.quantised is None:
        return
    for key, found, way_out in _refused(recipe):
        raise ValueError(f"{key} is {found}, and base.quantised is set: {way_out}")


def _refused(recipe: Any) -> Iterator[tuple[str, Any, str]]:
    if recipe.launch.sharded:
        yield "launch.sharded", "true", "packed weights cannot be shared out; leave it out (DDP) or base.quantised"
    if recipe.fuse.prompt_routing is not None:
        yield "fuse.prompt_routing", "set", "its router is made on float weights; leave one of the two out"
    if recipe.fuse.shared not in ("refuse", "base"):
        yield "fuse.shared", repr(recipe.fuse.shared), "the base is named and never rewritten; choose refuse or base"
    places = {"align": recipe.align} | ({"scarce.align": recipe.scarce.align} if recipe.scarce is not None else {})
    for place, align in places.items():
        if "attention" in align.trainable:
            way_out = "adapters would be merged into packed weights at the end; choose routers or routers+experts"
            yield f"{place}.trainable", align.trainable, way_out
    trained = {"train": recipe.train, "mixture": recipe.mixture}
    trained |= {"scarce.train": recipe.scarce.train} if recipe.scarce is not None else {}
    for place, train in trained.items():
        if train.injection is not None:
            yield f"{place}.injection", "set", "its second pass adds the first to the base's weights; leave it out"
    rows = [row for row in recipe.compare if row in MIXTURES]
    if rows:
        yield "compare", rows, "these rows have not been tried on packed weights; leave them out"
