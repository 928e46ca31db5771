"""Results that several runs have in common: made once, and taken over by their identity."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from triune.errors import InputError
from triune.record import RECORD, Step, finished, write_json, writing

SHARED = "shared.json"  # in a folder that was taken from another run: from where
WEIGHTS = ".safetensors"


def share(step: Step, shelf: Iterable[Path]) -> Path | None:
    """Make `step.folder` from the first folder of the shelf that holds a result of its identity; None: there is none.

    Weights are linked where the disk allows, the rest is copied: nothing rewrites weights. Raises InputError as
    `writing`.
    """
    source = next((folder for folder in shelf if holds(folder, step)), None)
    if source is None:
        return None
    with writing(step, int(step.settings.get("seed") or 0)) as draft:
        shutil.copytree(source, draft, copy_function=_link, dirs_exist_ok=True, ignore=_ours)
        write_json(draft / SHARED, {"from": os.path.relpath(source, step.folder)})
    return source


def holds(folder: Path, step: Step) -> bool:
    """Whether the folder is another one, with a finished result of the step's identity."""
    if folder == step.folder:
        return False
    try:
        return finished(replace(step, folder=folder))
    except InputError:  # a record that cannot be read is no offer
        return False


def _ours(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in (RECORD, SHARED) or name.startswith(".")]


def _link(source: str, target: str) -> str:
    if source.endswith(WEIGHTS):
        try:
            os.link(source, target)
            return target
        except OSError:  # another disk, or one without links
            pass
    return str(shutil.copy2(source, target))
