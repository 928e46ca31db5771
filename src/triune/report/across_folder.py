"""The folder of a recipe over several seeds: which seeds it has, which are finished, and what they left."""

from collections.abc import Mapping
from pathlib import Path

from triune.errors import InputError
from triune.parsing import parse_yaml
from triune.report import fields
from triune.report.across_run import AcrossRun, SeedRun, gather
from triune.report.folder import SCORES, load_run
from triune.report.parts import parse_recipe
from triune.report.run import Recipe, Run

RECIPE = "recipe.yaml"


def seed_folder(folder: Path, seed: int) -> Path:
    """Where a seed's own run is."""
    return folder / f"seed-{seed}"


def seeds_of(folder: Path) -> tuple[int, ...]:
    """The seeds of the recipe in `folder`; none where it is the run of one seed, or no run.

    Raises InputError for a recipe.yaml that is not YAML, or whose seeds are not distinct whole numbers.
    """
    path = folder / RECIPE
    return _seeds(_settings(parse_recipe(path), path), path) if path.is_file() else ()


def load_across(folder: Path) -> AcrossRun:
    """Read what the finished seeds wrote; those without scores are named as unfinished.

    Raises InputError where no seed is finished, one was made with other settings than the whole, and as `load_run`.
    """
    path = folder / RECIPE
    recipe = parse_recipe(path)
    whole = _settings(recipe, path)
    seeds = _seeds(whole, path)
    places = {seed: seed_folder(folder, seed) for seed in seeds}
    parts = [_load_seed(place, seed, whole) for seed, place in places.items() if (place / SCORES).is_file()]
    if not parts:
        raise InputError(
            f"{folder} has no finished seed of {list(seeds)}, so there is nothing to report; finish the run first "
            "(`triune run`)."
        )
    done = [part.seed for part in parts]
    return gather(Run(folder, (), recipe=recipe), parts, [seed for seed in seeds if seed not in done])


def _load_seed(place: Path, seed: int, whole: Mapping[str, object]) -> SeedRun:
    run = load_run(place)
    own = _settings(run.recipe, place / RECIPE) if run.recipe else {}
    wanted = {**whole, "seeds": [], "seed": seed}
    if {"seeds": [], **own} != wanted:
        differing = sorted(key for key in own.keys() | wanted.keys() if own.get(key) != wanted.get(key))
        raise InputError(
            f"{place} was made with other settings than the whole ({', '.join(differing)} differ); run the recipe "
            "again, so that all seeds are of one kind."
        )
    return SeedRun(seed, run)


def _settings(recipe: Recipe, path: Path) -> Mapping[str, object]:

    return fields.mapping(parse_yaml(recipe.text), str(path))


def _seeds(settings: Mapping[str, object], path: Path) -> tuple[int, ...]:
    found = fields.listing(settings.get("seeds") or [], f"seeds in {path}")
    seeds = tuple(fields.as_whole(seed, f"a seed in {path}") for seed in found)
    if len(set(seeds)) < len(seeds):
        raise fields.fail(f"seeds in {path}", list(seeds), "distinct whole numbers")
    return seeds
