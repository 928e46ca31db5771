"""Recipes that are made of another by setting some of its keys otherwise: rows of one comparison."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import ValidationError

from triune.data_settings import NAME
from triune.settings import Settings, set_dotted

R = TypeVar("R", bound=Settings)
ALONE: dict[str, Any] = {"scarce": None, "variants": {}, "mixtures": {}, "served": {}, "quick": {}}


def otherwise(recipe: R, table: str, name: str, parts: Sequence[str], model: str) -> R:
    """The recipe with the keys of its field `table`, row `name`, set; `model` is all that it compares.

    `parts` are the fields that a row can set, whole or by dotted keys below them. Raises ValueError for a name that
    no folder can have, for other keys, and for values that are refused.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{table} names {name!r}; a name is letters, digits, - and _ (folders are named after it)")
    content = {**recipe.model_dump(), **ALONE, "compare": (model,)}
    for key, value in getattr(recipe, table)[name].items():
        if key.partition(".")[0] not in parts:
            allowed = " or ".join(part if part == "joint" else f"{part}." for part in parts)
            raise ValueError(f"{table}.{name} sets {key}; keys begin with {allowed}")
        set_dotted(content, key, deepcopy(value), f"{table}.{name}")
    try:
        return type(recipe).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        got = f"{where}: {said} (got {first['input']!r:.60})" if where else said
        raise ValueError(f"{table}.{name}: {got}") from error
