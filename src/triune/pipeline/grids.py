"""A recipe's grid: overrides with several values each, as the points that they come to."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from triune.errors import InputError
from triune.parsing import parse_yaml
from triune.recipe import Recipe
from triune.recipe_file import load_recipe
from triune.report.sweep_words import short_keys, value_name

MANY = 32  # points that are run without being asked for twice
LONGEST = 80  # characters of a point's name
EXAMPLE = "align.gating=0,0.01,0.1"


@dataclass(frozen=True)
class Point:
    """One point of a grid: its folder's name, its value of each swept key, and its recipe."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe


def expand(path: Path, keys: Sequence[str], *, quick: bool = False, yes: bool = False) -> tuple[Point, ...]:
    """The points of KEY=V1,V2 … over the recipe in a file, the last key fastest; a key with one value is for all.

    Values are YAML; a list is one value ([a, b],[c]). Raises InputError as `load_recipe`, for a key given twice or
    without a value, a grid of one point, two points that are the same, more than `MANY` points unless `yes`, and a
    recipe with seeds (seed=0,1,2 sweeps them).
    """
    given = dict(_values(key, keys) for key in keys)
    swept = {key: values for key, values in given.items() if len(values) > 1}
    fixed = [_override(key, values[0]) for key, values in given.items() if len(values) == 1]
    if not swept or "seeds" in swept:
        raise InputError(f"got {list(keys)}; a sweep needs a key with several values, as {EXAMPLE} or seed=0,1,2")
    combinations = list(product(*swept.values()))
    if len(combinations) > MANY and not yes:
        raise InputError(f"the grid has {len(combinations)} points, more than {MANY}; give --yes if you mean it")
    labels = short_keys(list(swept))
    points = []
    for values in combinations:
        chosen = dict(zip(swept, values, strict=True))
        overrides = [*fixed, *(_override(key, value) for key, value in chosen.items())]
        points.append(Point(_name(chosen, labels), chosen, load_recipe(path, quick=quick, overrides=overrides)))
    _check(path, points)
    return tuple(points)


def _values(text: str, keys: Sequence[str]) -> tuple[str, list[Any]]:
    key, found, rest = text.partition("=")
    if not found or not key or not rest.strip():
        raise InputError(f"{text!r} is not KEY=V1,V2, for example {EXAMPLE}")
    if [other.partition("=")[0] for other in keys].count(key) > 1:
        raise InputError(f"{key} is given twice; give it once, with all its values")
    try:
        values = parse_yaml(f"[{rest}]")
    except yaml.YAMLError as error:
        raise InputError(f"the values of {text!r} are not valid YAML: {error}; quote them") from error
    if not values:
        raise InputError(f"{text!r} has no value, for example {EXAMPLE}")
    return key, list(values)


def _override(key: str, value: Any) -> str:
    try:
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    except TypeError as error:  # a date, say
        raise InputError(f"{key} has the value {value!r}, which no recipe can hold; quote it") from error


def _name(values: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    whole = ",".join(f"{labels[key]}={value_name(value)}" for key, value in values.items())
    name = re.sub(r"[^A-Za-z0-9._=+,-]+", "-", whole)
    if name == whole and len(name) <= LONGEST:
        return name
    # What was left out may be all that two points differ by.
    return f"{name[:LONGEST].rstrip('.,-')}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def _check(path: Path, points: Sequence[Point]) -> None:
    seeded = next((point for point in points if point.recipe.seeds), None)
    if seeded is not None:
        raise InputError(
            f"{path} has seeds {list(seeded.recipe.seeds)}; a sweep has a run for each point: give seeds=[] and "
            "seed=0,1,2"
        )
    known: dict[str, str] = {}
    for point in points:
        first = known.setdefault(point.recipe.model_dump_json(), point.name)
        if first != point.name or [other.name for other in points].count(point.name) > 1:
            raise InputError(f"the points {first} and {point.name} are the same recipe; leave one out")
