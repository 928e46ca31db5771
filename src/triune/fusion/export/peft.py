"""The fused model taken apart again: one PEFT adapter an expert, and the routers beside them.

An adapter holds an expert's feed-forward increments (α = r, so that its scale is 1). What fusing or aligning changed
in the shared weights belongs to no expert: the changed tensors stand whole in shared.safetensors, to be put into the
base before an adapter is loaded. Of a model that routes whole prompts, the router stands beside them in the form of
`triune.fusion.router_file`; see `handover`.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.errors import InputError
from triune.experts.adapters import write_adapter
from triune.experts.lowrank import LowRank
from triune.experts.task_vector import TaskVector
from triune.fusion.export import difference, handover
from triune.fusion.export.source import MATRICES, Options, Source, is_added, is_routing
from triune.fusion.router_file import EXPERTS, SHARED
from triune.models.carrying import carry
from triune.models.shards import cast, check_room, disk_full
from triune.models.store import hash_weights, save_tensors
from triune.progress import SILENT, Progress
from triune.record import write_json

ROUTERS, ROUTING = "routers.safetensors", "routing.json"
SERVE = f"""\
PEFT (nothing of Triune is needed): `PeftModel.from_pretrained(base, "{{out}}/{EXPERTS}/NAME")`, with `base` the model
that its adapter_config.json names; where there is a {SHARED}, `base.load_state_dict(load_file("{{out}}/{SHARED}"),
strict=False)` first. {ROUTERS} and {ROUTING} hold what the mixture adds. To fuse again: `triune fuse` with
these folders."""


def what(source: Source) -> str:
    """One line for the model card."""
    if by_prompt(source):
        return "Every expert as a PEFT adapter of the base, and the router that picks one of them for a prompt."
    return "Every expert as a PEFT adapter of the base, and the routers beside them."


def by_prompt(source: Source) -> bool:
    """Whether the model routes whole prompts."""
    return source.config.routing == "prompt"


def serve(source: Source) -> str:
    """How to use it, with {out} for the folder's place."""
    return handover.SERVE if by_prompt(source) else SERVE


def check_top1(source: Source, options: Options) -> None:
    """As `check`, but lets models pass that differ from base + the chosen adapter."""
    if not by_prompt(source):
        raise InputError(
            f"{source.folder} routes every token, and --format {handover.TOP_1} is for models that route whole "
            "prompts (fuse.prompt_routing); use --format peft"
        )
    check(source, options, anyway=True)


def check(source: Source, options: Options, *, anyway: bool = False) -> None:
    """Raise InputError where no base is given, it is absent or another one, or an expert has no adapter.

    An expert has none where it changes nothing, or where its name is no folder's. Of a model that routes whole
    prompts, also as `handover.check`.
    """
    if by_prompt(source):
        handover.check(source, anyway=anyway)
    if not options.base:
        raise InputError(
            "--format peft needs to know the base: an adapter means nothing beside other weights; give its hub name "
            "or its folder with --base, or use --format compact, which holds the base"
        )
    difference.check_base(source, difference.base_folder(options))
    for index, name in enumerate(source.config.expert_names or []):
        if name.startswith("."):
            raise InputError(f"the expert {name!r} cannot be a folder's name; use --format compact, which keeps it")
        if not any(source.ranks(which)[index] for which in MATRICES):
            raise InputError(
                f"the expert {name!r} changes no feed-forward block, and PEFT has no adapter without a module; use "
                "--format compact, which keeps it"
            )


def limits(source: Source, options: Options) -> list[str]:
    """What to know of this form, for the model card."""
    if by_prompt(source):
        return handover.limits(source)
    return [
        "Each adapter is one expert alone; the mixture of them needs Triune (or your own use of the routers).",
        f"Where the fused model's shared weights (attention) differ from the base, {SHARED} holds them; plain PEFT "
        "does not load that file by itself.",
    ]


