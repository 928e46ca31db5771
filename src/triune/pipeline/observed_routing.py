"""Where a fused model sends the tokens of test rows and of groups of prompts: saved by `observe`, for scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.data.preparing import GROUPS
from triune.data.rows import load_rows
from triune.data.templates import render
from triune.diagnose.routing import spread, token_routing
from triune.evaluation.likelihoods import Scorer
from triune.models.encoding import Encoded, encode_prompt, pad_id
from triune.models.store import save_tensors
from triune.parsing import read_json
from triune.pipeline.verbs import Context
from triune.record import write_json
from triune.types import Example

TOKENS = 24  # of a row that the routing's calibration is measured on: more say little more, and cost resampling
ROUTED = "routed.safetensors"  # probs [layers, tokens, experts], sample [tokens], axis [samples]
GROUPED = "routed_groups.safetensors"  # the same of the groups' prompts, and group [samples], an index of NAMES
NAMES = "routed_groups.json"


def observe_routing(scorer: Scorer, context: Context, data: Path, model: Path | None, draft: Path) -> None:
    """The routing of the test rows' tokens and of the groups' prompts; the isotonic map that the model has, if any."""
    known = _known(scorer, data / "routed.jsonl")
    rows = context.encode(scorer.tokenizer, known) if known else []
    if rows:
        save_tensors(draft / ROUTED, _routing(scorer, rows, TOKENS))
        fitted = model / "calibration.json" if model is not None else None
        if fitted is not None and fitted.is_file():
            write_json(draft / "isotonic.json", read_json(fitted)["isotonic"])
    if (data / GROUPS).is_file():
        _observe_groups(scorer, context, _known(scorer, data / GROUPS), draft)


def _known(scorer: Scorer, path: Path) -> list[Example]:
    """The rows whose axis has an expert."""
    config: Any = scorer.model.config
    names = list(config.expert_names or [])
    return [row for row in load_rows(path, Example) if row.axis in names]


def _observe_groups(scorer: Scorer, context: Context, rows: Sequence[Example], draft: Path) -> None:
    """Of prompts alone: an answer would tell the axis by its own words, and the model is to find it unasked."""
    base, config = context.base, scorer.model.config
    found, groups = [], []
    for row in rows:
        ids = encode_prompt(scorer.tokenizer, render(base.template, row.prompt, scorer.tokenizer))
        if len(ids) < base.max_length:  # as where an answer is to follow
            found.append(Encoded(tuple(ids), len(ids), row.axis))
            groups.append(row.source)
    if len(found) < len(rows):
        context.progress.say(f"  {len(rows) - len(found)} of {len(rows)} prompts of groups do not fit: left out")
    if found:
        names = list(dict.fromkeys(groups))
        group = torch.tensor([names.index(own) for own in groups])
        # A router of prompts gives a prompt one weight vector: its every token would say the same.
        by_prompt = getattr(config, "routing", "") == "prompt"
        save_tensors(draft / GROUPED, {**_routing(scorer, found, 1 if by_prompt else TOKENS), "group": group})
        write_json(draft / NAMES, names)


def _routing(scorer: Scorer, rows: Sequence[Encoded], most: int) -> dict[str, Tensor]:
    """The probabilities of up to `most` tokens a row, the row of each token, and each row's axis."""
    fused: Any = scorer.model
    names = list(fused.config.expert_names)
    found = token_routing(fused, rows, pad_id(scorer.tokenizer), scorer.batch_size)
    axis = torch.tensor([names.index(str(row.axis)) for row in rows])
    kept = spread(found.sample, most)
    return {"probs": found.probs[:, kept].float().contiguous(), "sample": found.sample[kept], "axis": axis}
