"""What a PEFT adapter's configuration says that it uses, and which of it no task vector can honour."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triune.errors import InputError
from triune.parsing import parse_json

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an adapter cannot be honoured, as the rest of a sentence about it, and what to do instead."""

    what: str
    way_out: str


_PLAIN = "train a plain LoRA on the base"
MERGE = (
    "merge it into its base with PEFT's merge_and_unload, save the model and give that folder as a full fine-tune, "
    f"which is brought to low rank under fuse.svd_error, or {_PLAIN}"
)
_UNMERGEABLE = f"no weights of the base do the same, so that merging is no way out: {_PLAIN}"
_CONVERT = (
    "convert it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), or load it on its own "
    "base with PEFT, merge_and_unload, save the model and give its folder as a full fine-tune"
)
_FLOAT = f"its factors make up for the error of quantised weights, which no float base has: {_PLAIN} in float weights"
_SINGLE = "give the adapters that it chooses among, each as an expert of its own"

# These start the factors without touching the base; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take from the
# base's weights what they put into the factors, so that the adapter means nothing beside the base as it is.
_HARMLESS_STARTS = {"gaussian", "eva", "orthogonal", "mica", "true", "false"}


def _mutates_base(value: Any) -> bool:
    return isinstance(value, str) and value.lower() not in _HARMLESS_STARTS | {"loftq"}


# Features that would change the function computed and are neither a low-rank increment nor a full value of a
# parameter: by the setting's name, when it is used, and the way out.
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "use_dora": (bool, MERGE),
    "target_parameters": (bool, MERGE),
    "trainable_token_indices": (bool, MERGE),
    "lora_bias": (bool, MERGE),
    "use_bdlora": (bool, MERGE),
    "kasa_config": (bool, MERGE),
    "velora_config": (bool, MERGE),
    "monteclora_config": (bool, MERGE),
    "bias": (lambda value: value not in (None, "none", "all", "lora_only"), MERGE),
    "init_lora_weights": (_mutates_base, _CONVERT),
    "loftq_config": (bool, _FLOAT),
    "quantization_config": (bool, _FLOAT),
    "load_in_8bit": (bool, _FLOAT),
    "load_in_4bit": (bool, _FLOAT),
    "use_qalora": (bool, _FLOAT),
    "alora_invocation_tokens": (bool, _UNMERGEABLE),
    "layer_replication": (bool, _UNMERGEABLE),
    "arrow_config": (bool, _SINGLE),
}
# What says how an adapter was made or is found, or is honoured. fan_in_fan_out: PEFT says of every nn.Linear, which
# all supported bases are made of, that it takes it for False.
KNOWN = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("megatron_config", "megatron_core", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("fan_in_fan_out", "ensure_weight_tying", "qalora_group_size"),
}
_PROMPTS = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"),
}
METHODS: dict[str, str] = {
    **dict.fromkeys(_PROMPTS, f"it adds to the prompt, and no weights of the base do the same: {_PLAIN}"),
    **dict.fromkeys(("XLORA", "POLY"), _SINGLE),
}


def parse_config(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter of any method. Raises InputError where it is missing or unreadable."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        inside = sorted(found.parent.name for found in Path(folder).glob(f"*/{CONFIG}"))
        if inside:
            raise InputError(
                f"{folder} is no PEFT adapter itself, but its sub-folders {', '.join(inside)} are; give one of them "
                "(PEFT saves each named adapter in a folder of its own)"
            )
        raise InputError(f"{folder} is no PEFT adapter ({CONFIG} is missing); give the folder that PEFT saved")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); save the adapter again with PEFT") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds {type(config).__name__}, wanted an object; save the adapter again with PEFT")
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a LoRA adapter. Raises InputError where it is missing, unreadable, or of another method."""
    config = parse_config(folder)
    complain(folder, other_method(config))
    return config


def other_method(config: Mapping[str, Any]) -> list[Refusal]:
    """The refusal of a method that is not LoRA."""
    method = config.get("peft_type")
    if method == "LORA":
        return []
    return [Refusal(f"is a {method} adapter; only LORA can be fused", METHODS.get(str(method), MERGE))]


def refused_features(config: Mapping[str, Any]) -> list[Refusal]:
    """The settings that are switched on and cannot be honoured, those of one way out together.

    A setting of a later PEFT that this version does not know is refused where it is in use: true, a name, or settings
    of its own. (A number alone is a feature's size, which is written also where the feature is off.)
    """
    ways: dict[str, list[str]] = {}
    for name, value in config.items():
        is_used, way_out = REFUSED.get(name, (_in_use, MERGE))
        # LoftQ is refused once, as what it is, and not as a start among others.
        if name == "init_lora_weights" and str(value).lower() == "loftq":
            is_used, way_out = bool, _FLOAT
        if name not in KNOWN and is_used(value):
            ways.setdefault(way_out, []).append(f"{name}={value!r}")
    return [Refusal(f"uses {', '.join(used)}, which a fused model cannot honour", way) for way, used in ways.items()]


def _in_use(value: Any) -> bool:
    return value is True or (isinstance(value, str | dict | list) and bool(value))


def missing_weights(folder: Path, config: Mapping[str, Any]) -> list[Refusal]:
    """The refusal of a folder without safetensors; for a pickle, with the lines that convert it."""
    if (folder / WEIGHTS).is_file():
        return []
    if not (folder / PICKLE).is_file():
        return [Refusal(f"holds no {WEIGHTS}", "give the folder that PEFT's save_pretrained wrote, or save it again")]
    base = config.get("base_model_name_or_path") or "THE BASE'S FOLDER"
    lines = (
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(base)!r}), {str(folder)!r})",
        f"model.save_pretrained({f'{folder}-safetensors'!r})",
    )
    way_out = "convert it where you trust it, and give the new folder:\n" + "\n".join(f"    {line}" for line in lines)
    return [Refusal(f"holds only {PICKLE}, a pickle, which Triune never reads", way_out)]


def complain(folder: Path, refusals: list[Refusal]) -> None:
    """Raise an InputError that says all of the refusals; nothing happens where there are none."""
    if refusals:
        said = "; and it ".join(f"{refusal.what}; {refusal.way_out}" for refusal in refusals)
        raise InputError(f"the adapter {folder} {said}")
