"""Prompt-injected fine-tuning: two LoRA passes, the second behind an instruction, as one task vector.

AlignX, arXiv 2602.07381, stage 1. What the passes share with a plain expert is `triune.experts.training`.
"""

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triune.data.templates import render
from triune.errors import InputError
from triune.experts import lowrank, task_vector
from triune.experts.adapters import read_adapter
from triune.experts.fitting import Curve, Job
from triune.experts.lowrank import LowRank
from triune.experts.task_vector import TaskVector
from triune.experts.training import train_adapter
from triune.models.encoding import Encoded, encode_pair
from triune.models.likelihood import answer_log_likelihoods
from triune.progress import Progress
from triune.recipe import Lora
from triune.record import digest
from triune.types import Example

LOOKED_AT = 256  # rows that the losses before and after are means of: ±0.1 nats where rows spread by 0.8
Pair = tuple[Encoded, Encoded]  # one example, plain and injected


def injected(example: Example, text: str) -> Example:
    """The same example with the instruction before its prompt, a blank line between.

    The template is put around both, so that the instruction is part of what is asked.
    """
    return replace(example, prompt=f"{text}\n\n{example.prompt}")


def encode_both(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    texts: Mapping[str, str],
    template: str,
    max_length: int,
) -> list[Pair]:
    """The examples whose prompt leaves room for an answer with and without its axis's text, encoded both ways.

    Raises InputError where there is none.
    """
    pairs = []
    for example in examples:
        forms = (example, injected(example, texts[example.axis]))
        plain, longer = (
            encode_pair(tokenizer, render(template, e.prompt, tokenizer), e.response, max_length, axis=e.axis)
            for e in forms
        )
        if plain is not None and longer is not None:
            pairs.append((plain, longer))
    if not pairs:
        raise InputError(
            f"none of {len(examples)} examples fits in {max_length} tokens with the injected text before its prompt; "
            "raise max_length, or shorten injection.texts"
        )
    return pairs


@dataclass(frozen=True)
class Merged:
    """A task vector with what it lost: `errors` ‖ΔW − B A‖_F / ‖ΔW‖_F by module, `error` the same over all of them.

    Nothing was left out where `errors` is empty.
    """

    vector: TaskVector
    errors: Mapping[str, float]
    error: float


def merged(first: TaskVector, second: TaskVector, rank: int | None = None) -> Merged:
    """T = T_1 + T_2 under the first one's name: [B_1 B_2][A_1; A_2], exactly, the ranks add.

    With `rank`, every matrix is brought to at most that rank (see `recompressed`).
    """
    whole = task_vector.added(first, second, first.axis)
    return Merged(whole, {}, 0.0) if rank is None else recompressed(whole, rank)


@torch.no_grad()
def recompressed(vector: TaskVector, rank: int) -> Merged:
    """The nearest increments of at most `rank` in the Frobenius norm: U_r √Σ_r and √Σ_r V_rᵀ (Eckart and Young, 1936).

    The decomposition is taken of the factors in float64, in O(r² (out + in)); the errors are √(Σ_{i>r} σ_i² / Σ_i
    σ_i²). A matrix of a lower rank keeps all of it. Raises InputError for a rank below 1, or dense changes.
    """
    if rank < 1 or len(vector.others):
        raise InputError(
            f"got rank {rank} and {len(vector.others)} dense changes of {vector.axis!r}; wanted is a rank of at least "
            "1 and low-rank changes alone"
        )
    parts, lost, whole = {}, {}, {}
    for name in vector.parts:
        part = vector.parts[name]
        u, s, vh = lowrank.singular(lowrank.double(part), 0.0)
        root, squares = s[:rank].sqrt(), s.square()
        parts[name] = LowRank((u[:, :rank] * root).to(part.b.dtype), (root[:, None] * vh[:rank]).to(part.a.dtype))
        lost[name], whole[name] = float(squares[rank:].sum()), float(squares.sum())
    errors = {name: _share(lost[name], whole[name]) for name in parts}
    overall = _share(math.fsum(lost.values()), math.fsum(whole.values()))
    return Merged(TaskVector(vector.axis, parts, vector.base_hash), errors, overall)


