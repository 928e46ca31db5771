"""Where rows come from: a file, a folder, or a data set of the Hugging Face hub.

Everything local works without a network. Nothing here runs code that comes with a data set.
"""

import re
from pathlib import Path
from typing import Any

from triune.data.files import data_suffix, read_file
from triune.data.nearest import nearest_name, unknown_name
from triune.errors import InputError
from triune.parsing import parse_json, parse_yaml

# Files of data folders that describe rows instead of holding them.
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The hub's own file names: train-00000-of-00001.parquet, with a hash behind it in older ones.
SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")

Splits = dict[str, list[Path]]


def read_rows(
    source: str | Path, *, config: str | None = None, split: str | None = None, field: str | None = None
) -> list[dict[str, Any]]:
    """All rows of `source`, in order, as field -> value.

    source: a file (.json, .jsonl, .csv, .parquet, …), a folder that `save_to_disk` of datasets wrote, the
    folder of a downloaded hub data set, or the name of one on the hub ("PKU-Alignment/BeaverTails").
    config, split: which part of a folder or hub data set; of a folder they may be left out where there is one
    only. field: which field of a .json file's object holds the rows, where the file is no array.

    Raises InputError with the place and the way out: see `read_file`, and for a missing file or folder, a
    config or split that does not exist (those that do are listed), a hub data set that cannot be reached.
    """
    path = _local_path(source)
    if path.is_dir() and (saved := _saved_folder(path, config)) is not None:
        return _read_saved(saved, split)
    if files := data_files(source, config=config, split=split):
        return [row for file in files for row in read_file(file, field)]
    return _read_hub(str(source), config, split)


def data_files(source: str | Path, *, config: str | None = None, split: str | None = None) -> tuple[Path, ...]:
    """The local files that `read_rows` reads, for a record to hash; empty for a data set on the hub."""
    path = _local_path(source)
    if path.is_file():
        if config is not None or split is not None:
            raise InputError(
                f"{path} is one file, without configs or splits; "
                f"got config {config!r}, split {split!r}: leave them out."
            )
        return (path,)
    if not path.is_dir():
        hub_name = isinstance(source, str) and HUB_NAME.fullmatch(source) and data_suffix(path) is None
        if hub_name and not path.parent.is_dir():
            return ()
        raise _missing(path)
    saved = _saved_folder(path, config)
    if saved is not None:
        return tuple(sorted((saved / split if split and (saved / split).is_dir() else saved).rglob("*.arrow")))
    by_config = _described_files(path) or _named_files(path)
    if not by_config:
        raise InputError(f"{path}: no data files in this folder; wanted .json, .jsonl, .csv, .parquet or .arrow.")
    return tuple(_choose_split(path, _choose_config(path, by_config, config), split))


def _local_path(source: str | Path) -> Path:
    # Path("") is the working folder, which nobody means who left the source empty.
    if not str(source).strip():
        raise InputError("the data source is empty; wanted a file, a folder or the name of a hub data set.")
    return Path(source).expanduser()


def _missing(path: Path) -> InputError:
    """The error for a path that does not exist, with the nearest name that does."""
    parent = path.parent
    if not parent.is_dir():
        return InputError(f"{path} does not exist, nor does its folder {parent}. Check the path.")
    near = nearest_name(path.name, sorted(entry.name for entry in parent.iterdir()))
    hint = f"did you mean {parent / near}?" if near else f"nothing in {parent} has a name like it."
    return InputError(f"{path} does not exist; {hint}")


def _saved_folder(folder: Path, config: str | None) -> Path | None:
    """The folder that save_to_disk wrote, if it is one (or if its sub-folder `config` is)."""
    place = folder / config if config else folder
    saved = (place / "dataset_dict.json").is_file() or (place / "state.json").is_file()
    return place if saved else None


def _read_saved(folder: Path, split: str | None) -> list[dict[str, Any]]:
    import pyarrow
    from datasets import load_from_disk

    if (folder / "dataset_dict.json").is_file():
        splits = _saved_splits(folder / "dataset_dict.json")
        if split is not None and split not in splits:
            raise unknown_name(f"{folder}: split", split, splits)
        if split is None and len(splits) != 1:
            raise InputError(f"{folder} has several splits: {', '.join(splits)}; name one of them.")
        folder = folder / (split or splits[0])
    # Without this, load_from_disk fails on a save without rows with an error about its own tables.
    if not any(folder.glob("*.arrow")):
        raise InputError(f"{folder}: no .arrow file, so no rows; wanted at least one row.")
    try:
        loaded = load_from_disk(str(folder))
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(f"{folder}: save_to_disk's folder is damaged ({error}); save it again.") from error
    if split is not None and loaded.split is not None and str(loaded.split) != split:
        raise unknown_name(f"{folder}: split", split, [str(loaded.split)])
    return loaded.to_list()


