"""The steps that make the experts of a run, and further models of the same data by other settings."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from triune.data.streaming import Rows
from triune.pipeline import fusing, verbs
from triune.pipeline.streaming import router_rows
from triune.recipe import Recipe, Train

if TYPE_CHECKING:
    from triune.pipeline.planning import Run

Planned = dict[str, Callable[[], Path]]


def experts_of(recipe: Recipe, out: Path) -> dict[str, Path]:
    """Where each axis's expert is: trained in this run, or made elsewhere."""
    return {
        axis: Path(data.expert) if data.expert is not None else out / "experts" / axis
        for axis, data in recipe.axes.items()
    }


def variant_experts(recipe: Recipe, out: Path) -> dict[str, dict[str, Path]]:
    """Where each variant's experts are, by axis: the run's own, where it trains as the recipe does.

    Else under the first variant that trains as it does. Experts made elsewhere are the same for all.
    """
    made = [(recipe.train, experts_of(recipe, out))]
    found = {}
    for name in recipe.variants:
        train = recipe.variant(name).train
        known = [experts for settings, experts in made if settings == train]
        found[name] = known[0] if known else experts_of(recipe, out / "variants" / name)
        made.append((train, found[name]))
    return found


def training_steps(run: "Run", folders: Mapping[str, Path], settings: Train, title: str) -> Planned:
    """One expert an axis, each in its folder within the run."""
    return {
        str(folder.relative_to(run.out)): partial(
            verbs.train, run.context, run.prepared.rows(axis), folder, settings, title=f"{title} {axis}"
        )
        for axis, folder in folders.items()
    }


def mixture_steps(run: "Run") -> Planned:
    """One adapter on the mixture of the axes' rows, trained otherwise or on fewer of them."""
    found = {name: run.recipe.mixed(name) for name in run.recipe.mixtures}
    joint = _joint_rows(run, found.values())
    return {
        f"mixtures/{name}": partial(
            verbs.train,
            run.context,
            joint[how.joint],
            run.out / "mixtures" / name,
            how.mixture,
            title=f"one LoRA on the mixture, {name}",
        )
        for name, how in found.items()
    }


def variant_steps(run: "Run") -> Planned:
    """Fused and aligned otherwise or on fewer joint rows, of the run's experts or of others trained for it."""
    steps: Planned = {}
    found = {name: run.recipe.variant(name) for name in run.recipe.variants}
    rows = _joint_rows(run, found.values())
    for name, experts in variant_experts(run.recipe, run.out).items():
        how, place = found[name], run.out / "variants" / name
        own = {axis: place / "experts" / axis for axis, data in run.recipe.axes.items() if data.expert is None}
        own = own if own.items() <= experts.items() else {}  # those of the run, or of a variant before this one
        joint = rows[how.joint]
        steps |= training_steps(run, own, how.train, f"{name}: expert")
        start, fused = place / "start", place / "fused"
        steps[f"variants/{name}/start"] = partial(
            fusing.fuse, run.context, experts, start, how.fuse, router_rows(run, how.fuse, joint)
        )
        steps[f"variants/{name}/fused"] = partial(verbs.align, run.context, start, joint, fused, how.align)
    return steps


def _joint_rows(run: "Run", recipes: Iterable[Recipe]) -> dict[int | None, Rows]:
    """The joint rows by their number an axis: made once for all recipes that have as many."""
    return {n: run.joint(n) for n in {recipe.joint for recipe in recipes}}
