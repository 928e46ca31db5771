"""The verb chat: an answer, and for each of its tokens the expert that shaped it most."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triune.data.templates import render
from triune.errors import InputError
from triune.experts.adapters import CONFIG, read_config
from triune.fusion import router
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.opening import is_fused, open_model
from triune.models.encoding import pad_id
from triune.models.generation import Decoding, generator_for, prompt_row, stop_ids, token_steps
from triune.recipe import Base
from triune.recipe_file import validate
from triune.record import RECORD, read_record


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the answer's text with the weights of the experts that wrote it (none for other models)."""

    text: str
    weights: tuple[float, ...] = ()

    @property
    def expert(self) -> int | None:
        """The index of the strongest expert."""
        return max(range(len(self.weights)), key=self.weights.__getitem__) if self.weights else None


@dataclass(frozen=True)
class Speaker:
    """A model that answers, with the template that its prompts take."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str

    @property
    def experts(self) -> list[str]:
        """The experts' names; none for a model that is not fused."""
        return list(self.model.config.expert_names) if isinstance(self.model, TriuneForCausalLM) else []


def speaker(place: Path, template: str | None = None) -> Speaker:
    """The model of a folder: a run (its fused model), a fused model, an expert, or a base.

    The template is the one that the model was made with, by its record; `template` overrides it.
    Raises InputError where there is no model, or no template is known.
    """
    folder = place / "fused" if (place / "fused" / "config.json").is_file() else place
    if not folder.is_dir():
        raise InputError(f"{place} does not exist; give a run folder or a model folder")
    recorded = read_record(folder).get("settings", {}).get("base") if (folder / RECORD).is_file() else None
    known = recorded if isinstance(recorded, dict) else {}
    base = validate(Base, {**known, "path": _base_of(folder)}, f"{folder / RECORD}, settings.base")
    model, tokenizer = open_model(folder, base)
    own = "chat" if tokenizer.chat_template else None
    chosen = template or known.get("template") or own
    if chosen is None:
        raise InputError(f"{folder} does not say which template its prompts take; give --template")
    return Speaker(model, tokenizer, chosen)


def _base_of(folder: Path) -> str:
    """Where an adapter's base is, by its configuration; the folder itself for a whole model."""
    if is_fused(folder) or not (folder / CONFIG).is_file():
        return str(folder)
    name = read_config(folder).get("base_model_name_or_path")
    if not name:
        raise InputError(
            f"{folder / CONFIG} does not name its base (base_model_name_or_path); chat with a fused model instead"
        )
    return str(name)


def chat(who: Speaker, prompt: str, decoding: Decoding) -> Iterator[Piece]:
    """The answer, piece by piece as it is written; joined, the text that `generate` gives (which also strips it).

    A piece is one token, or the tokens that make up one character. Its weights are the experts' top-k routing weights
    at the position that produced its last token, averaged over layers.
    Raises InputError for an empty prompt or one longer than the context.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty; type a question")
    row = prompt_row(who.model, who.tokenizer, render(who.template, prompt, who.tokenizer))
    ids: list[int] = []
    shown = text = ""
    weights: tuple[float, ...] = ()
    heard: list[torch.Tensor] = []
    fused = who.model if isinstance(who.model, TriuneForCausalLM) else None
    steps = token_steps(
        who.model,
        [row],
        decoding,
        [generator_for(decoding.seed, 0)],
        stop_at=stop_ids(who.model, who.tokenizer, decoding),
        pad_id=pad_id(who.tokenizer),
    )
    while True:
        if fused is None:
            step = next(steps, None)
        else:
            with fused.listening() as heard:
                step = next(steps, None)
        if step is None or step[0] is None:
            break
        ids.append(step[0])
        text = str(who.tokenizer.decode(ids, skip_special_tokens=True))
        weights = _weights(fused, heard)
        if text == shown or text.endswith("\ufffd"):  # a special token, or half of a character: wait for the rest
            continue
        yield Piece(text[len(shown) :], weights)
        shown = text
    if len(text) > len(shown):  # the answer was cut in the middle of a character
        yield Piece(text[len(shown) :], weights)


def _weights(model: TriuneForCausalLM | None, heard: list[torch.Tensor]) -> tuple[float, ...]:
    if model is None or not heard:
        return ()
    config: Any = model.config
    probs = router.layer_probabilities([layer[0, -1] for layer in heard], config)
    chosen = router.top_k_weights(probs, config.num_experts_per_tok, renormalise=config.norm_topk_prob)
    return tuple(chosen.mean(0).tolist())
