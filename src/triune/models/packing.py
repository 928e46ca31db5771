"""Several short examples in one row: no padding is computed, and no example sees another.

Positions restart at each example, by which transformers lets tokens attend within their own example only (eager, SDPA
and flex attention). What the model gives is put back into one row an example, so that losses are computed as ever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triune.errors import InputError
from triune.models.encoding import Encoded

IDS, POSITIONS, PLACES = "packed_ids", "packed_positions", "packed_places"  # in a batch that is packed


@dataclass(frozen=True)
class Unpacked:
    """A model's output with one row an example, as wide as the batch; what is behind an example's end is noise."""

    logits: Float[Tensor, "batch tokens vocabulary"]
    router_logits: tuple[Float[Tensor, "batch tokens experts"], ...] | None
    hidden_states: tuple[Float[Tensor, "batch tokens d"], ...] | None  # the last alone


def check_packing(rows: Sequence[Encoded], room: int) -> None:
    """Raise InputError where a row of `room` tokens does not hold the longest example."""
    longest = max(len(row.input_ids) for row in rows)
    if longest > room:
        raise InputError(
            f"fit.packing is {room} tokens a row, and an example has {longest}; raise it to that at least"
        )


def packed(batch: Mapping[str, Tensor], room: int) -> dict[str, Tensor]:
    """What `collate`'s batch (padded on the right) needs to be run in rows of `room` tokens, beside what it has.

    Each example goes into the first row with room for it; rows are cut to the longest one. A row's rest is zeros at
    positions 0, 1, …, one more text that nobody reads.
    """
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1).tolist()
    used: list[int] = []
    begins: list[tuple[int, int]] = []
    for length in lengths:
        row = next((r for r, n in enumerate(used) if n + length <= room), len(used))
        used += [0] if row == len(used) else []
        begins.append((row, used[row]))
        used[row] += length
    width = max(used)
    rows = torch.zeros(len(used), width, dtype=ids.dtype)
    positions = torch.stack([torch.cat([torch.arange(n) * 0, torch.arange(width - n)]) for n in used])
    places = torch.zeros_like(ids)
    for index, ((row, begin), length) in enumerate(zip(begins, lengths, strict=True)):
        rows[row, begin : begin + length] = ids[index, :length]
        positions[row, begin : begin + length] = torch.arange(length)
        places[index, :length] = row * width + begin + torch.arange(length)
    return {IDS: rows, POSITIONS: positions, PLACES: places}


def run(model: nn.Module, batch: Mapping[str, Tensor], **wanted: Any) -> Any:
    """The model's output for a batch, packed or not, with one row an example.

    Raises InputError for a packed batch of a model that routes whole prompts, which finds them row by row.
    """
    if IDS not in batch:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **wanted)
    if "routing_position" in wanted:
        raise InputError("a model that routes whole prompts reads one example a row; leave fit.packing out")
    out = model(input_ids=batch[IDS], position_ids=batch[POSITIONS], use_cache=False, **wanted)
    places = batch[PLACES]
    router_logits, hidden = getattr(out, "router_logits", None), out.hidden_states
    return Unpacked(
        _unpacked(out.logits, places),
        None if router_logits is None else tuple(_unpacked(own, places) for own in router_logits),
        None if hidden is None else (_unpacked(hidden[-1], places),),
    )


def _unpacked(
    rows: Float[Tensor, "rows width *rest"], places: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens *rest"]:
    return rows.flatten(0, 1)[places]
