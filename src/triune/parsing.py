"""JSON and YAML of any origin into plain values, within bounds that no honest file comes near.

The libraries raise RecursionError, IndexError, KeyError and more over strange texts, and let a few lines of YAML
stand for billions of values. Here a text is read, or refused with ValueError (JSON) or yaml.YAMLError (YAML).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from triune.errors import InputError

MAX_DEPTH = 100  # lists in lists in lists …
MAX_BITS = 1024  # of a whole number: what a float can hold; Python refuses to print those above 4,300 digits
MAX_YAML = 500_000  # characters; PyYAML reads about 100,000 a second
MAX_NODES = 200_000  # of YAML, each alias counted as all that it stands for
# What PyYAML's constructors raise, beside YAMLError, over `!!int ""`, `!!bool x`, `!!timestamp x`, the 40th of May …
_STRANGE = (ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, RecursionError)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Raises ValueError where it is no JSON, nested deeper than MAX_DEPTH, or has a whole number of over MAX_BITS.
    """
    plain = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(plain, parse_int=_whole)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file that Triune wrote. Raises InputError where it cannot be read."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove its folder and run the same command") from error


def _whole(digits: str) -> int:
    # float(10 ** 400) is an OverflowError wherever it stands.
    if len(digits) > 300 and int(digits).bit_length() > MAX_BITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _depth(value: Any) -> int:
    """How deep lists and objects stand in each other, up to MAX_DEPTH + 1. Not recursive."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    depth = 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [item for own in level for item in _items(own) if isinstance(item, dict | list)]
    return depth


def _items(own: Any) -> Iterable[Any]:
    return own.values() if isinstance(own, dict) else own


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, with their lines; None for an empty one. Raises yaml.YAMLError as `parse_yaml`."""
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"{len(text):,} characters; allowed are {MAX_YAML:,}")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _size(node, {}, ()) > MAX_NODES:
            raise yaml.YAMLError(f"its aliases (*name) stand for over {MAX_NODES:,} values; write less")
    except RecursionError as error:
        raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH}") from error
    except _STRANGE as error:  # an escape such as "\UFFFFFFFF"
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
    return node


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: plain types only, as `yaml.safe_load` makes them.

    Raises yaml.YAMLError where it is no YAML, over MAX_YAML, MAX_DEPTH, MAX_NODES or MAX_BITS, or contains itself.
    """
    return construct_yaml(compose_yaml(text))


def construct_yaml(node: yaml.Node | None) -> Any:
    """The value that nodes stand for; `<<` is resolved in the nodes too. Raises yaml.YAMLError as `parse_yaml`."""
    loader = yaml.SafeLoader("")
    try:
        value = None if node is None else loader.construct_document(node)
    except _STRANGE as error:
        said = str(error) if isinstance(error, ValueError) else f"a value that cannot be read ({error!r})"
        raise yaml.YAMLError(said) from error
    finally:
        loader.dispose()
    _check_numbers(value)
    return value


def _size(node: yaml.Node, known: dict[int, int], outer: tuple[yaml.Node, ...]) -> int:
    """How many nodes a node stands for. Linear in the text: what an alias names is counted once and multiplied."""
    if id(node) in known:
        return known[id(node)]
    if any(node is above for above in outer):
        line = node.start_mark.line + 1
        raise yaml.YAMLError(f"line {line}: a part contains itself; write it out")
    if len(outer) >= MAX_DEPTH:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: nested deeper than {MAX_DEPTH}")
    total = 1
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in item if isinstance(item, tuple) else (item,):
            total += _size(part, known, (*outer, node))
    known[id(node)] = total
    return total


def _check_numbers(value: Any) -> None:
    """Hexadecimal and sexagesimal numbers have no limit of their own."""
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, int) and found.bit_length() > MAX_BITS:
            raise yaml.YAMLError(f"a whole number of {found.bit_length():,} bits; allowed are {MAX_BITS:,}")
        if isinstance(found, dict):
            left += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple | set):
            left += found


def is_plain_name(name: object) -> bool:
    """Whether a name that a file gives is one of a file right here: a path could lead elsewhere."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not set("/\\\0") & set(name)
