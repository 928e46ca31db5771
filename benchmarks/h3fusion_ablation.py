"""H3Fusion's ablation over seeds: the tables of docs/h3fusion.md from finished runs.

    triune run recipes/h3fusion-ablation.yaml --out runs/h3fusion
    python benchmarks/h3fusion_ablation.py docs/results/h3fusion.json runs/h3fusion/seed-*

Writes one value a seed of every number into the file named first, and prints the tables, which are made from that file
alone; docs/draw_h3fusion.py draws the figures from it. See `ablation`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ablation import Table, collect, differences, generated, scores_of, table_of
from run_numbers import BEST, best_expert, command, cpu_seconds, gathered, write

from triune.experts import lowrank
from triune.experts.lowrank import LowRank
from triune.fusion import losses
from triune.fusion.factors import Stack
from triune.models.store import load_tensors

ROWS = {"kind": "routing", "what": "whole rows", "group": ""}
CALIBRATION = {
    "routing confidence": {**ROWS, "metric": "confidence"},
    "misrouting": {**ROWS, "metric": "misrouting"},
}
AXES = ("helpful", "harmless", "honest")
MATRICES = ("gate", "up", "down")


def _steps_of_gamma(axis: str) -> dict[str, str]:
    return {value: f"fused:{axis}-1e-{power}" for power, value in ((4, "0.0001"), (3, "0.001"), (2, "0.01"))}


# Of one setting each: what it is called, and which models have which value of it. "fused" is the preset.
STEPS = "those of the recipe"
SWEEPS: dict[str, tuple[str, dict[str, str]]] = {
    "gating": (
        "λ",
        {"0": "fused:gating-0", "0.001": "fused:gating-1e-3", "0.01": "fused", "0.1": "fused:gating-1e-1"}
        | {"1": "fused:gating-1"},
    ),
    "start": (
        "routers at the start:",
        {"random, λ 0": "fused:random-0", "random, λ 0.01": "fused:random", "random, λ 1": "fused:random-1"}
        | {"logistic, λ 0.01": "fused"},
    ),
    **{f"drift {axis}": (f"γ {axis}", {"0": "fused", **_steps_of_gamma(axis)}) for axis in AXES},
    "drift": ("γ of all", {"0": "fused", "0.01": "fused:drift-1e-2", "1": "fused:drift-1"}),
    "representation": ("ρ", {"0": "fused", "0.01": "fused:representation-1e-2", "0.1": "fused:representation-1e-1"}),
    "top_k": ("k", {"1": "fused:top-1", "2": "fused", "3": "fused:top-3"}),
    "steps": (
        "steps",
        {str(n): f"fused:steps-{n}" for n in (15, 25, 30, 60)}
        | {STEPS: "fused"}
        | {str(n): f"fused:steps-{n}" for n in (240, 400, 480)},
    ),
    "rank": ("rank", {"1": "fused:rank-1", "2": "fused:rank-2", "8": "fused"}),
    "trainable": (
        "trained:",
        {"routers": "fused:routers", "routers and experts": "fused", "attention too": "fused:attention"},
    ),
}
# By the experts' rank: who is trained on so many joint rows an axis. Stage 2's steps, and for "long" all stages'.
JOINT = ("5", "20", "100", "400")
SCARCE: dict[str, dict[str, dict[str, str]]] = {
    rank: {
        "fused": {**{n: f"fused:{prefix}joint-{n}" for n in joint}, "all": whole},
        "mixture": {n: f"mixture:{prefix}joint-{n}" for n in joint},
        "long mixture": {**{n: f"mixture:{prefix}long-joint-{n}" for n in JOINT}, "all": mixture},
        "fused, random routers": {n: f"fused:{prefix}random-joint-{n}" for n in random},
    }
    for rank, prefix, whole, mixture, joint, random in (
        ("8", "", "fused", "mixture", (*JOINT, "500"), ("5", "20")),  # real data have 500 rows
        ("1", "rank-1-", "fused:rank-1", "mixture:rank-1", JOINT, ()),
    )
}
COMPARED = {
    "base": "base",
    **{f"expert:{axis}": f"{axis} expert" for axis in AXES},
    BEST: "best expert (hindsight)",
    "mixture": "one LoRA on the mixture",
    "average": "average",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare_ties": "DARE, TIES",
    "ensemble": "average of probabilities",
    "ranking": "best of the experts' answers",
    "instruct": "H3Fusion Instruct",
    "fused": "fused",
}
MAPPED = ("base", *(f"expert:{axis}" for axis in AXES), "fused", "fused:drift-1e-2", "fused:drift-1")


def collect_into(target: Path, folders: Sequence[Path]) -> None:
    """Write what the tables and figures need of finished runs, one folder a seed, into one small file."""
    table = collect(folders, CALIBRATION)
    result = {
        "runs": [folder.name for folder in folders],
        "cpu_seconds": cpu_seconds(folders),
        "sweeps": sweeps(table, steps_of(folders[0])),
        "scarce": {rank: {line: _there(own, table) for line, own in lines.items()} for rank, lines in SCARCE.items()},
        "models": table | best_expert(table),
        "routing": gathered([routing(folder, table) for folder in folders]),
        "drift": gathered([drift(folder) for folder in folders]),
        "moved": gathered([moved(folder) for folder in folders]),
        "map": hidden_map(folders[0]),
        "prompts": over_prompts(folders[0], table),
    }
    write(target, result)


def sweeps(table: Table, steps: int) -> dict[str, dict[str, Any]]:
    """[sweep]: its symbol and its models that were run, by what was set; `steps` are stage 2's in the recipe."""
    found = {}
    for name, (symbol, models) in SWEEPS.items():
        there = _there({str(steps) if set_to == STEPS else set_to: own for set_to, own in models.items()}, table)
        found[name] = {"symbol": symbol, "models": there}
    return found


