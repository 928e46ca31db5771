"""What a model makes of held-out rows: how probable their answers are, and where every layer places them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from triune.data.templates import render
from triune.errors import InputError
from triune.models.encoding import Encoded, by_length, collate, encode_pair
from triune.models.likelihood import answer_counts, inference, prompt_ends, token_log_probs
from triune.recipe import Base
from triune.types import Example


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out rows as tokens, with the prompt and the axis of each; `n_left_out` did not fit."""

    rows: tuple[Encoded, ...]
    prompts: tuple[str, ...]
    axes: tuple[str, ...]
    n_left_out: int


@dataclass(frozen=True)
class Probe:
    """What one model makes of the rows.

    nll: negative log-likelihood per answer token, in nats. states: the mean hidden state of each row's own tokens,
    prompt and answer, after each block (the last one after the final norm).
    """

    nll: Float64[Tensor, " rows"]
    states: Float32[Tensor, "layers rows d"]


def hold(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], base: Base) -> Held:
    """The examples that leave room for an answer, as tokens.

    Raises InputError where none is left, for an unknown template, and for one that the tokenizer does not have.
    """
    found = [
        (encode_pair(tokenizer, render(base.template, e.prompt, tokenizer), e.response, base.max_length), e)
        for e in examples
    ]
    kept = [(row, e) for row, e in found if row is not None]
    if not kept:
        raise InputError(
            f"none of {len(examples)} held-out rows fits in {base.max_length} tokens with the template "
            f"{base.template!r}; give rows, raise max_length or choose a shorter template"
        )
    return Held(
        tuple(row for row, _ in kept),
        tuple(e.prompt for _, e in kept),
        tuple(e.axis for _, e in kept),
        len(examples) - len(kept),
    )


def check_alike(name: str, found: Held, wanted: Held) -> None:
    """Raise InputError where a model's tokenizer reads the rows otherwise than the base's: its losses per token and
    its states would be of other tokens.
    """
    if found != wanted:
        raise InputError(
            f"the tokenizer of {name!r} reads the held-out rows otherwise than the base's; give experts with the "
            "base's tokenizer and template"
        )


def probe(
    model: nn.Module, rows: Sequence[Encoded], *, batch_size: int, pad_id: int, name: str = "the model"
) -> Probe:
    """One pass over the rows in batches of like length; results in the rows' order, on the CPU.

    Memory: 4 bytes x layers x rows x d for the states (160 MB for 300 rows of a 7B model).

    `name` is what errors call the model.

    Raises InputError for no rows, a batch size below 1, and where the model gives NaN or infinite numbers.
    """
    if not rows:
        raise InputError("there are no rows to look at; give at least one")
    nll = torch.zeros(len(rows), dtype=torch.float64)
    states: dict[int, Tensor] = {}
    with inference(model) as device:
        for indices in by_length(rows, batch_size):
            batch = {name: t.to(device) for name, t in collate([rows[i] for i in indices], pad_id).items()}
            ends = prompt_ends(model, batch)
            labels = batch.pop("labels")
            out = model(**batch, **ends, use_cache=False, output_hidden_states=True)
            sums = token_log_probs(out.logits, labels).double().sum(1)
            nll[indices] = (-sums / answer_counts(labels)).cpu()
            # The first entry is the embedding, which no block has touched.
            means = [_token_mean(layer, batch["attention_mask"]) for layer in out.hidden_states[1:]]
            states |= {index: torch.stack([m[place] for m in means]) for place, index in enumerate(indices)}
    found = Probe(nll, torch.stack([states[index] for index in range(len(rows))], 1))
    broken = ~(found.nll.isfinite() & found.states.isfinite().all(2).all(0))
    if broken.any():
        raise InputError(
            f"{name} gives NaN or infinite numbers for {int(broken.sum())} of {len(rows)} rows; look at its "
            "weights, or take dtype float32"
        )
    return found


def _token_mean(states: Tensor, mask: Tensor) -> Float32[Tensor, "batch d"]:
    """The mean over a row's own tokens; where, not a product: a padded position may hold NaN."""
    counted = mask.unsqueeze(-1)
    kept = states.float().where(counted.bool(), torch.zeros((), device=states.device))
    return (kept.sum(1) / counted.sum(1)).cpu()
