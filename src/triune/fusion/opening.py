"""Any model of a run, ready to use: the base, the base with an adapter merged in, a full or a fused model."""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.adapters import CONFIG, read_adapter
from triune.experts.task_vector import TaskVector
from triune.fusion import borrowed
from triune.fusion.configuration import TriuneConfig
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.prompt_router import ROUTINGS
from triune.models.hub import locate
from triune.models.loading import as_saved, load_base, load_tokenizer, quiet
from triune.models.preflight import STRANGE, SUPPORTED, check_base, check_sizes, complain, empty_model
from triune.models.store import folder_header, hash_weights, nonfinite_counts
from triune.parsing import is_plain_name, parse_json
from triune.recipe import Base

MOST_ABSENT = 1 << 28  # numbers: 1 GB of float32
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def open_model(folder: Path | None, base: Base) -> Loaded:
    """The base itself (None), an adapter merged into it, a fused model, or any other model (a full fine-tune, say).

    Where `base.quantised` is set all are quantised so, but for a fused model, which says itself how it was made; an
    adapter is then not merged.
    Raises InputError where the folder holds none of them, or the adapter does not fit the base or was trained on
    other weights.
    """
    dtype, quantised = getattr(torch, base.dtype), base.quantised
    if folder is None:
        return load_base(str(base.path), dtype=dtype, quantised=quantised)
    if (folder / CONFIG).is_file():
        model, tokenizer = load_base(str(base.path), dtype=dtype, quantised=quantised)
        vector = read_adapter(folder, folder.name, locate(str(base.path)))
        check_base_hash(vector, base)
        if quantised is not None:
            return _beside(model, folder), tokenizer
        task_vector.apply(vector, model)
        return model, tokenizer
    if is_fused(folder):
        return open_fused(folder, dtype)
    return load_base(str(folder), dtype=dtype, quantised=quantised)