def _share(lost: float, whole: float) -> float:
    return (lost / whole) ** 0.5 if lost else 0.0


Losses = dict[str, int | float]


def losses(model: PreTrainedModel, pairs: Sequence[Pair], pad_id: int) -> Losses:
    """Mean over examples of the negative log-likelihood per answer token, in nats: of plain and of injected prompts.

    Of at most LOOKED_AT examples, at equal distances in the order given. NaN of none.
    """
    chosen = pairs[:: -(-len(pairs) // LOOKED_AT) or 1]
    found: Losses = {"n": len(chosen)}
    for place, name in enumerate(("plain", "injected")):
        rows = [pair[place] for pair in chosen]
        sums, counts = answer_log_likelihoods(model, rows, batch_size=32, pad_id=pad_id)
        found[name] = float(-(sums / counts).mean())
    return found


@dataclass(frozen=True)
class Passes:
    """The two trainings of one expert: the rows as they are, then with the text; and `pairs` to measure losses on."""

    axis: str
    first: Job
    second: Job
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Trained:
    """The task vectors of both passes, their sum, the curve of both, and the losses of `base`, `first`, `merged`.

    In the curve the second pass's steps go on from the first's; `pass` says which of the two a step belongs to.
    """

    first: TaskVector
    second: TaskVector
    merged: Merged
    curve: Curve
    losses: dict[str, Losses]


def train_injected(
    model: PreTrainedModel, lora: Lora, passes: Passes, rank: int | None, progress: Progress
) -> Trained:
    """Train pass 1 on the base, merge it into the base, train pass 2 (a second LoRA) on that, and add the two.

    `model` is the base, and the merged expert afterwards. In 16 bits merging rounds pass 1 while pass 2 is trained;
    the task vector that is returned is the exact sum. Raises InputError where a target names no linear layer.
    """
    pad_id, seen = passes.first.pad_id, {}
    seen["base"] = losses(model, passes.pairs, pad_id)
    first, one = _train(model, lora, passes.first, passes.axis, progress)
    task_vector.apply(first, model)
    seen["first"] = losses(model, passes.pairs, pad_id)
    # What pass 2 is trained on top of belongs to its checkpoints' identity; `fit` cannot see it.
    own = digest([passes.second.identity, fingerprint(first)])
    second, two = _train(model, lora, replace(passes.second, identity=own), passes.axis, progress)
    whole = merged(first, second, rank)
    task_vector.apply(task_vector.combined([whole.vector, first], [1.0, -1.0], passes.axis), model)
    seen["merged"] = losses(model, passes.pairs, pad_id)
    return Trained(first, second, whole, joined(one, two), seen)


def _train(model: PreTrainedModel, lora: Lora, job: Job, axis: str, progress: Progress) -> tuple[TaskVector, Curve]:
    with tempfile.TemporaryDirectory() as scratch:
        curve = train_adapter(model, lora, job, Path(scratch), progress)
        return read_adapter(Path(scratch), axis), curve


def joined(one: Curve, two: Curve) -> Curve:
    """The curves of both passes as one: steps continue, `pass` is 1 and 2."""
    rows: Curve = [{"step": row["step"], "pass": 1, **_parts(row)} for row in one]
    return rows + [{"step": len(one) + row["step"], "pass": 2, **_parts(row)} for row in two]


def _parts(row: Mapping[str, int | float]) -> dict[str, int | float]:
    return {name: value for name, value in row.items() if name != "step"}


def fingerprint(vector: TaskVector) -> str:
    """sha256 over the factors' names, shapes and bytes, sorted by name."""
    found = hashlib.sha256()
    for name in sorted(vector.parts):
        part = vector.parts[name]
        for side, factor in (("a", part.a), ("b", part.b)):
            found.update(digest([name, side, str(factor.dtype), list(factor.shape)]).encode())
            found.update(factor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
