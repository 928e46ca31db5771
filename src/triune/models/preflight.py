"""Whether a folder holds a base model that Triune can fuse: everything that can be known before weights are loaded."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from triune.errors import InputError
from triune.models.hub import locate
from triune.models.store import TensorInfo, folder_header, nonfinite_counts
from triune.parsing import parse_json

# transformers' names of decoders with a gated FFN (gate_proj, up_proj, down_proj) that the tests cover.
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma")
GENERATION = "generation_config.json"
EMBEDDING = "model.embed_tokens.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
STALE = "rotary_emb.inv_freq"  # in old Llama checkpoints; a constant that no model reads any more
SHOWN = 3  # names in a message
# Settings after which transformers makes lists or modules one by one, long before any weight is looked at.
MOST = {"num_hidden_layers": 1000, "num_labels": 100_000}
# What transformers and torch raise over a configuration of strange values.
STRANGE = (
    *(ValueError, TypeError, AttributeError, KeyError, IndexError, ArithmeticError, AssertionError),
    *(RuntimeError, NotImplementedError, OSError),
)


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What is known of a base model without loading it.

    `dtype` is the one that most bytes are stored in, `n_bytes` what the tensors take on disk; `n_parameters` counts
    tied embeddings once; `context` is in tokens; `rope` is the rotary settings' canonical JSON, for comparing two
    models; `n_token_ids` is one more than the highest id that the tokenizer can give.
    """

    folder: Path
    model_type: str
    n_layers: int
    hidden_size: int
    intermediate_size: int
    activation: str
    vocab_size: int
    n_token_ids: int
    n_parameters: int
    n_bytes: int
    dtype: str
    tie_word_embeddings: bool
    context: int
    rope: str


def check_base(source: str | Path, *, scan: bool = True) -> BaseFacts:
    """Look at everything that can be wrong with a base model, cheapest first; with `scan`, also at every weight.

    Raises:
        InputError: the folder, its config.json, weights or tokenizer are missing or damaged; the architecture is not
            supported; weights and configuration, or tokenizer and embedding, disagree; a weight is NaN or infinite.
    """
    folder = locate(source)
    config = read_config(folder)
    if (folder / GENERATION).is_file():
        _read_json(folder / GENERATION)  # transformers reads it along with the weights
    header = folder_header(folder)
    n_parameters = _check_names_and_shapes(folder, config, header)
    n_token_ids = _check_token_ids(folder, config.vocab_size)
    if scan:
        _check_finite(folder, header)
    sizes: Counter[torch.dtype] = Counter()
    for info in header.values():
        sizes[info.dtype] += info.n_bytes
    return BaseFacts(
        folder=folder,
        model_type=config.model_type,
        n_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        activation=config.hidden_act,
        vocab_size=config.vocab_size,
        n_token_ids=n_token_ids,
        n_parameters=n_parameters,
        n_bytes=sizes.total(),
        dtype=str(sizes.most_common(1)[0][0]).removeprefix("torch."),
        tie_word_embeddings=config.tie_word_embeddings,
        context=config.max_position_embeddings,
        rope=json.dumps(config.rope_parameters, sort_keys=True),
    )


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a supported base model.

    Raises:
        InputError: config.json is missing or unreadable, or names an architecture that is not supported.
    """
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        way_out = (
            "this is a PEFT adapter: give it as an expert" if adapter else "give a folder that transformers saved"
        )
        raise InputError(f"{folder} has no config.json; {way_out}")
    raw = _read_json(path)
    model_type, names = raw.get("model_type"), ", ".join(SUPPORTED)
    if model_type not in SUPPORTED:
        raise InputError(
            f"{path}: model_type {model_type!r}; supported bases (gated FFN): {names}; choose one of them"
        )
    check_sizes(path, raw)
    named = raw.get("architectures") or []
    heads = [name for name in (named if isinstance(named, list) else [named]) if not _is_causal(name)]
    if heads:
        raise InputError(f"{path}: architecture {heads[0]}; a base is a causal language model (…ForCausalLM)")
    if raw.get("quantization_config"):
        raise InputError(
            f"{path}: the weights are quantised; experts are trained and fused on float weights: use those (and "
            "base.quantised, which packs them when they are loaded)"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, *STRANGE) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; correct it or download it again") from error


def check_sizes(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise InputError for a setting above MOST."""
    for name, most in MOST.items():
        value = raw.get(name)
        if isinstance(value, int | float) and value > most:
            raise InputError(f"{path}: {name} is {value:.6g}; allowed: up to {most:,}; download it again")


