"""Weights on disk, safetensors only: a header is read and believed only after every size in it has been checked."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from triune.errors import InputError
from triune.parsing import is_plain_name, parse_json

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
MAX_SIZE = (1 << 63) - 1  # of a dimension or an offset, as torch counts them
CHUNK = 1 << 24  # elements looked at together when a tensor is scanned


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    n_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file holds, without reading any of them.

    Checked: the header's length against the file's, its JSON, each tensor's dtype and shape against its
    bytes, and that the tensors fill the rest of the file without gap or overlap. So nothing is allocated on a
    wrong number.

    Raises:
        InputError: the file is missing, truncated, or not a safetensors file; with the sizes got and wanted.
    """
    return _read(path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """The free text entries that `save_tensors` put beside the tensors.

    Raises InputError as `read_header`.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(path, f"the header claims {length:,} bytes and the file has {size:,}")
        text = file.read(length)
    try:
        header = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is a JSON {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not an object")
    infos = _placed(path, header, size - 8 - length)
    try:
        # The library reads some headers otherwise than Python's JSON (a key given twice, -0, NaN): both must agree.
        with safe_open(path, "pt") as opened:
            if set(opened.keys()) != infos.keys():
                raise _damaged(path, "its header can be read in two ways")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, f"{error}") from error
    return infos, {str(key): str(value) for key, value in metadata.items()}


def _placed(path: Path, header: dict[str, Any], n_data: int) -> dict[str, TensorInfo]:
    """The header's entries in the order of their bytes, which must fill the file's `n_data` without gap or overlap."""
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    infos = {}
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if stop > n_data:
            raise _damaged(path, f"{name} ends at byte {stop:,} of the data and the file holds {n_data:,}")
        if start != end:
            raise _damaged(path, f"{name} starts at byte {start:,} of the data; the one before it ends at {end:,}")
        infos[name] = _info(path, name, header[name], stop - start)
        end = stop
    if end != n_data:
        raise _damaged(path, f"its tensors take {end:,} bytes and the file holds {n_data:,} after the header")
    return infos


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end, of an entry in the right form."""
    if isinstance(entry, dict):
        offsets = entry.get("data_offsets")
        if _naturals(entry.get("shape")) and _naturals(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]:
            return offsets[0], offsets[1]
    raise _damaged(path, f"its entry for {name} is {entry!r:.100}")


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_SIZE for item in value)


def _info(path: Path, name: str, entry: dict[str, Any], n_bytes: int) -> TensorInfo:
    kind, shape = str(entry.get("dtype")), tuple(entry["shape"])
    if kind not in DTYPES:
        known = ", ".join(DTYPES)
        raise InputError(f"{path}: {name} has dtype {kind!r}; supported: {known}; convert the file first")
    wanted = math.prod(shape) * DTYPES[kind].itemsize
    if n_bytes != wanted:
        raise _damaged(path, f"{name} {list(shape)} {kind} needs {wanted:,} bytes and its offsets span {n_bytes:,}")
    if math.prod(size or 1 for size in shape) > MAX_SIZE:  # torch multiplies an empty tensor's strides out too
        raise _damaged(path, f"{name} has the shape {list(shape)}, which no tensor can have")
    return TensorInfo(DTYPES[kind], shape, n_bytes)


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: truncated or not a safetensors file: {what}; download it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: the single one, or all that its index names.

    Raises InputError where there are none, a shard is missing, the index is unreadable, or all are pickled.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return [folder / name for name in _shards(folder / INDEX_FILE)]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder} has only pickled weights ({', '.join(pickles[:3])}); a pickle can run code when read and is "
            "refused. Where you trust it, convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    raise InputError(f"{folder} has no weights; wanted {SINGLE_FILE}, or {INDEX_FILE} with its shards")


def _shards(index: Path) -> list[str]:
    try:
        weight_map = parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no readable weight_map ({error!r}); download it again") from error
    outside = [name for name in names if not is_plain_name(name)]
    if outside or not names:
        raise InputError(f"{index}: names the shards {outside or names}; allowed are files of the same folder")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise InputError(
            f"{index.parent}: {len(absent)} of {len(names)} shards are missing: {', '.join(absent)}; download them"
        )
    held = {key for name in names for key in read_header(index.parent / name)}
    lost = sorted(set(weight_map) - held)
    if lost:
        raise InputError(f"{index}: {len(lost)} tensors are in no shard, first {lost[0]}; download the folder again")
    return names


def folder_header(folder: Path) -> dict[str, TensorInfo]:
    """The headers of all weight files of a folder as one, sorted by name.

    Raises:
        InputError: as `weight_files` and `read_header`, or a tensor stands in two files.
    """
    return {name: info for name, (_, info) in _located(folder).items()}


def _located(folder: Path) -> dict[str, tuple[Path, TensorInfo]]:
    found: dict[str, tuple[Path, TensorInfo]] = {}
    for path in weight_files(folder):
        for name, info in read_header(path).items():
            if name in found:
                raise InputError(f"{name} is in both {found[name][0].name} and {path.name} of {folder}; keep one")
            found[name] = (path, info)
    return dict(sorted(found.items()))


def iterate_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model folder, one at a time, sorted by name; only the one yielded is in memory.

    Raises:
        InputError: as `folder_header`, before the first tensor is read.
    """
    located = _located(folder)
    with ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, "pt")) for path, _ in located.values()}
        for name, (path, _) in located.items():
            yield name, files[path].get_tensor(name)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file, on the CPU.

    Raises InputError as `read_header`.
    """
    read_header(path)
    return load_file(path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, whole or not at all: under a temporary name, synced, then renamed into place.

    Tensors that share memory (tied weights, views) are written each in full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(_own_memory(tensors), temporary, metadata={"format": "pt", **(metadata or {})})
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share storage, as the format wants them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        address = own.untyped_storage().data_ptr()
        separate[name] = own.clone() if address in seen else own
        seen.add(address)
    return separate


def sync(path: Path) -> None:
    """Write a file, or a folder's list of files, to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def nonfinite_counts(folder: Path) -> dict[str, int]:
    """How many NaN or infinite entries each tensor has; tensors without any are left out.

    Raises:
        InputError: as `folder_header`.
    """
    counts = {name: n_nonfinite(tensor) for name, tensor in iterate_tensors(folder)}
    return {name: count for name, count in counts.items() if count}


def n_nonfinite(tensor: Tensor) -> int:
    """How many NaN or infinite entries a tensor of any dtype has."""
    if not tensor.is_floating_point():
        return 0
    chunks = tensor.flatten().split(CHUNK)
    # One-byte floats have no isfinite of their own.
    wide = (chunk.float() if chunk.element_size() == 1 else chunk for chunk in chunks)
    return sum(int((~chunk.isfinite()).sum()) for chunk in wide)


def hash_weights(folder: Path) -> str:
    """sha256 over every tensor's name, dtype, shape and bytes, sorted by name: the same however it is sharded.

    Raises:
        InputError: as `folder_header`.
    """
    digest = hashlib.sha256()
    for name, tensor in iterate_tensors(folder):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
