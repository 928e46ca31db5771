"""The fused model in its own factored form: whole, or beside a base that it names and does not repeat.

Whole, the folder holds the base's weights, the experts' factors and the routers: about base + adapters. With --base
it holds factors, routers and what of the shared weights differs from the base: about the adapters alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from triune.fusion import borrowed
from triune.fusion.export import difference
from triune.fusion.export.source import Options, Source, is_added
from triune.fusion.prompt_router import PROMPT_ROUTER
from triune.models.carrying import carry
from triune.models.shards import Planned, cast, write_shards
from triune.models.store import hash_weights
from triune.parsing import parse_json
from triune.progress import SILENT, Progress
from triune.record import write_json

SERVE = """\
With Triune installed: `import triune`, then `AutoModelForCausalLM.from_pretrained("{out}")`.
Where the folder names a base instead of holding it, that base must be at its place or in the hub's cache; another
place is given with `from_pretrained("{out}", base_model_name_or_path=...)`."""


def check(source: Source, options: Options) -> None:
    """Every fused model has this form. Raises InputError for a base that is absent or has other tensors."""
    if options.base:
        difference.check_base(source, difference.base_folder(options))


def limits(source: Source, options: Options) -> list[str]:
    """What to know of this form, for the model card."""
    whole = ["It loads with the package triune only (no remote code); the native format loads without."]
    if not options.base:
        return whole
    name = difference.base_name(options)
    return [*whole, f"It holds no base weights: those of {name} are read, and their hash is checked."]


def write(source: Source, options: Options, folder: Path, progress: Progress = SILENT) -> None:
    """Weights, configuration and tokenizer; routers stay in float32, everything else is stored in the dtype.

    As `shards.write_shards` for interruptions. Raises InputError where a number does not fit in the dtype, the disk
    has no room, or the base given is not the one that the model was fused from.
    """
    dtype = options.dtype or source.dtype
    shared = difference.shared_names(source)
    config = _config(source, dtype)
    if options.base:
        base = difference.base_folder(options)
        shared = difference.replaced(source, base, dtype)
        if shared:
            progress.say(f"  {len(shared)} tensors differ from the base and are stored: {shared[0]}, …")
        config |= {
            borrowed.NAME: difference.base_name(options),
            borrowed.HASH: hash_weights(base),
            borrowed.DTYPE: str(dtype).removeprefix("torch."),
        }
    carry(source.folder, folder)
    write_shards(plan(source, shared, dtype), folder, options.max_shard_bytes, progress)
    write_json(folder / "config.json", config)


def plan(source: Source, shared: Sequence[str], dtype: torch.dtype) -> list[Planned]:
    """The shared tensors named, and every factor and router."""
    names = [*shared, *(name for name in source.infos if is_added(name))]
    return [_planned(source, name, torch.float32 if _is_whole(name) else dtype) for name in names]


def _is_whole(name: str) -> bool:
    return name.endswith(".router.weight") or name.startswith(PROMPT_ROUTER)


def _planned(source: Source, name: str, dtype: torch.dtype) -> Planned:
    def make() -> torch.Tensor:
        return cast(source.tensor(name), dtype, name)

    return Planned(name, dtype, source.infos[name].shape, make)


def _config(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """The fused folder's own configuration, in the dtype."""
    found: dict[str, Any] = parse_json((source.folder / "config.json").read_text(encoding="utf-8"))
    short = str(dtype).removeprefix("torch.")
    return found | {"dtype": short, "text_config": found["text_config"] | {"dtype": short}}