def _saved_splits(path: Path) -> list[str]:
    try:
        return [str(name) for name in parse_json(path.read_text(encoding="utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); save the data set again.") from error


def _data_files_below(folder: Path) -> list[Path]:
    """Data files below `folder`, without hidden ones (downloads keep a .cache) and descriptions."""
    return sorted(
        file
        for file in folder.rglob("*")
        if data_suffix(file) is not None
        and file.name not in DESCRIPTIONS
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _named_files(folder: Path) -> dict[str, Splits]:
    """config -> split -> files by the hub's names: CONFIG/SPLIT-00000-of-00001.parquet, CONFIG/SPLIT/0000.parquet."""
    found: dict[str, Splits] = {}
    for file in _data_files_below(folder):
        parts = list(file.relative_to(folder).parts[:-1])
        stem = SHARD.sub("", file.name.split(".")[0])
        split = parts.pop() if stem.isdecimal() and parts else stem
        config = "/".join(parts if parts != ["data"] else [])
        found.setdefault(config, {}).setdefault(split, []).append(file)
    return found


def _described_files(folder: Path) -> dict[str, Splits]:
    """config -> split -> files, as the data card (README.md) declares them; empty where it does not."""
    import yaml

    card = folder / "README.md"
    if not card.is_file():
        return {}
    parts = re.split(r"^---\s*$", card.read_text(encoding="utf-8", errors="replace"), maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        head = parse_yaml(parts[1])
    except yaml.YAMLError as error:
        raise InputError(f"{card}: the head between the two --- is not YAML ({error}); mend or remove it.") from error
    found: dict[str, Splits] = {}
    entries = (head.get("configs") if isinstance(head, dict) else None) or []
    if not isinstance(entries, list):
        raise InputError(f"{card}: configs wants a list, got {entries!r:.60}; mend or remove it.")
    for entry in entries:
        if not isinstance(entry, dict):
            raise InputError(
                f"{card}: configs wants config_name and data_files, got {entry!r:.60}; mend or remove it."
            )
        splits = {name: _matching(folder, patterns) for name, patterns in _declared_splits(card, entry).items()}
        splits = {name: files for name, files in splits.items() if files}
        if splits:
            found[str(entry.get("config_name", "default"))] = splits
    return found


def _declared_splits(card: Path, entry: dict[Any, Any]) -> dict[str, list[str]]:
    """split -> patterns of one config of a data card; bare patterns are the split "train"."""
    declared = entry.get("data_files")
    splits: dict[str, list[str]] = {}
    items = [declared] if isinstance(declared, str | dict) else declared or []
    if not isinstance(items, list):
        raise InputError(f"{card}: data_files wants split and path, got {items!r:.60}; mend or remove it.")
    for item in items:
        split, patterns = "train", item
        if isinstance(item, dict):
            split, patterns = str(item.get("split")), item.get("path")
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"{card}: data_files wants split and path, got {item!r}; mend or remove it.")
        splits.setdefault(split, []).extend(patterns)
    return splits


def _matching(folder: Path, patterns: list[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise InputError(f"{folder / 'README.md'}: data_files {pattern!r} leads out of the data set's folder.")
        try:
            found = sorted(folder.glob(pattern))
        except (ValueError, IndexError, NotImplementedError, OSError) as error:
            raise InputError(f"{folder / 'README.md'}: data_files {pattern!r:.60} is no pattern ({error}).") from error
        files += [file for file in found if file.is_file() and file not in files]
    return files


def _choose_config(folder: Path, by_config: dict[str, Splits], config: str | None) -> Splits:
    if config is None:
        # "" is the config of files that stand in the folder itself, or in its sub-folder "data".
        config = next((name for name in ("", "default") if name in by_config), None)
        if config is None and len(by_config) > 1:
            raise InputError(f"{folder} has several configs: {', '.join(by_config)}; name one of them.")
        return by_config[next(iter(by_config)) if config is None else config]
    if config == "default" and "default" not in by_config:
        config = ""  # the hub's name for the config of a data set that declares none
    if config not in by_config:
        raise unknown_name(f"{folder}: config", config, [name or "default" for name in by_config])
    return by_config[config]


def _choose_split(folder: Path, splits: Splits, split: str | None) -> list[Path]:
    if split is None:
        if len(splits) > 1:
            raise InputError(f"{folder} has several splits: {', '.join(splits)}; name one of them.")
        split = next(iter(splits))
    files = splits.get(split)
    if files is None:
        begins = re.compile(re.escape(split) + r"[^A-Za-z0-9]")
        files = [file for name, found in splits.items() if begins.match(name) for file in found]
    if not files:
        raise unknown_name(f"{folder}: split", split, splits)
    kinds = sorted({data_suffix(file) or "" for file in files})
    if len(kinds) > 1:
        raise InputError(
            f"{folder}: split {split!r} is there as {' and as '.join(kinds)}; keep one, lest rows count twice."
        )
    return files


def _read_hub(name: str, config: str | None, split: str | None) -> list[dict[str, Any]]:
    if split is None:
        raise InputError(f"data set {name!r} of the hub: no split given; name one (train), or give a local path.")
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, config, split=split)
    # No network and no such data set are OSErrors of load_dataset, no such config or split are ValueErrors.
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"data set {name!r} (config {config!r}, split {split!r}) cannot be loaded: {reason}. "
            f"Without a network, fetch it elsewhere (hf download {name} --repo-type dataset --local-dir DIR) "
            "and give DIR, or a .json, .jsonl, .csv or .parquet file, as the source."
        ) from error
    return loaded.to_list()
