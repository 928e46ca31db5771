"""Experts of every make: what a folder holds, told by its files, and its task vector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from triune.errors import InputError
from triune.experts.adapters import CONFIG, read_adapter
from triune.experts.changes import Changes
from triune.experts.full import full_changes
from triune.experts.lazy import Lazy
from triune.experts.task_vector import TaskVector
from triune.models.store import INDEX_FILE, PICKLES, SINGLE_FILE
from triune.parsing import parse_json

FUSED = "triune"  # the model type of triune.fusion.configuration, a room that this one may not import
WANTED = "give a folder with a PEFT adapter, or with a full fine-tune of the base as safetensors"


def as_task_vector(changes: Changes) -> TaskVector:
    """Dense changes as a task vector without low-rank parts: every difference is read when it is asked for."""
    return TaskVector(changes.axis, {}, others=Lazy(changes.shapes, changes.read))


def _full(folder: Path, axis: str, base: Path) -> TaskVector:
    return as_task_vector(full_changes(axis, folder, base))


KINDS: dict[str, Callable[[Path, str, Path], TaskVector]] = {"adapter": read_adapter, "full": _full}


def read_expert(folder: Path, axis: str, base: Path) -> TaskVector:
    """The task vector of an expert's folder, whatever its kind; `base` is the folder of the base model.

    Raises InputError as `find_kind`, `read_adapter` and `full_changes`.
    """
    return KINDS[find_kind(folder)](folder, axis, base)


def find_kind(folder: Path) -> str:
    """What an expert's folder holds, a name of KINDS, told by its files' names and config.json alone.

    Raises InputError for a folder that holds neither or both, and says what it seems to hold.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is {_not_a_folder(folder)}; {WANTED}")
    has_adapter = (folder / CONFIG).is_file()
    has_model = (folder / "config.json").is_file() and any((folder / n).is_file() for n in (SINGLE_FILE, INDEX_FILE))
    if has_adapter and has_model:
        raise InputError(
            f"{folder} holds an adapter ({CONFIG}) and a whole model; one of them would be dropped: give a folder "
            "with one of the two"
        )
    if has_model and _model_type(folder) == FUSED:
        raise InputError(
            f"{folder} holds a fused Triune model, which is no expert; give the experts that it was made of"
        )
    if not has_adapter and not has_model:
        raise InputError(f"{folder} holds no expert: {_what_else(folder)}; {WANTED}")
    return "adapter" if has_adapter else "full"


def _not_a_folder(place: Path) -> str:
    if not place.exists():
        return "not there"
    return "a GGUF file, whose weights are quantised or renamed" if place.suffix == ".gguf" else "a file"


def _model_type(folder: Path) -> Any:
    try:
        found = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read ({error}); download it again") from error
    return found.get("model_type") if isinstance(found, dict) else None


def _what_else(folder: Path) -> str:
    """What a folder without an adapter's configuration and without safetensors of a model has instead."""
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return f"only pickled weights ({', '.join(pickles[:3])}), which Triune never reads (save them as safetensors)"
    if any(folder.glob("*.gguf")):
        return "GGUF files, whose weights are quantised or renamed"
    if any(folder.glob("adapter_model*")):
        return f"an adapter's weights without their {CONFIG}"
    if (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file():
        return "weights without their config.json"
    if (folder / "config.json").is_file():
        return f"a config.json without weights ({SINGLE_FILE}, or {INDEX_FILE} with its shards)"
    return "neither an adapter nor a model"
