"""Reading a recipe: YAML, overrides from the command line, and errors that name the nearest known key."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from triune.errors import InputError
from triune.parsing import compose_yaml, construct_yaml, parse_yaml
from triune.presets import preset, under
from triune.recipe import Recipe
from triune.settings import set_dotted

T = TypeVar("T", bound=BaseModel)
KEYS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}  # what a key may be: a text, or << for another's keys
# Pydantic's words for what YAML calls otherwise.
WANTED = {"tuple_type": "a list is wanted", "model_type": "keys are wanted", "dict_type": "keys are wanted"}


def load_recipe(path: Path, *, quick: bool = False, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with its `quick` settings where asked, then `key=value` overrides (dotted keys).

    Relative paths in the recipe are relative to the working folder, as on a command line.
    Raises InputError: file missing, not UTF-8, not YAML, not a mapping, a key given twice, an unknown key (the nearest
    known one is named), a value of the wrong kind or outside its range.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the recipe's own file (.yaml)")
    if not path.is_file():
        raise InputError(f"no recipe at {path}; see recipes/ for examples and `triune run --schema` for every key")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend its permissions") from error
    return parse_recipe(text, str(path), quick=quick, overrides=overrides)


def parse_recipe(text: str, origin: str, *, quick: bool = False, overrides: Sequence[str] = ()) -> Recipe:
    """As `load_recipe`, from the text itself; `origin` is named in errors."""
    content = _read_yaml(text, origin)
    if not isinstance(content, dict):
        got = "is empty" if content is None else f"holds {'a list' if isinstance(content, list) else 'one value'}"
        raise InputError(f"{origin} {got}; a recipe is a mapping of keys, see `triune run --schema`")
    content = _on_preset(content, origin)
    smaller = content.get("quick") if quick else None
    for key, value in smaller.items() if isinstance(smaller, dict) else ():
        set_dotted(content, str(key), value, f"{origin}, quick")
    _override(content, overrides, "align.gating=0.1")
    if "preset" in content:
        raise InputError("preset is not taken from the command line, only from the recipe's own file; write it there")
    return validate(Recipe, content, origin)


def _on_preset(content: dict[str, Any], origin: str) -> dict[str, Any]:
    """The recipe with what it leaves open taken from the preset that it names."""
    if "preset" not in content:
        return content
    rest = {key: value for key, value in content.items() if key != "preset"}
    try:
        return under(preset(content["preset"]), rest)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def _read_yaml(text: str, origin: str) -> Any:
    try:
        node = compose_yaml(text)
        if node is not None:
            _check_keys(node, origin)  # before `<<` is resolved, after which its keys stand there twice
        return _unshared(construct_yaml(node))
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {error}") from error


def _check_keys(node: yaml.Node, origin: str) -> None:
    """Refuse what YAML takes in silence: a key given twice, of which one would be lost, and `1:`, `no:` or `null:`."""
    known: set[str] = set()
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = item if isinstance(item, tuple) else (None, item)
        if isinstance(key, yaml.ScalarNode):
            if key.tag not in KEYS:
                line = f"{origin}:{key.start_mark.line + 1}"
                raise InputError(f"{line}: the key {key.value!r:.80} is no text in YAML; put it in quotes")
            if key.value in known:
                raise InputError(f"{origin}:{key.start_mark.line + 1}: {key.value!r} is given twice; keep one")
            known.add(key.value)
        _check_keys(value, origin)


def _unshared(content: Any) -> Any:
    """A copy in which no two places are the same object, as YAML's aliases make them: an override is for one place."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    return [_unshared(value) for value in content] if isinstance(content, list) else content


def _override(content: dict[str, Any], overrides: Sequence[str], example: str) -> None:
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            raise InputError(f"{override!r} is not key=value, for example {example}")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise InputError(f"the value of {override!r} is not valid YAML: {error}; quote it") from error
        set_dotted(content, key, value, "the command line")


def settings_from(model: type[T], overrides: Sequence[str]) -> T:
    """One part of a recipe (Train, Fuse, Align) from `key=value` overrides alone, defaults elsewhere.

    `preset=trinityx` takes what that preset says of this part. Raises InputError as `load_recipe` does.
    """
    content: dict[str, Any] = {}
    _override(content, overrides, "fit.steps=100")
    if "preset" in content:
        content = under(preset(content.pop("preset")).get(model.__name__.lower(), {}), content)
    return validate(model, content, "the command line")


def validate(model: type[T], content: Any, origin: str) -> T:
    """Build the pydantic model; its errors become one InputError that names each place."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{origin}: " + "; ".join(_explain(model, found) for found in error.errors())) from error


def _explain(model: type[BaseModel], found: Any) -> str:
    path, inside, here = _walk(model, found["loc"])
    where = ".".join(path)
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _keys(inside), n=1, cutoff=0.0)
        return f"unknown key {where!r}; the nearest known one is {near[0]!r}" if near else f"unknown key {where!r}"
    if found["type"] == "missing":
        return f"{where!r} is missing; add it"
    if found["type"] == "union_tag_not_found":
        return f"{where!r} has no kind; known: {', '.join(kind for m in here for kind in _kinds(m))}"
    if found["type"] == "union_tag_invalid":
        known = found["ctx"]["expected_tags"].replace("'", "")
        return f"{where!r}: kind {found['ctx']['tag']!r} is unknown; known: {known}"
    if found["input"] is None and _keys(here):
        return f"{where!r} is empty; it takes {', '.join(_keys(here))}"
    message = WANTED.get(found["type"], str(found["msg"]).removeprefix("Value error, "))
    # Our own messages say what was got.
    got = "" if found["type"] == "value_error" else f" (got {_shortened(found['input'])})"
    return (f"{where!r}: " if path else "") + message + got


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _walk(model: type[BaseModel], place: Sequence[str | int]) -> tuple[list[str], list[Any], list[Any]]:
    """Where pydantic found an error: the path as the file has it, what may stand around its last part, and there.

    Pydantic's own path also names the chosen member of a union, which no key in the file does.
    """
    path: list[str] = []
    around: list[Any] = []
    here: list[Any] = [model]
    for part in place:
        chosen = [m for m in here if part in _kinds(m)] if len(here) > 1 else []
        if chosen:
            here = chosen
            continue
        path.append(str(part))
        around, here = here, [inner for outer in here for inner in _inside(outer, part)]
    return path, around, here


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """What may stand at a field, a dictionary's key or a list's index."""
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return _members(field.annotation) if field else []
    inner = {dict: 1, tuple: 0}.get(get_origin(annotation))
    return [] if inner is None else _members(get_args(annotation)[inner])


def _members(annotation: Any) -> list[Any]:
    """The members of a union, without what is said about them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [annotation]


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The values of `kind` by which a member of a union is chosen."""
    field = annotation.model_fields.get("kind") if _is_model(annotation) else None
    return get_args(field.annotation) if field else ()


def _keys(annotations: Sequence[Any]) -> list[str]:
    return sorted({name for a in annotations if _is_model(a) for name in a.model_fields})


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def recipe_schema() -> str:
    """The JSON schema of a recipe."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
