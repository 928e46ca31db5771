"""Where a fused model sends the tokens of each axis's data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triune.errors import InputError
from triune.fusion import router
from triune.fusion.calibrating import Logits
from triune.fusion.modeling import TriuneForCausalLM
from triune.metrics.routing import mean_weights, sample_weights
from triune.models.encoding import Encoded, by_length, collate
from triune.models.likelihood import inference, prompt_ends


def routing_weights(model: TriuneForCausalLM, rows: Sequence[Encoded], pad_id: int, batch_size: int = 64) -> Tensor:
    """The router's probabilities, averaged over each row's own tokens: [layers, rows, experts], in the rows' order."""
    if not rows:
        return torch.zeros(model.config.num_routers, 0, model.config.num_experts)
    config: Any = model.config
    found: dict[int, Tensor] = {}
    with inference(model) as device:
        for indices in by_length(rows, batch_size):
            batch = collate([rows[i] for i in indices], pad_id)
            mask = batch["attention_mask"].to(device)
            out = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=mask,
                use_cache=False,
                output_router_logits=True,
                **prompt_ends(model, batch),
                logits_to_keep=1,  # over whole rows the vocabulary's logits would be the largest tensor of all
            )
            probs = router.layer_probabilities(out.router_logits, config)
            weights = sample_weights(probs.float(), mask.bool()).float().cpu()
            found |= {index: weights[:, place] for place, index in enumerate(indices)}
    return torch.stack([found[index] for index in range(len(rows))], 1)


@dataclass(frozen=True)
class TokenRouting:
    """The routing of every row's own tokens: `probs` after temperature and bias, `sample` the row of each token."""

    probs: Float[Tensor, "layers tokens experts"]
    sample: Int[Tensor, " tokens"]


def token_routing(
    model: TriuneForCausalLM, rows: Sequence[Encoded], pad_id: int, batch_size: int = 64
) -> TokenRouting:
    """The router's probabilities token by token, as the model routes."""
    logits, sample = _heard(model, rows, pad_id, batch_size)
    config: Any = model.config
    return TokenRouting(router.layer_probabilities(list(logits), config), sample)


def spread(sample: Int[Tensor, " tokens"], most: int) -> Int[Tensor, " kept"]:
    """The places of at most `most` tokens of every row, evenly spread over it; all where it has no more."""
    kept: list[Tensor] = []
    for row in sample.unique():
        places = (sample == row).nonzero().flatten()
        n = min(most, len(places))
        kept.append(places[torch.arange(n) * len(places) // n])
    return torch.cat(kept).sort().values if kept else sample


def routing_logits(
    model: TriuneForCausalLM, rows: Sequence[Encoded], pad_id: int, batch_size: int = 64
) -> tuple[Logits, list[int]]:
    """Every layer's routing logits of the rows' own tokens, each a sample for `fit`, and the row that each is of.

    The axis of a token is its row's. Raises InputError where a row's axis has no expert.
    """
    names = list(model.config.expert_names)
    strangers = sorted({str(row.axis) for row in rows} - set(names))
    if strangers:
        raise InputError(f"there are rows of {strangers}; the model's experts are {names}")
    values, sample = _heard(model, rows, pad_id, batch_size)
    axis = torch.tensor([names.index(str(row.axis)) for row in rows], dtype=torch.int64)
    return Logits(values, torch.arange(len(sample)), axis[sample]), sample.tolist()


def _heard(model: TriuneForCausalLM, rows: Sequence[Encoded], pad_id: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """The routers' logits [layers, tokens, experts] of the tokens that count, and the row of each token."""
    values = [torch.zeros(model.config.num_routers, 0, model.config.num_experts)]
    sample = [torch.zeros(0, dtype=torch.int64)]
    with inference(model) as device:
        for indices in by_length(rows, batch_size):
            batch = collate([rows[i] for i in indices], pad_id)
            mask = batch["attention_mask"].to(device)
            ends = prompt_ends(model, batch)
            with model.listening() as heard:
                model(
                    input_ids=batch["input_ids"].to(device),
                    attention_mask=mask,
                    use_cache=False,
                    logits_to_keep=1,
                    **ends,
                )
            values.append(torch.stack([layer[mask.bool()] for layer in heard]).cpu())
            sample.append(torch.tensor(indices)[:, None].expand(mask.shape)[mask.bool().cpu()])
    return torch.cat(values, 1), torch.cat(sample)


def routing_map(model: TriuneForCausalLM, rows: Sequence[Encoded], axes: Sequence[str], pad_id: int) -> dict[str, Any]:
    """H3Fusion's routing figure as data: mean weight by axis of the row, layer and expert (routing.json).

    Raises InputError for rows of an axis that is not asked for, and for an axis without rows.
    """
    there = {str(row.axis) for row in rows}
    strange, empty = sorted(there - set(axes)), [axis for axis in axes if axis not in there]
    if strange or empty:
        problem = f"there are rows of {strange}" if strange else f"there are no rows of {empty}"
        raise InputError(f"{problem}; the map's axes are {list(axes)}, each with rows of its own")
    weights = routing_weights(model, rows, pad_id)
    axis = torch.tensor([axes.index(str(row.axis)) for row in rows])
    mean = mean_weights(weights, axis, len(axes))
    return {
        "model": "fused",
        "experts": list(model.config.expert_names),
        "axes": list(axes),
        "n_layers": len(weights),
        "mean": mean.tolist(),
        "n_tokens": [sum(len(row.input_ids) for row in rows if row.axis == name) for name in axes],
    }
