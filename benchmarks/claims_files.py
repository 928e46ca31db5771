"""The result files that claims are decided by: how each was made, and how it is read."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SPENT = "evidence.json"  # what each row of `evidence` took: wall and processor time
WORLDS = "worlds of the miniature kind, each with a base and experts of its own"


def as_it_is(content: Any) -> Any:
    """The file's own shape."""
    return content


def by_model(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of (seed, model, score, value) as a table of one value a seed."""
    seeds = sorted({row["seed"] for row in rows})
    table: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        own = table.setdefault(row["model"], {}).setdefault(row["score"], [None] * len(seeds))
        own[seeds.index(row["seed"])] = row["value"]
    return {"runs": [f"seed-{seed}" for seed in seeds], "models": table}


@dataclass(frozen=True, slots=True)
class Made:
    """How a result file was made: by which recipe (or none) and script, on what."""

    script: str
    on: str
    recipe: str = ""
    read: Callable[[Any], Any] = as_it_is


ONE_MODEL = "one random model, side by side in one process; no seeds"
FILES = {
    "h3fusion.json": Made("h3fusion_ablation.py", WORLDS, "recipes/h3fusion-ablation.yaml"),
    "h3fusion_real_tiny.json": Made(
        "h3fusion_ablation.py", "stories260K and real data", "recipes/h3fusion-ablation-real-tiny.yaml"
    ),
    "trinityx.json": Made("trinityx_ablation.py", WORLDS, "recipes/trinityx-ablation.yaml"),
    "alignx.json": Made("alignx_ablation.py", WORLDS, "recipes/alignx-ablation.yaml"),
    "conflict.json": Made("conflict.py", f"{WORLDS}, for each part of shared wording", "recipes/conflict.yaml"),
    "sizes.json": Made("sizes.py", f"{WORLDS}, for each size of the base", "recipes/miniature-large.yaml"),
    "demo_seeds.json": Made("demo_seeds.py", WORLDS, "src/triune/recipes/miniature.yaml"),
    "alignx_collapse.json": Made("alignx_collapse.py", WORLDS, "recipes/alignx-ablation.yaml"),
    "collapse_seeds.json": Made("triune diagnose collapse", WORLDS, "recipes/trinityx-ablation.yaml"),
    "negation.json": Made("negation.py", WORLDS, "src/triune/recipes/miniature.yaml", by_model),
    "alignx_real_tiny.json": Made(
        "alignx_ablation.py", "stories260K and real data", "recipes/alignx-ablation-real-tiny.yaml"
    ),
    "trinityx_forms.json": Made("trinityx_forms.py", ONE_MODEL),
    "alignx_forms.json": Made("alignx_forms.py", ONE_MODEL),
    "whole_model.json": Made("whole_model.py", ONE_MODEL),
}


def contents(folder: Path = RESULTS) -> dict[str, Any]:
    """What the files hold that are there."""
    found = {name: made for name, made in FILES.items() if (folder / name).is_file()}
    return {name: made.read(json.loads((folder / name).read_text(encoding="utf-8"))) for name, made in found.items()}


def spent(folder: Path = RESULTS) -> dict[str, float | None]:
    """Processor seconds by result file: of the evidence run, or what the file itself says; None where unknown."""
    measured = {row["result"]: row["cpu_seconds"] for row in _accounts(folder) if not row["steps_without_cpu"]}
    own = {name: content.get("cpu_seconds") for name, content in contents(folder).items()}
    return {name: measured.get(name, seconds) for name, seconds in own.items()}


def at_most(folder: Path = RESULTS) -> dict[str, float]:
    """An upper bound of the processor seconds, by result file, where some steps' records have the wall time alone."""
    return {row["result"]: row["cpu_at_most"] for row in _accounts(folder) if row["steps_without_cpu"]}


def _accounts(folder: Path) -> list[dict[str, Any]]:
    path = folder / SPENT
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"].values()) if path.is_file() else []
