"""The folder of a sweep: which points it has, which are finished, and what they left."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triune.errors import InputError
from triune.report import fields
from triune.report.folder import SCORES, load_run
from triune.report.run import Run

GRID = "sweep.json"  # in every sweep's folder, written before its first step
SEED = "seed"


@dataclass(frozen=True, slots=True)
class SweptRun:
    """One finished point: its folder's name, its value of each swept key, and what its run left."""

    name: str
    values: Mapping[str, Any]
    run: Run


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep: its keys in order, the finished points, and the names of those that are not."""

    folder: Path
    keys: tuple[str, ...]
    points: tuple[SweptRun, ...]
    unfinished: tuple[str, ...]


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep."""
    return (folder / GRID).is_file()


def load_sweep(folder: Path) -> Swept:
    """Read what the finished points wrote.

    Raises InputError for a sweep.json that is not what it should be, where no point is finished, and as `load_run`.
    """
    place = str(folder / GRID)
    grid = fields.mapping(fields.read_json(folder / GRID), place)
    keys = tuple(map(str, fields.listing(grid.get("keys"), f"keys in {place}")))
    listed = [fields.mapping(row, f"a point in {place}") for row in fields.listing(grid.get("points"), place)]
    done, missing = [], []
    for row in listed:
        name, values = str(row.get("name")), fields.mapping(row.get("values"), f"values in {place}")
        if Path(name).name != name or name in ("", "..") or set(values) != set(keys):
            raise fields.fail(
                f"a point in {place}", dict(row), f"a folder's name, and a value of each of {list(keys)}"
            )
        if (folder / name / SCORES).is_file():
            done.append(SweptRun(name, values, load_run(folder / name)))
        else:
            missing.append(name)
    if not done:
        raise InputError(f"{folder} has no finished point of {missing}; finish the sweep first (`triune sweep`)")
    return Swept(folder, keys, tuple(done), tuple(missing))