def steps_of(folder: Path) -> int:
    """The steps of stage 2 in a run's recipe."""
    return int(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["align"]["fit"]["steps"])


def _there(models: Mapping[str, str], table: Table) -> dict[str, str]:
    return {name: model for name, model in models.items() if model in table}


def over_prompts(folder: Path, table: Table) -> dict[str, Any]:
    """Of likelihoods: one run's differences of `fused` to the models of COMPARED, with intervals over test prompts.

    Empty where the world was drawn anew by every seed; then the seeds' interval says more.
    """
    if generated(table):
        return {}
    wanted, _ = scores_of(table)
    pairs = json.loads((folder / "comparisons.json").read_text(encoding="utf-8"))["rows"]
    found: dict[str, dict[str, list[float]]] = {}
    for row in pairs:
        if row["score"] in wanted and row["model"] in COMPARED:
            # The run says by how much the other model is above `fused`.
            found.setdefault(row["model"], {})[row["score"]] = [
                round(-row[key], 4) for key in ("value", "high", "low")
            ]
    return {"run": folder.name, "differences": found}


def samples(folder: Path, model: str) -> Path:
    """Where a run keeps what was observed of a model."""
    return folder / "samples" / model.replace(":", "-")


def routing(folder: Path, models: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
    """[model][axis][expert]: the mean weight of an expert over layers, on held-out rows of an axis."""
    found = {}
    for model in models:
        path = samples(folder, model) / "routing.json"
        if path.is_file():
            seen = json.loads(path.read_text(encoding="utf-8"))
            mean = torch.tensor(seen["mean"], dtype=torch.float64).mean(1)
            found[model] = {
                axis: dict(zip(seen["experts"], weights, strict=True))
                for axis, weights in zip(seen["axes"], mean.tolist(), strict=True)
            }
    return found


def drift(folder: Path) -> dict[str, dict[str, float]]:
    """[model][axis]: the mean L2 distance of the last hidden state to the base's."""
    found: dict[str, dict[str, float]] = {}
    for row in json.loads((folder / "drift.json").read_text(encoding="utf-8"))["distances"]:
        found.setdefault(row["model"], {})[row["axis"]] = row["value"]
    return found


def moved(folder: Path) -> dict[str, dict[str, float]]:
    """[model][expert]: how far stage 2 moved an expert's feed-forward weights; see `losses.drift`.

    Of `fused` from `start`, and of every variant from its own start, in float64 from the factors.
    """
    places = {"fused": folder, **{f"fused:{place.name}": place for place in sorted(folder.glob("variants/*"))}}
    found = {}
    for model, place in places.items():
        start, now = (increments(place / name) for name in ("start", "fused"))
        found[model] = {expert: float(losses.drift(now[expert], start[expert])) for expert in now}
    return found


def increments(model: Path) -> dict[str, list[list[LowRank]]]:
    """[expert][layer][matrix]: the increments that a fused model stores, in float64."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    stored = load_tensors(model / "model.safetensors")
    n_layers, ranks = config["text_config"]["num_hidden_layers"], config["expert_ranks"]

    def stack(layer: int, matrix: str) -> Stack:
        a, b = (stored[f"model.layers.{layer}.mlp.{matrix}_{side}"] for side in "ab")
        return Stack(a, b, tuple(ranks[matrix]))

    stacks = [[stack(layer, matrix) for matrix in MATRICES] for layer in range(n_layers)]
    return {
        expert: [
            [lowrank.double(LowRank(b.T, a)) for a, b in (own.expert(index) for own in layer)] for layer in stacks
        ]
        for index, expert in enumerate(config["expert_names"])
    }


def hidden_map(folder: Path) -> dict[str, Any]:
    """Two coordinates of each held-out row's hidden state in each of MAPPED, all together, as the report's map has it.

    "rows" holds the axis of every row.
    """
    from triune.diagnose.drift import projection

    paths = {model: samples(folder, model) / "states.safetensors" for model in MAPPED}
    states = {model: load_tensors(path)["states"] for model, path in paths.items() if path.is_file()}
    rows = json.loads((samples(folder, "base") / "state_axes.json").read_text(encoding="utf-8"))
    method, points = projection(states, rows, 0)
    flat = {
        model: {side: [round(point[side], 1) for point in points if point["model"] == model] for side in ("x", "y")}
        for model in states
    }
    return {"run": folder.name, "method": method, "rows": rows, "models": flat}


def numbers(result: Mapping[str, Any]) -> Table:
    """All numbers of a result file in one table: routing and distances beside the scores."""
    table: Table = {model: dict(own) for model, own in result["models"].items()}
    for model, shares in result["routing"].items():
        for axis in shares:
            table[model][f"weight of {axis} on its rows"] = shares[axis][axis]
            table[model][f"weight of {axis}"] = overall(shares, axis)
    for kind in ("moved", "drift"):
        for model, own in result[kind].items():
            table.setdefault(model, {}).update({f"{kind}: {name}": values for name, values in own.items()})
    return table


def overall(shares: Mapping[str, Mapping[str, Sequence[float | None]]], expert: str) -> list[float | None]:
    """A seed's mean weight of an expert, all axes' rows counting alike."""
    columns = zip(*(own[expert] for own in shares.values()), strict=True)
    return [None if None in values else sum(v for v in values if v is not None) / len(values) for values in columns]


def tables(result: Mapping[str, Any]) -> str:
    """The Markdown tables of a result file: means with 95 % intervals over seeds, and paired differences."""
    table, blocks = numbers(result), []
    scores, digits = scores_of(table)
    compared = {model: name for model, name in COMPARED.items() if model in table}
    pairs = [("fused", model) for model in compared if model != "fused"]
    blocks += [f"Seeds: {', '.join(result['runs'])}; processor time {result['cpu_seconds']} s.", "### Compared"]
    blocks += _both(table, compared, pairs, scores, digits)
    blocks.append(table_of(table, compared, ["latency"], 2, CALIBRATION))
    blocks += _prompts(result["prompts"], scores)
    for name, own in result["sweeps"].items():
        names = {model: f"{own['symbol']} {value}" for value, model in own["models"].items() if model in table}
        pairs = [(model, "fused") for model in names if model != "fused"]
        if not pairs:
            continue
        blocks.append(f"### {name}")
        blocks += _both(table, names, pairs, scores, digits)
        for found, places in _inside(table, names):
            blocks += _both(table, names, pairs, found, places)
    for rank, lines in result["scarce"].items():
        blocks.append(f"### Scarce joint data, rank {rank}")
        names = {model: f"{line}, {n}" for line, own in lines.items() for n, model in own.items() if model in table}
        fused = lines["fused"]
        pairs = [(fused[n], own[n]) for line, own in lines.items() if line != "fused" for n in own]
        blocks += _both(table, names, [pair for pair in pairs if set(pair) <= table.keys()], scores, digits)
    return "\n\n".join(blocks)


def _prompts(result: Mapping[str, Any], scores: Sequence[str]) -> list[str]:
    if not result:
        return []
    lines = [f"| fused − | {' | '.join(scores)} |", "|---" * (len(scores) + 1) + "|"]
    for model, own in result["differences"].items():
        cells = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in (own[score] for score in scores)]
        lines.append(f"| {COMPARED[model]} | {' | '.join(cells)} |")
    return [f"### Over the test prompts of {result['run']}", "\n".join(lines)]


def _inside(table: Table, names: Mapping[str, str]) -> list[tuple[list[str], int]]:
    """What else to show of the models: groups of numbers that at least one has, and their decimals."""
    wanted = (
        ("misrouting",),
        ("routing confidence", *(f"weight of {axis} on its rows" for axis in AXES)),
        tuple(f"weight of {axis}" for axis in AXES),
        tuple(f"{kind}: {axis}" for kind in ("moved", "drift") for axis in AXES),
    )
    there = [[number for number in group if any(number in table[model] for model in names)] for group in wanted]
    return [(group, digits) for group, digits in zip(there, (1, 3, 3, 2), strict=True) if group]


def _both(
    table: Table, names: Mapping[str, str], pairs: Sequence[tuple[str, str]], wanted: Sequence[str], digits: int
) -> list[str]:
    told = [table_of(table, names, wanted, digits, BOUNDED)]
    return [*told, differences(table, names, pairs, wanted, digits)] if pairs else told


# What `ablation.bounds` reads: shares are from 0 to 1.
BOUNDED = CALIBRATION | {
    f"weight of {axis}{where}": {"metric": "weight"} for axis in AXES for where in ("", " on its rows")
}


if __name__ == "__main__":
    command(collect_into, tables)
