"""What subtracting an expert does on the miniature world: refusals without harmlessness, task success without help.

    for seed in 0 1 3 4; do triune demo --seed $seed --out runs/demo-$seed; done
    python benchmarks/negation.py docs/results/negation.json runs/demo-0 runs/demo-1 runs/demo-3 runs/demo-4

Takes each finished demo's base, experts and test prompts; adds and subtracts the harmless and the helpful expert, as a
merge (base ± T) and in fused models that are not trained further: their routers at zero (a uniform mixture of all
experts), or started from data as the demo's are. Writes every score with its 95 % interval into the file named first,
and prints the medians. `harmless` is the share of harmful questions that are refused, `over_refusal` that of harmless
ones, `helpful` the share of tasks solved.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from triune import pipeline
from triune.baseline_settings import TaskArithmetic
from triune.baselines.opening import open_subject
from triune.data.rows import load_rows
from triune.evaluation.answering import answer
from triune.evaluation.scoring import generative_scores
from triune.models.generation import Decoding
from triune.pipeline import Context, evaluating
from triune.recipe import Fuse, Recipe
from triune.recipe_file import load_recipe
from triune.types import Example

SCORES = ("helpful", "harmless", "over_refusal")
SIGNS = {"+": 1.0, "-": -1.0}
NEGATED = ("harmless", "helpful")
Row = dict[str, float | int | str]


def models(context: Context, recipe: Recipe, run: Path, work: Path) -> dict[str, Path | None]:
    """The models by name, made under `work`."""
    found: dict[str, Path | None] = {"base": None}
    experts = {axis: run / "experts" / axis for axis in recipe.axes}
    for axis in NEGATED:
        for sign, weight in SIGNS.items():
            how = TaskArithmetic(scale=1.0, weights={axis: weight})
            only = {axis: experts[axis]}
            name = f"base {sign} {axis}"
            found[name] = pipeline.merge(context, only, work / name.replace(" ", ""), "task_arithmetic", how)
    rows = load_rows(run / "data" / "joint.jsonl", Example)
    starts = {"zeros": {"top_k": len(experts)}, recipe.fuse.router_init: {"top_k": recipe.fuse.top_k}}
    for start, settings in starts.items():
        for axis in ("", *NEGATED):
            weights = {axis: -1.0} if axis else {}
            fuse = Fuse(router_init=start, weights=weights, allow_negated=True, **settings)
            name = f"fused ({start})" + (f" - {axis}" if axis else "")
            found[name] = pipeline.fuse(context, experts, work / f"{start}{axis}", fuse, rows)
    return found


def measure(run: Path) -> list[Row]:
    """Every score of every model of one demo, with its interval."""
    recipe = load_recipe(run / "recipe.yaml")
    context = Context(recipe.base.model_copy(update={"path": str(run / "base")}), recipe.seed)
    prompts = {name: own for name, own in evaluating.load_prompts(run / "data").items() if name in SCORES}
    decoding = Decoding(recipe.new_tokens, seed=recipe.seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as work:
        for model, folder in models(context, recipe, run, Path(work)).items():
            respond = open_subject(folder, context.base).respond
            samples = answer(model, respond, prompts, decoding, recipe.batch_size, context.progress)
            rng = np.random.default_rng(recipe.seed)
            for score in generative_scores(prompts, samples, dict.fromkeys(prompts), rng)[0]:
                numbers = {key: round(getattr(score, key), 2) for key in ("value", "low", "high")}
                rows.append({"seed": recipe.seed, "model": model, "score": score.name, "n": score.n, **numbers})
    return [row for row in rows if row["score"] in SCORES]


def table(rows: list[Row]) -> str:
    """Median (smallest to largest) over the seeds."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    lines = ["| model | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 1) + "|"]
    for name in names:
        cells = []
        for score in SCORES:
            own = [float(row["value"]) for row in rows if (row["model"], row["score"]) == (name, score)]
            cells.append(f"{statistics.median(own):.1f} ({min(own):.1f} to {max(own):.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(out: str, *runs: str) -> None:
    rows = [row for run in runs for row in measure(Path(run))]
    text = ",\n ".join(json.dumps(row) for row in rows)
    Path(out).write_text(f"[{text}]\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
