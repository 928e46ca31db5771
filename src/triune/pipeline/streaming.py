"""Runs whose training rows are streamed: what such a recipe must say, and the rows that are needed in memory."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from triune.data.streaming import Rows, Stream
from triune.errors import InputError
from triune.method_settings import Fit, Train
from triune.recipe import Fuse, Recipe
from triune.types import Example

if TYPE_CHECKING:
    from triune.pipeline.planning import Run

TOGETHER = ("instruct", "xlora", "mergekit_moe")  # baselines that are made from rows in memory


def check_streamed(recipe: Recipe) -> None:
    """Raise InputError where a recipe streams rows to what needs their number, or all of them."""
    axes = [axis for axis, data in recipe.axes.items() if data.streaming is not None]
    if not axes:
        return
    who = f"axes.{axes[0]}.streaming"
    for place, fit in _fits(recipe):
        if fit.steps is None:
            raise InputError(
                f"{place}.steps is not set, and {who} is, so that nobody knows how many rows an epoch has; set it"
            )
    variants = {f"variants.{name}.": recipe.variant(name).train for name in recipe.variants}
    trains = {"": recipe.train, **variants, **({"scarce.": recipe.scarce.train} if recipe.scarce else {})}
    mixtures = {"mixture": recipe.mixture} if recipe.joint is None else {}
    parts = {f"{place}train": part for place, part in trains.items()} | mixtures
    injected = [place for place, part in parts.items() if part.injection is not None]
    if injected:
        raise InputError(f"{injected[0]}.injection needs its rows in memory for two passes, and {who} is set")
    together = [name for name in recipe.compare if name in TOGETHER]
    if together and recipe.joint is None:
        raise InputError(
            f"compare asks for {', '.join(together)}, made from joint rows in memory, and {who} is set; set joint, "
            "the number of rows an axis that are read for it, or leave the row out"
        )
    aligned = {"align": recipe.align} | {f"variants.{n}.align": recipe.variant(n).align for n in recipe.variants}
    represented = [place for place, align in aligned.items() if align.representation]
    if represented and recipe.joint is None:
        raise InputError(
            f"{represented[0]}.representation needs every row's target at once, and {who} is set; set it to 0, or set "
            "joint, the number of rows an axis that are read for it"
        )


def _fits(recipe: Recipe) -> Iterator[tuple[str, Fit]]:
    """The settings that train from a stream, by their place."""
    others = {f"variants.{name}": recipe.variant(name) for name in recipe.variants}
    trained: list[tuple[str, Train]] = [("train", recipe.train)]
    trained += [(f"{place}.train", other.train) for place, other in others.items()]
    if recipe.sequential is not None:
        trained.append(("sequential", recipe.sequential))
    if recipe.scarce is not None:
        trained.append(("scarce.train", recipe.scarce.train))
    yield from ((f"{place}.fit", part.fit) for place, part in trained)
    if recipe.joint is None and "mixture" in recipe.compare:
        yield "mixture.fit", recipe.mixture.fit
    if recipe.joint is None and "fused" in recipe.compare:
        yield "align.fit", recipe.align.fit
    yield from ((f"{place}.align.fit", other.align.fit) for place, other in others.items() if other.joint is None)
    for name in recipe.mixtures:
        if (mixed := recipe.mixed(name)).joint is None:
            yield f"mixtures.{name}.mixture.fit", mixed.mixture.fit


def kept_rows(rows: Rows) -> Sequence[Example]:
    """Rows in memory; none of a stream, from which `check_streamed` keeps those that would need them."""
    return () if isinstance(rows, Stream) else rows


def router_rows(run: "Run", settings: Fuse, joint: Rows) -> Sequence[Example]:
    """What routers are started from: the joint rows, or of streamed ones each axis's first few."""
    if not isinstance(joint, Stream):
        return joint
    prompts = settings.prompt_routing
    few = run.joint(settings.router_examples if prompts is None else prompts.examples)
    return kept_rows(few)
