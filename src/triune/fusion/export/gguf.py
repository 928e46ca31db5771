"""The fused model as one GGUF file for llama.cpp: architecture "llama" with experts, or "qwen3moe" for Qwen3 bases.

Format: a header with settings and the list of tensors, then their bytes, each at a multiple of 32
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The header is made by the package gguf; the tensors are
made and written one expert's matrix at a time.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from triune.errors import InputError
from triune.fusion.export.gguf_model import Architecture, Stored, check_model, context_length, describe, tensors
from triune.fusion.export.gguf_tokenizer import Vocabulary, read_vocabulary, write_vocabulary
from triune.fusion.export.source import Options, Source, check_tokens_routed
from triune.models.shards import check_room, disk_full
from triune.progress import SILENT, Progress

FILE = "model.gguf"
SERVE = f"""\
llama.cpp (nothing of Triune is needed): `llama-server -m {{out}}/{FILE}`, or `llama-cli -m {{out}}/{FILE}`.
To make it smaller: `llama-quantize {{out}}/{FILE} small.gguf Q8_0`."""
ALIGNMENT = 32
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


def limits(source: Source, options: Options) -> list[str]:
    """What to know of this form, for the model card."""
    stored = FLOATS[options.dtype or source.dtype]
    return [
        f"Matrices are stored as {stored}; llama.cpp's own tools make them smaller.",
        *_notes(source, _vocabulary(source, options)),
    ]


def check(source: Source, options: Options) -> None:
    """Raise InputError for a model or a tokenizer that llama.cpp does not compute as transformers does.

    And where the package gguf is not installed, or the dtype is none of float32, float16 and bfloat16.
    """
    check_tokens_routed(source, "gguf")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError("--format gguf needs the package gguf; install it: pip install 'triune[gguf]'") from error
    dtype = options.dtype or source.dtype
    if dtype not in FLOATS:
        raise InputError(f"--format gguf has no {dtype}; give --dtype float32, bfloat16 or float16")
    check_model(source)
    _vocabulary(source, options)


def write(source: Source, options: Options, folder: Path, progress: Progress = SILENT) -> None:
    """Write `model.gguf`, whole or not at all; an interrupted call goes on behind the last whole tensor.

    Matrices are stored in `options.dtype`; vectors and routers in float32, the temperatures folded into the routers.
    Raises InputError as `check`, where a number overflows the dtype, or where the disk has no room.
    """
    path = folder / FILE
    if path.is_file():
        progress.say(f"  {FILE} is there already")
        return
    kind, vocabulary = check_model(source), _vocabulary(source, options)
    for note in _notes(source, vocabulary):
        progress.say(f"  {note}")
    plan = tensors(source, options.dtype or source.dtype, kind)
    with disk_full(folder):
        head = header(source, plan, (kind, vocabulary, FLOATS[options.dtype or source.dtype]), folder)
        draft = path.with_name(f"{FILE}.part")
        n_done, begin = _resumed(draft, head, plan)
        check_room(folder, len(head) + sum(_padded(stored.n_bytes) for stored in plan) - begin)
        with draft.open("r+b" if begin else "wb") as file, progress.task(f"writing {FILE}", len(plan)) as advance:
            file.seek(begin)
            file.truncate()
            if not begin:
                file.write(head)
            advance(n_done)
            for stored in plan[n_done:]:
                _write_tensor(file, stored)
                advance()
        draft.replace(path)


def _vocabulary(source: Source, options: Options) -> Vocabulary | None:
    """The tokenizer, or None where the caller chose to leave it out."""
    return read_vocabulary(source.folder, source.text.vocab_size) if options.tokenizer else None


def _notes(source: Source, vocabulary: Vocabulary | None) -> list[str]:
    length = context_length(source.text)
    notes = list(vocabulary.notes) if vocabulary else ["The file holds no tokenizer: give llama.cpp token ids."]
    if length < source.text.max_position_embeddings:
        notes.append(f"The context ends at {length} tokens, the sliding window: llama.cpp's llama has none.")
    return notes


def header(
    source: Source, plan: Sequence[Stored], what: tuple[Architecture, Vocabulary | None, str], folder: Path
) -> bytes:
    """Everything before the first tensor's bytes, padded. `what`: architecture, tokenizer and float type."""
    import gguf

    kind, vocabulary, floats = what
    scratch = folder / f"{FILE}.head.part"
    writer = gguf.GGUFWriter(scratch, kind.name)
    try:
        writer.add_type("model")
        writer.add_name(" + ".join(source.config.expert_names or []))
        writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[floats]]))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        describe(writer, source, kind)
        if vocabulary is None:
            writer.add_tokenizer_model("none")
        else:
            write_vocabulary(writer, vocabulary)
        _list_tensors(writer, plan)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        text = scratch.read_bytes()
    finally:
        writer.close()
        scratch.unlink(missing_ok=True)
    return text.ljust(_padded(len(text)), b"\0")


def _list_tensors(writer: Any, plan: Sequence[Stored]) -> None:
    import gguf
    import numpy as np

    for stored in plan:
        kind = gguf.GGMLQuantizationType[FLOATS[stored.dtype]]
        # With the type given, the numpy dtype only says that the shape counts elements.
        writer.add_tensor_info(stored.name, stored.shape, np.dtype(np.float32), stored.n_bytes, raw_dtype=kind)


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _resumed(draft: Path, head: bytes, plan: Sequence[Stored]) -> tuple[int, int]:
    """How many tensors an interrupted call left whole, and where the next one begins; (0, 0) for a new file."""
    if not draft.is_file():
        return 0, 0
    with draft.open("rb") as file:
        if file.read(len(head)) != head:
            return 0, 0
    size, end = draft.stat().st_size, len(head)
    for count, stored in enumerate(plan):
        if end + _padded(stored.n_bytes) > size:
            return count, end
        end += _padded(stored.n_bytes)
    return len(plan), end


def _write_tensor(file: BinaryIO, stored: Stored) -> None:
    written = 0
    for piece in stored.pieces():
        raw = _raw(piece, stored)
        written += raw.nbytes
        file.write(raw)
    if written != stored.n_bytes:
        raise ValueError(f"{stored.name} was made with {written} bytes, planned with {stored.n_bytes}")
    file.write(bytes(_padded(written) - written))
    file.flush()
    os.fsync(file.fileno())  # what `_resumed` finds is on the disk


def _raw(piece: Tensor, stored: Stored) -> memoryview:
    if piece.dtype != stored.dtype:
        raise ValueError(f"{stored.name} was made as {piece.dtype}, planned as {stored.dtype}")
    raw = piece.detach().cpu().contiguous().flatten().view(torch.uint8)
    if sys.byteorder == "big":  # the file is little-endian
        raw = raw.view(-1, stored.dtype.itemsize).flip(1).flatten()
    return raw.numpy().data
