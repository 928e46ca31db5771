"""Published methods as settings: each preset is a few lines of a recipe, in `triune/recipes/presets`."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from triune.errors import InputError


def presets() -> list[str]:
    """The names of all presets."""
    folder = resources.files("triune").joinpath("recipes/presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def preset(name: object) -> dict[str, Any]:
    """The settings of a preset, by part of a recipe. Raises InputError for an unknown name."""
    if name not in presets():
        raise InputError(f"there is no preset {name!r}; known: {', '.join(presets())}")
    text = resources.files("triune").joinpath(f"recipes/presets/{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def under(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` with what it leaves open taken from `settings`, at every depth."""
    joined = dict(settings)
    for key, value in own.items():
        below = joined.get(key)
        joined[key] = under(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return joined
