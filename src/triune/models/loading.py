"""Base models into memory: whole and as saved, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from triune.errors import InputError
from triune.models.hub import locate
from triune.models.preflight import check_base, complain, read_tokenizer
from triune.models.quantised import loading_arguments, settle
from triune.quantised_settings import Quantised


def load_base(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    scan: bool = True,
    quantised: Quantised | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Check a base model and load it with its tokenizer, in evaluation mode; no remote code, safetensors only.

    `device="auto"` spreads a model that fits on no single device. `scan=False` skips the search for NaN.
    With `quantised` the linear layers are packed while they are loaded, onto the GPU where there is one; `device` then
    counts for nothing but "auto".

    Raises:
        InputError: as `check_base`; or the library would leave a weight out or fill one with random numbers;
            `quantised` without bitsandbytes, or on an accelerator that it has not been tried on.
    """
    packing = loading_arguments(quantised, dtype)
    facts = check_base(source, scan=scan)
    with quiet(), as_saved(facts.folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            facts.folder,
            dtype=dtype,
            device_map="auto" if device == "auto" else None,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with the names, where the library would only say "error"
            output_loading_info=True,
            **packing,
        )
    model, report = loaded
    complain(
        facts.folder,
        {
            "missing": sorted(report["missing_keys"]),
            "unexpected": sorted(report["unexpected_keys"]),
            "of another shape": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
        },
    )
    if packing:
        settle(model)
    elif device != "auto":
        model = model.to(device)
    return model, read_tokenizer(facts.folder)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name.

    Raises:
        InputError: there is no such folder or name, or its tokenizer files are missing or unreadable.
    """
    return read_tokenizer(locate(source))


@contextmanager
def as_saved(folder: Path) -> Iterator[None]:
    """Turn what the library raises over strange settings into an InputError; a lack of memory is none."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{folder} cannot be loaded ({said}); download it again, or correct its settings") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report of keys on stderr: faults are raised, and the caller shows its own progress."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