def write(source: Source, options: Options, folder: Path, progress: Progress = SILENT) -> None:
    """One adapter folder an expert, routers.safetensors and routing.json (or the one router of whole prompts), the
    tokenizer, and shared.safetensors where shared weights differ from the base's.

    Raises InputError where a number does not fit in the dtype, the disk has no room, or the base given is not the one
    that the model was fused from.
    """
    dtype, base = options.dtype or source.dtype, difference.base_folder(options)
    shared = difference.replaced(source, base, dtype)
    base_hash, names = hash_weights(base), list(source.config.expert_names or [])
    check_room(folder, _n_bytes(source, shared, dtype))
    with disk_full(folder), progress.task("writing adapters", len(names)) as advance:
        for index, name in enumerate(names):
            vector = TaskVector(name, parts(source, index, dtype), base_hash)
            write_adapter(vector, folder / EXPERTS / name, difference.base_name(options))
            advance()
        if shared:
            progress.say(f"  {len(shared)} shared tensors differ from the base: see {SHARED}")
            save_tensors(folder / SHARED, {name: cast(source.tensor(name), dtype, name) for name in shared})
        _write_routing(source, folder, _base(options, base_hash, shared), progress)
        carry(source.folder, folder)


def _base(options: Options, base_hash: str, shared: list[str]) -> dict[str, Any]:
    """What the adapters belong to."""
    return {"base_model_name_or_path": difference.base_name(options), "base_sha256": base_hash, "shared": shared}


def _write_routing(source: Source, folder: Path, base: dict[str, Any], progress: Progress) -> None:
    if by_prompt(source):
        handover.write(source, folder, base, progress)
        return
    save_tensors(folder / ROUTERS, {name: source.tensor(name) for name in source.infos if is_routing(name)})
    write_json(folder / ROUTING, routing(source, base))


def parts(source: Source, index: int, dtype: torch.dtype) -> dict[str, LowRank]:
    """One expert's increments by module name; a matrix that it leaves alone (all zeros) is left out."""
    found = {}
    for layer in range(source.text.num_hidden_layers):
        for which in MATRICES:
            name = f"model.layers.{layer}.mlp.{which}_proj"
            part = source.factors(layer, which)[index]
            if part.rank and (part.a.any() or part.b.any()):
                found[name] = LowRank(_own(part.b, dtype, name), _own(part.a, dtype, name))
    return found


def _own(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    # A copy: a view would keep the factors of all experts in memory.
    return cast(tensor, dtype, name).clone(memory_format=torch.contiguous_format)


def routing(source: Source, base: dict[str, Any]) -> dict[str, Any]:
    """What routing.json says: how the routers' rows and the adapters make the mixture."""
    config = source.config
    return {
        "experts": list(config.expert_names or []),
        "num_experts_per_tok": config.num_experts_per_tok,
        "norm_topk_prob": config.norm_topk_prob,
        "router_temperature": config.router_temperature,
        "expert_importance": config.expert_importance,
        "router_bias": config.router_bias,
        "post_norm": config.post_norm,
        "output_calibration": getattr(config, "output_calibration", None),
        "expert_weights": config.expert_weights,
        "formula": "p = softmax(W x / T + log g + b), x the input of the layer's feed-forward block, in float32, with "
        "T = router_temperature (one, or one a layer), g = expert_importance and b = router_bias[layer] (null: "
        "nothing is added); the largest num_experts_per_tok are kept (and divided by their sum where norm_topk_prob); "
        "y = sum_a p_a FFN_a(x), layer-normalised where post_norm, and corrected by F and N where output_calibration "
        "(their weights; see triune.fusion.output_calibration). The adapters hold their task vectors already "
        "multiplied with expert_weights.",
        **base,
    }


def _n_bytes(source: Source, shared: list[str], dtype: torch.dtype) -> int:
    routers = [name for name in source.infos if is_routing(name)]
    rest = [*shared, *(name for name in source.infos if is_added(name) and not is_routing(name))]
    sizes = dict.fromkeys(rest, dtype.itemsize) | dict.fromkeys(routers, 4)
    return sum(math.prod(source.infos[name].shape) * size for name, size in sizes.items())