def _is_causal(name: object) -> bool:
    return str(name).endswith("ForCausalLM")


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        InputError: its files are missing or unreadable.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer; wanted tokenizer.json (or {', '.join(TOKENIZER_FILES[1:])})")
    fast = folder / "tokenizer.json"
    if fast.is_file() and not {"model", "added_tokens"} <= _read_json(fast).keys():
        raise InputError(f"{fast}: no tokenizer of the `tokenizers` library; download it again")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BaseException as error:
        # transformers raises anything over damaged files, and a panic of tokenizers is not even an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{folder}: the tokenizer cannot be read: {' '.join(str(error).split())[:300]}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object; download it again")
    return value


def _check_token_ids(folder: Path, n_rows: int) -> int:
    """Every id that the tokenizer gives has a row in the embedding; returns one more than the highest id."""
    n_token_ids = 1 + max(read_tokenizer(folder).get_vocab().values(), default=-1)
    if n_token_ids > n_rows:
        raise InputError(
            f"{folder}: the tokenizer gives ids up to {n_token_ids - 1:,} and the embedding has {n_rows:,} rows; use "
            "the tokenizer that the model was trained with, or resize_token_embeddings and save both again"
        )
    return n_token_ids


def _check_names_and_shapes(folder: Path, config: PreTrainedConfig, header: Mapping[str, TensorInfo]) -> int:
    """Every tensor of the architecture is there in its shape, and no other; returns the number of parameters."""
    n_rows = header[EMBEDDING].shape[0] if EMBEDDING in header else config.vocab_size
    if n_rows != config.vocab_size:
        raise InputError(
            f"{folder}: config.json says vocab_size {config.vocab_size:,} and the embedding has {n_rows:,} rows; "
            "correct config.json, or save model and tokenizer together again"
        )
    model = empty_model(folder, config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: info.shape for name, info in header.items() if not name.endswith(STALE)}
    optional = set(model.all_tied_weights_keys)
    missing = [name for name in wanted if name not in found and name not in optional]
    unexpected = [name for name in found if name not in wanted]
    reshaped = [
        f"{name} {found[name]}, not {wanted[name]}" for name in wanted if found.get(name, wanted[name]) != wanted[name]
    ]
    complain(folder, {"missing": missing, "unexpected": unexpected, "of another shape": reshaped})
    return sum(parameter.numel() for parameter in model.parameters())


def empty_model(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The model that a configuration describes, without memory for its weights. Raises InputError for none such."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except STRANGE as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"{folder / 'config.json'} describes no model ({said}); correct it or download it again"
        ) from error
    return model


def complain(folder: Path, faults: Mapping[str, list[str]]) -> None:
    """Raise an InputError that counts and names the tensors at fault; nothing happens where there are none."""
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for kind, names in faults.items()
        if names
    ]
    if parts:
        raise InputError(
            f"{folder}: the weights are not those of its config.json: {'; '.join(parts)}; what is missing "
            "would be random, what is unexpected lost: download the folder again, or correct config.json"
        )


def _check_finite(folder: Path, header: Mapping[str, TensorInfo]) -> None:
    counts = nonfinite_counts(folder)
    if counts:
        parts = [f"{name} {count:,} of {torch.Size(header[name].shape).numel():,}" for name, count in counts.items()]
        raise InputError(
            f"{folder}: NaN or infinite weights in {len(counts)} of {len(header)} tensors: {', '.join(parts[:SHOWN])}"
            f"{', …' if len(parts) > SHOWN else ''}; download it again or choose another base"
        )
