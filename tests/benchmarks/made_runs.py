"""Folders as finished runs leave them, small and made up: what the scripts over several runs read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

AXES = ("helpful", "harmless", "honest")
LAYERS, WIDE, TALL = 2, 4, 6


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_run(folder: Path, scores: Mapping[str, Mapping[str, float]], cpu: float | None = 60.0) -> Path:
    """What every run has: scores, costs, no calibration, and the record of one step."""
    rows = [{"model": model, "score": n, "value": v} for model, own in scores.items() for n, v in own.items()]
    costs = {
        model: {"parameters_total": 1000, "parameters_active": 900, "latency_ratio": {"value": 1.5}}
        for model in scores
    }
    write_json(folder / "scores.json", rows)
    write_json(folder / "calibration.json", [])
    write_json(folder / "recipe.yaml", {"align": {"fit": {"steps": 120}}})  # JSON is YAML
    write_json(folder / "models.json", costs)
    write_json(folder / "base" / "record.json", {"verb": "pretrain"} | ({} if cpu is None else {"cpu_seconds": cpu}))
    return folder


def add_inside(folder: Path, models: tuple[str, ...], seed: int = 0) -> Path:
    """Hidden states, distances and routing of models, as a run of H3Fusion leaves them: 2 rows an axis."""
    rng = torch.Generator().manual_seed(seed)
    rows = [axis for axis in AXES for _ in range(2)]
    distances = []
    for model in models:
        place = folder / "samples" / model.replace(":", "-")
        place.mkdir(parents=True, exist_ok=True)
        save_file({"states": torch.randn(len(rows), 5, generator=rng)}, place / "states.safetensors")
        write_json(place / "state_axes.json", rows)
        distances += [{"model": model, "axis": axis, "value": 2.0 + n} for n, axis in enumerate(AXES)]
        if model.startswith("fused"):
            # Layer 1 sends 0.8 to the row's own expert, layer 2 0.6: 0.7 together, and 0.15 to either other.
            own = [[[s if e == a else (1 - s) / 2 for e in range(3)] for s in (0.8, 0.6)] for a in range(3)]
            write_json(place / "routing.json", {"experts": AXES, "axes": AXES, "n_layers": 2, "mean": own})
    write_json(folder / "drift.json", {"distances": distances})
    return folder


def write_fused(folder: Path, factors: Mapping[str, Tensor], ranks: tuple[int, ...] = (1, 2, 1)) -> Path:
    """A fused model's files, as far as its increments go."""
    folder.mkdir(parents=True)
    save_file(dict(factors), folder / "model.safetensors")
    kinds = {matrix: list(ranks) for matrix in ("gate", "up", "down")}
    write_json(
        folder / "config.json",
        {"expert_names": AXES, "expert_ranks": kinds, "text_config": {"num_hidden_layers": LAYERS}},
    )
    return folder


def random_factors(seed: int, rank: int = 4) -> dict[str, Tensor]:
    """By name: [rank, in] and [rank, out] of every layer's three matrices."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"gate": (WIDE, TALL), "up": (WIDE, TALL), "down": (TALL, WIDE)}
    return {
        f"model.layers.{layer}.mlp.{matrix}_{side}": torch.randn(rank, size, generator=rng)
        for layer in range(LAYERS)
        for matrix, sizes in shapes.items()
        for side, size in zip("ab", sizes, strict=True)
    }
