"""The router of whole prompts as two small files beside the experts' adapters: which adapter a prompt belongs to.

`router.safetensors` has the tensors of `PromptRouter` by name, float32; `router.json` what the mixture's configuration
says of the routing, the base, the template, and hashes: of the base's weights, of every adapter, of the tensors, of
shared.safetensors where there is one, and of router.json itself. So files of two exports cannot be mixed unseen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig

from triune.errors import InputError
from triune.experts.adapters import WEIGHTS, read_config
from triune.fusion.configuration import TriuneConfig
from triune.fusion.prompt_router import check_routing
from triune.models.store import load_tensors, n_nonfinite, save_tensors
from triune.parsing import is_plain_name, parse_json
from triune.record import digest, identify, write_json

ROUTER, SETTINGS, EXPERTS, SHARED = "router.safetensors", "router.json", "experts", "shared.safetensors"
FORMAT = 1
OWN = "settings_sha256"  # of everything else in router.json
FIELDS = (  # of TriuneConfig: all that the routing depends on
    "expert_names",
    "num_experts_per_tok",
    "norm_topk_prob",
    "router_temperature",
    "expert_importance",
    "router_bias",
    "expert_ranks",
    "routing",
    "routing_layer",
    "routing_passes",
    "prior_weights",
    "latent_size",
    "calibrator_lambdas",
    "anchor_counts",
)
NEEDED = ("base_sha256", "template", "adapters_sha256", "shared_sha256", "router_sha256")
FORMULA = (
    "h: the residual stream at the prompt's last token before layer routing_layer (counted from 0), the layers before "
    "it running sum_a prior_weights[a] FFN_a with FFN_a the block with adapter a; z = P h; u = [z; z*phi_1; ...; "
    "z*phi_E]; p = softmax((W u + l1 c_fractal(z) + l2 c_natural(z)) / T + log g + b), with P = projection, phi = "
    "features, W = weight, (l1, l2) = calibrator_lambdas, T = router_temperature, g = expert_importance and b = "
    "router_bias[0] (null: nothing is added); the adapter is that of the largest p."
)


@dataclass(frozen=True)
class RouterFile:
    """What a folder's router files hold, checked; settings: router.json; tensors: by their names in `PromptRouter`."""

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> list[str]:
        """The experts, and so the adapters, in the order of the router's rows."""
        return list(self.settings["expert_names"])

    def adapter(self, name: str) -> Path:
        """The folder of an adapter."""
        return self.folder / EXPERTS / name

    def config(self, text: PreTrainedConfig) -> TriuneConfig:
        """The fused model's configuration over a base of this one. Raises InputError where they do not fit."""
        try:
            made = TriuneConfig(text_config=text, **{name: self.settings[name] for name in FIELDS})
            check_routing(made)
        except (StrictDataclassError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            if isinstance(error, InputError):
                raise
            said = " ".join(str(error).split())
            raise InputError(f"{self.folder / SETTINGS} describes no router ({said}); export again") from error
        return made


def write_router(folder: Path, config: TriuneConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """Write both files beside the adapters, which must be there already; returns their size in bytes.

    facts: `base_model_name_or_path`, `base_sha256` and `template`, and whatever else router.json is to say.
    """
    save_tensors(folder / ROUTER, tensors)
    shared = folder / SHARED
    settings = {
        "format": FORMAT,
        **{name: getattr(config, name) for name in FIELDS},
        **facts,
        "formula": FORMULA,
        "adapters_sha256": {name: adapter_hash(folder / EXPERTS / name) for name in config.expert_names or []},
        "shared_sha256": identify(shared) if shared.is_file() else None,
        "router_sha256": identify(folder / ROUTER),
    }
    write_json(folder / SETTINGS, {**settings, OWN: digest(settings)})
    return sum((folder / name).stat().st_size for name in (ROUTER, SETTINGS))


def adapter_hash(folder: Path) -> str:
    """sha256 over an adapter's weights file and its configuration; where its base lies does not count.

    Raises InputError where one of the two is missing.
    """
    config = {name: value for name, value in read_config(folder).items() if name != "base_model_name_or_path"}
    return digest({"config": config, "weights": identify(folder / WEIGHTS)})


def read_router(folder: Path) -> RouterFile:
    """The router of an export, if it is whole and belongs to the adapters beside it.

    Raises InputError where the folder is no such export, a file is missing, truncated or of a later format, a tensor
    holds NaN or infinite numbers, or a file was changed or is from another export.
    """
    settings = _settings(folder)
    tensors = load_tensors(folder / ROUTER)
    broken = [name for name, tensor in tensors.items() if n_nonfinite(tensor)]
    if broken:
        raise InputError(f"{folder / ROUTER}: NaN or infinite numbers in {', '.join(broken)}; export again")
    _check_hash(folder / ROUTER, identify(folder / ROUTER), settings["router_sha256"])
    found = RouterFile(folder, settings, tensors)
    for name in found.names:
        _check_hash(found.adapter(name), adapter_hash(found.adapter(name)), settings["adapters_sha256"][name])
    shared = folder / SHARED
    if shared.is_file() or settings["shared_sha256"]:
        _check_hash(shared, identify(shared), settings["shared_sha256"])
    return found


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        what = f"{SETTINGS} is missing" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"{folder} holds no router of prompts ({what}); give what `triune export --format peft` writes of a model "
            "that routes whole prompts (fuse.prompt_routing)"
        )
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); export again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else f"a JSON {type(found).__name__}"
        raise InputError(f"{path} has the format {got!r:.40}; this version of Triune reads {FORMAT}; export again")
    absent = [name for name in (*FIELDS, *NEEDED) if name not in found]
    if absent:
        raise InputError(f"{path} lacks {', '.join(absent)}; export again")
    own = found.pop(OWN, None)
    if own != digest(found):
        raise InputError(
            f"{path} was changed after the export (its sha256 is another); export again. Where the base lies and "
            "which template prompts take can be said when the folder is opened"
        )
    _check_names(path, found)
    return found


def _check_names(path: Path, found: dict[str, Any]) -> None:
    """The hash says that nothing was changed by mistake; whoever makes a file on purpose can make that too."""
    names, hashes = found["expert_names"], found["adapters_sha256"]
    if not isinstance(names, list) or not names or not all(map(is_plain_name, names)):
        raise InputError(f"{path}: expert_names is {names!r:.80}; wanted names of folders in {EXPERTS}; export again")
    if not isinstance(hashes, dict) or set(names) != hashes.keys():
        raise InputError(f"{path}: adapters_sha256 is not of the experts {names!r:.80}; export again")


def _check_hash(path: Path, got: str, wanted: object) -> None:
    """`wanted` is what the file says, which may be anything."""
    if got != wanted:
        said = "that there is none" if wanted is None else f"{wanted}"[:24]
        raise InputError(
            f"{path} is not what the router belongs to: its sha256 is {got[:12]}, and {SETTINGS} says "
            f"{said}; keep the files of one export together, or export again"
        )
