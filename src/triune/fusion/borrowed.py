"""A fused folder that borrows its base: it holds what the base does not, and its config.json names the base.

Three keys of config.json: `base_model_name_or_path`, where the rest of the weights is; `base_sha256`, which weights
those are (`triune.models.store.hash_weights`); `base_dtype`, what they are cast to before anything else, so that the
model is, bit by bit, the one that was exported. A fourth, `base_quantised`, holds a `Quantised`: the base's linear
layers are then packed while they are loaded, and the model, saved again, borrows its base still.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from triune.errors import InputError
from triune.models.hub import locate
from triune.models.preflight import STALE
from triune.models.quantised import loading_arguments, settle
from triune.models.store import SINGLE_FILE, folder_header, hash_weights, iterate_tensors, save_tensors
from triune.quantised_settings import Quantised

NAME, HASH, DTYPE = "base_model_name_or_path", "base_sha256", "base_dtype"
QUANTISED = "base_quantised"
KEYS = (NAME, HASH, DTYPE, QUANTISED)
_HUB = ("revision", "cache_dir", "token", "local_files_only", "subfolder")


def load_whole(load: Callable[..., Any], source: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `load(source, *args, **kwargs)` gives, `load` being a model class's `from_pretrained`; where the folder
    borrows its base, with the base's weights, and with nothing in its configuration that points to the base any more.

    Another place of the base is given as `base_model_name_or_path=`. Where the base is quantised the model has the
    dtype that it was made in, and stays one that borrows its base; `base_quantised=False` loads it on float weights.
    Raises InputError where the base is not found, or has other weights than those that the folder was made with, and
    as `triune.models.quantised.check_available`.
    """
    wanted = kwargs.pop(QUANTISED, True)
    if source is None or kwargs.get("state_dict") is not None:
        return load(source, *args, **kwargs)
    settings = _settings(source, kwargs)
    if not settings.get(NAME):
        return load(source, *args, **kwargs)
    if not Path(source).is_dir() and (kwargs.get("revision") or kwargs.get("subfolder")):
        raise InputError(f"{source} borrows its base; download the revision or subfolder wanted and give its folder")
    folder = locate(source)
    quantised = _quantised(folder, settings) if wanted else None
    if quantised is not None:
        dtype = getattr(torch, str(settings[DTYPE]))
        kwargs |= {"dtype": dtype, **loading_arguments(quantised, dtype)}
    kwargs = {"config": folder, **kwargs, "state_dict": state_dict(folder, settings)}
    if (folder / "generation_config.json").is_file():
        kwargs.setdefault("generation_config", GenerationConfig.from_pretrained(folder))
    found = load(None, *args, **kwargs)
    model = found[0] if isinstance(found, tuple) else found
    for name in KEYS:  # saved again, the model is whole
        vars(model.config).pop(name, None)
    if quantised is not None:
        settle(model)
        model.beside = {name: settings[name] for name in KEYS}
    model.config.name_or_path = model.name_or_path = str(source)
    return found


def _settings(source: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        found = {name: getattr(config, name, None) for name in KEYS}
    else:
        hub = {name: kwargs[name] for name in _HUB if name in kwargs}
        found, _ = PreTrainedConfig.get_config_dict(config or source, **hub)
    return {**found, NAME: kwargs.get(NAME) or found.get(NAME)}


def _quantised(folder: Path, settings: Mapping[str, Any]) -> Quantised | None:
    """How the folder's base is packed. Raises InputError where its config.json says so in another form."""
    given = settings.get(QUANTISED)
    if given is None or given is False:  # the automatic classes put what is asked for into the configuration
        return None
    try:
        found = Quantised.model_validate(given)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{folder / 'config.json'}: {QUANTISED} is {given!r:.80} ({said:.200}); fuse again"
        ) from error
    if not isinstance(getattr(torch, str(settings.get(DTYPE)), None), torch.dtype):
        raise InputError(f"{folder / 'config.json'}: {DTYPE} is {settings.get(DTYPE)!r:.40}, no dtype; fuse again")
    return found


def beside(base: Path, name: str, dtype: torch.dtype, quantised: Quantised) -> dict[str, Any]:
    """What a fused folder's config.json says of a quantised base that it borrows; `name` is where it will be."""
    short = str(dtype).removeprefix("torch.")
    return {NAME: name, HASH: hash_weights(base), DTYPE: short, QUANTISED: quantised.model_dump()}


def save_beside(model: PreTrainedModel, told: Mapping[str, Any], folder: Path) -> None:
    """Write a fused model without its base: the tensors that the base lacks, and a configuration that names it.

    `told` is `beside`'s. Packed weights are never written: opened again, they are made anew from the base's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    theirs = folder_header(locate(str(told[NAME])))
    tensors = {name: parameter for name, parameter in model.named_parameters() if name not in theirs}
    save_tensors(folder / SINGLE_FILE, tensors)
    config = copy.deepcopy(model.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        vars(config).pop(name, None)
    for name, value in told.items():
        setattr(config, name, value)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def state_dict(folder: Path, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The folder's own tensors and, for what it lacks, the base's; the file's pages are read when they are needed."""
    base = find_base(folder, str(settings[NAME]), str(settings.get(HASH) or ""))
    own = dict(iterate_tensors(folder))
    dtype = getattr(torch, str(settings.get(DTYPE) or ""), None)
    return own | {
        name: tensor.to(dtype or tensor.dtype)
        for name, tensor in iterate_tensors(base)
        if name not in own and not name.endswith(STALE)
    }


def find_base(folder: Path, name: str, sha256: str) -> Path:
    """The folder of the base that a fused folder borrows. Raises InputError where it is absent or another one."""
    way_out = f"from_pretrained({str(folder)!r}, {NAME}='path/of/the/base')"
    try:
        base = locate(name)
    except InputError as error:
        raise InputError(
            f"{folder} holds no base weights and borrows those of {name!r}, which is not to be had ({error}); give "
            f"its place: {way_out}, or correct {NAME} in {folder / 'config.json'}"
        ) from error
    found = hash_weights(base)
    if found != sha256:
        raise InputError(
            f"{folder} borrows the weights of {name!r} with sha256 {sha256[:12]}, and {base} has {found[:12]}; give "
            f"the base that it was made with: {way_out}"
        )
    return base