def _beside(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A quantised base with an adapter in front of its packed weights, as QLoRA trains it: PEFT's own layers."""
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    found: PreTrainedModel = adapted.get_base_model()
    return found.eval()


def check_model(folder: Path, base: Base) -> None:
    """Raise InputError unless the folder holds an adapter of this base, a fused model, or a base; loads no model."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; give the folder of an adapter or of a model")
    if (folder / CONFIG).is_file():
        check_base_hash(read_adapter(folder, folder.name, locate(str(base.path))), base)
    elif is_fused(folder):
        _check_fused(folder)
    else:
        check_base(folder)


def check_base_hash(vector: TaskVector, base: Base) -> None:
    """Raise InputError where an expert says that it was trained on other weights than the base's.

    A full fine-tune says nothing, and need not: whatever base is given, its difference from that one is what is used.
    """
    if not vector.base_hash:
        return
    own = hash_weights(locate(str(base.path)))
    if vector.base_hash != own:
        raise InputError(
            f"expert {vector.axis!r} was trained on other base weights (sha256 {vector.base_hash[:12]}, this base has "
            f"{own[:12]}); give the base that it was trained on"
        )


def is_fused(folder: Path) -> bool:
    """Whether the folder holds a fused model. Raises InputError where its config.json cannot be read."""
    return _settings(folder).get("model_type") == TriuneConfig.model_type


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a model configuration ({error}); give a model folder") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a model configuration (a JSON {type(found).__name__}); give a model folder")
    return found


def _check_fused(folder: Path) -> None:
    """Raise InputError for a configuration that no fused model has, and for truncated or non-finite weights."""
    _check_settings(folder)
    _check_shapes(folder)
    broken = nonfinite_counts(folder)
    if broken:
        name, count = next(iter(broken.items()))
        raise InputError(f"{folder}: {count} NaN or infinite values in {name} ({len(broken)} tensors); fuse again")


def _check_shapes(folder: Path) -> None:
    """Raise InputError where the weights are not those of the configuration: memory would be taken by the latter."""
    try:
        config = TriuneConfig.from_pretrained(folder)
    except (StrictDataclassError, *STRANGE) as error:
        raise InputError(f"{folder / 'config.json'}: {' '.join(str(error).split())}; fuse again") from error
    header = folder_header(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in empty_model(folder, config).state_dict().items()}
    other = sorted(name for name in header.keys() & wanted.keys() if header[name].shape != wanted[name])
    absent = sorted(wanted.keys() - header.keys())
    # A few that are missing are named after loading; a folder that borrows its base has them elsewhere.
    borrows = bool(_settings(folder).get(borrowed.NAME))
    if not borrows and sum(math.prod(wanted[name]) for name in absent) > MOST_ABSENT:
        complain(folder, {"missing": absent})
    complain(folder, {"of another shape": [f"{name} {header[name].shape}, not {wanted[name]}" for name in other]})


def _check_settings(folder: Path) -> None:
    found = _settings(folder)
    names, k = found.get("expert_names"), found.get("num_experts_per_tok")
    text, ranks = found.get("text_config"), found.get("expert_ranks")
    if isinstance(text, dict):
        check_sizes(folder / "config.json", text)
    right = {
        "model_type (triune)": found.get("model_type") == TriuneConfig.model_type,
        "expert_names (two or more, each a plain name)": isinstance(names, list)
        and all(map(is_plain_name, names))
        and len(set(names)) == len(names) > 1,
        "num_experts_per_tok (1 to the number of experts)": isinstance(k, int)
        and 1 <= k <= (len(names) if isinstance(names, list) else 0),
        **_routing_settings(found, len(names) if isinstance(names, list) else 0),
        "expert_ranks (gate, up and down, one rank an expert)": isinstance(ranks, dict)
        and ranks.keys() == {"gate", "up", "down"}
        and all(_is_ranks(own, len(names) if isinstance(names, list) else 0) for own in ranks.values()),
        f"text_config (a model of {', '.join(SUPPORTED)})": isinstance(text, dict)
        and text.get("model_type") in SUPPORTED,
    }
    wrong = [what for what, is_right in right.items() if not is_right]
    if wrong:
        got = found.get(wrong[0].split()[0])
        raise InputError(
            f"{folder} holds no fused model: its config.json lacks {wrong[0]}; it has {got!r:.60}; give the folder of "
            "`triune fuse` or `triune align`"
        )


def _routing_settings(found: dict[str, Any], n_experts: int) -> dict[str, bool]:
    """Whether each setting of the routing is one; those that older folders lack may be missing."""
    text = found.get("text_config")
    n_layers = text.get("num_hidden_layers") if isinstance(text, dict) else None
    n_routers = 1 if found.get("routing") == "prompt" else n_layers
    temperature, biases = found.get("router_temperature"), found.get("router_bias")
    gamma, weights = found.get("expert_importance"), found.get("expert_weights")
    output = found.get("output_calibration")
    each = temperature if isinstance(temperature, list) else [temperature]
    rows = biases if isinstance(biases, list) else []
    return {
        f"routing ({' or '.join(ROUTINGS)})": found.get("routing", "token") in ROUTINGS,
        "router_temperature (above 0, one number or one a layer)": _are_finite(each)
        and min(each) > 0
        and (each is not temperature or len(each) == n_routers),
        "expert_importance (above 0, one number an expert)": gamma is None
        or (_are_finite(gamma, n_experts) and min(gamma) > 0),
        "router_bias (of each layer, one number an expert)": biases is None
        or (len(rows) == n_routers and all(_are_finite(row, n_experts) for row in rows)),
        "expert_weights (other than 0, one number an expert)": weights is None
        or (_are_finite(weights, n_experts) and all(weights)),
        "post_norm (true or false)": isinstance(found.get("post_norm", False), bool),
        "output_calibration (two numbers from 0 on, and a width from 1 on)": output is None
        or (_are_finite(output, 2) and min(output) >= 0 and _is_count(found.get("output_calibration_width"))),
    }


def _are_finite(found: Any, n: int | None = None) -> bool:
    """Whether it is a list of finite numbers, of `n` where that is given and of one at least."""
    return (
        isinstance(found, list)
        and len(found) > 0
        and len(found) == (n or len(found))
        and all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in found)
    )


def _is_count(found: Any) -> bool:
    return type(found) is int and found >= 1


def _is_ranks(found: Any, n_experts: int) -> bool:
    return isinstance(found, list) and len(found) == n_experts and all(type(r) is int and r >= 0 for r in found)


def open_fused(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[TriuneForCausalLM, PreTrainedTokenizerBase]:
    """A fused model and its tokenizer, whole or not at all.

    Raises InputError for a folder without a fused model, truncated or non-finite weights, missing or strange tensors.
    """
    _check_fused(folder)
    with quiet(), as_saved(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with the names
            output_loading_info=True,
        )
    model, info = loaded
    wrong = {name: sorted(map(str, keys))[:4] for name, keys in info.items() if keys}
    if wrong:
        raise InputError(f"{folder} is not a whole fused model ({wrong}); fuse again")
    return model.eval(), load_tokenizer(folder)
