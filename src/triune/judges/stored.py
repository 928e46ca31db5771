"""A trained judge as files: judge.json, and its arrays in judge.safetensors. No pickle: reading runs no code."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triune.errors import InputError
from triune.judges.features import NUMBERS, VIEWS, Block, Features
from triune.judges.linear import Fitted
from triune.models.store import load_tensors, save_tensors
from triune.parsing import parse_json
from triune.record import write_json
from triune.types import Agreement, Score

DESCRIPTION, ARRAYS = "judge.json", "judge.safetensors"
_GATE = "gate."  # before the names of a gate's arrays
# What a verdict depends on.
_CODE = (
    "features.py",
    "gated.py",
    "linear.py",
    "refusals.py",
    "spoiled.py",
    "deciding.py",
    "classifier.py",
)


@dataclass(frozen=True, slots=True)
class StoredJudge:
    """What a folder holds: the kind, what training found, how far it agrees with labels that it never saw.

    `transfer`: source -> agreement there of a judge of the same kind that was trained without that source.
    `counts`: training, validation and test answers.
    """

    kind: str
    code: str
    fitted: Fitted
    agreement: Agreement
    transfer: Mapping[str, Agreement]
    counts: Mapping[str, int]


def code_version() -> str:
    """The hash of the sources that decide what a judge answers: another one, and stored judges are trained anew."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _CODE)).hexdigest()[:16]


def save_judge(folder: Path, judge: StoredJudge) -> None:
    """Write both files into an existing folder; arrays as float32."""
    fitted = judge.fitted
    arrays = _arrays(fitted, "") | (_arrays(fitted.gate, _GATE) if fitted.gate else {})
    save_tensors(folder / ARRAYS, {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()})
    write_json(
        folder / DESCRIPTION,
        {
            "kind": judge.kind,
            "code": judge.code,
            **_told(fitted),
            "gate": _told(fitted.gate) if fitted.gate else None,
            "counts": judge.counts,
            "agreement": judge.agreement,
            "transfer": judge.transfer,
        },
    )


def _arrays(fitted: Fitted, prefix: str) -> dict[str, np.ndarray]:
    named = {f"{prefix}idf.{number}": array for number, array in enumerate(fitted.idf)}
    return {**named, f"{prefix}coefficients": fitted.coefficients}


def _told(fitted: Fitted) -> dict[str, Any]:
    return {name: getattr(fitted, name) for name in ("features", "intercept", "slope", "offset")}


def load_judge(folder: Path) -> StoredJudge:
    """The judge of a folder, checked.

    Raises InputError where a file is missing or damaged, the arrays have other sizes than the description says, or the
    judge was made by other code, whose features would be others.
    """
    place = folder / DESCRIPTION
    try:
        told = parse_json(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{place}: no readable judge ({error}); train it with train_judge.") from error
    tensors = load_tensors(folder / ARRAYS)
    try:
        if told["code"] != code_version():
            raise InputError(f"{folder}: made by another version of Triune's judges; remove it, and train it again.")
        arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        gate = None if told["gate"] is None else _fitted(told["gate"], arrays, _GATE)
        fitted = replace(_fitted(told, arrays, ""), gate=gate)
        agreement = _agreement(told["agreement"])
        transfer = {str(name): _agreement(value) for name, value in told["transfer"].items()}
        return StoredJudge(told["kind"], told["code"], fitted, agreement, transfer, told["counts"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: not a judge's description ({error!r}); train it again.") from error


def _fitted(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> Fitted:
    seen = told["features"]
    blocks = tuple(Block(**block) for block in seen["blocks"])
    features = Features(blocks, tuple(seen["numbers"]), float(seen["scale"]))
    idf = tuple(arrays[f"{prefix}idf.{number}"] for number in range(len(features.blocks)))
    coefficients = arrays[f"{prefix}coefficients"]
    values = [float(told[name]) for name in ("intercept", "slope", "offset")]
    sizes = [len(array) for array in idf]
    wanted = [block.buckets for block in features.blocks]
    known = {block.view for block in features.blocks} <= VIEWS.keys() and set(features.numbers) <= NUMBERS.keys()
    finite = all(map(math.isfinite, values)) and all(np.isfinite(array).all() for array in (*idf, coefficients))
    if not (known and finite and sizes == wanted and len(coefficients) == sum(wanted) + len(features.numbers)):
        raise ValueError("its arrays and its features do not fit together")
    return Fitted(features, idf, coefficients, values[0], values[1], values[2])


def _agreement(told: Mapping[str, Any]) -> Agreement:
    measures = tuple(Score(**{**score, **_numbers(score)}) for score in told["measures"])
    return Agreement(_number(told["accuracy"]), int(told["n"]), str(told["labels"]), measures)


def _numbers(score: Mapping[str, Any]) -> dict[str, float]:
    return {name: _number(score[name]) for name in ("value", "low", "high")}


def _number(value: float | None) -> float:
    # JSON has no NaN: it was written as null.
    return math.nan if value is None else float(value)
