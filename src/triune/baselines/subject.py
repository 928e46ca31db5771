"""Whatever a comparison has in a row: something that answers questions, in one pass of one model or in several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from triune.data.templates import render
from triune.errors import InputError
from triune.fusion.opening import open_model
from triune.models.generation import Decoding, generate
from triune.parsing import parse_json
from triune.progress import Progress
from triune.recipe import Base

MANIFEST = "baseline.json"  # in the folder of a baseline that is more than one model: {"kind": …, …}

# (questions, how to decode, batch size, who watches) -> one answer a question, in order; questions without template.
Respond = Callable[[Sequence[str], Decoding, int, Progress], list[str]]


@dataclass(frozen=True)
class Subject:
    """Something that a recipe compares.

    `respond` answers questions as they are (it puts them into the base's template itself); `model` gives likelihoods
    and hidden states as any causal language model does, None where the answer comes from several generations and has
    no likelihood of its own; `held` is every module in memory (parameters that two of them share count once);
    `generations` counts the answers generated for one that is shown; `idle` the parameters that one token does not use
    (those of experts that it is not sent to); `has_states` says whether `model` gives hidden states.
    """

    tokenizer: PreTrainedTokenizerBase
    respond: Respond
    model: nn.Module | None
    held: tuple[nn.Module, ...]
    generations: int = 1
    idle: int = 0
    has_states: bool = True


def of_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, base: Base) -> Subject:
    """One causal language model as a subject."""

    def respond(questions: Sequence[str], decoding: Decoding, batch_size: int, progress: Progress) -> list[str]:
        prompts = [render(base.template, question, tokenizer) for question in questions]
        return generate(model, tokenizer, prompts, decoding, batch_size=batch_size, progress=progress)

    return Subject(tokenizer, respond, model, (model,))


def open_one(folder: Path | None, base: Base) -> Subject:
    """The base (None), an adapter of it, a fused model or any other model folder, as a subject.

    Raises InputError as `open_model`.
    """
    return of_model(*open_model(folder, base), base)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a baseline's folder says of itself. Raises InputError where that cannot be read."""
    path = folder / MANIFEST
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); make this baseline again") from error
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise InputError(f"{path} does not say its kind; make this baseline again")
    return found
