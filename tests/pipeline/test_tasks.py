"""What each step of a run needs: told from its arguments, and complete, which hiding everything else proves."""

import json
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from triune.data.preparing import prepare
from triune.errors import InputError
from triune.pipeline.exam import Exam
from triune.pipeline.planning import Planned, Run, plan
from triune.pipeline.running import demo_recipe
from triune.pipeline.serving import observe_model
from triune.pipeline.tasks import Task, needs_of, rebound, step_of, tasks_of
from triune.pipeline.verbs import Context
from triune.progress import SILENT
from triune.recipe import Base, Recipe
from triune.recipe_file import parse_recipe, to_yaml
from triune.record import Step, finished
from triune.served_settings import Served

OUT = Path("run")
TINY = {
    "base.miniature": {
        **{"steps": 2, "batch_size": 2, "hidden_size": 8, "intermediate_size": 8, "layers": 2, "heads": 1},
    },
    **{f"axes.{axis}.train.limit": 16 for axis in ("helpful", "harmless", "honest")},
    **{f"{part}.fit.steps": 1 for part in ("train", "mixture", "align", "instruct")},
    **{f"scarce.{part}.fit.steps": 1 for part in ("train", "mixture", "longer", "align")},
    "scarce.examples": 4,
    "sequential": {"fit": {"steps": 1}},
    "variants": {"long": {"train.fit.steps": 2}, "narrow": {"fuse.top_k": 1}},
    "mixtures": {"few": {"joint": 4, "mixture.fit.steps": 1}},
    "evaluate.0.limit": 2,
    "new_tokens": 2,
}
ROWS = ("sequential", "variants", "mixtures")


def tiny(**changes: Any) -> Recipe:
    values = {**TINY, "compare": [*demo_recipe().compare, *ROWS], **changes}
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return parse_recipe(to_yaml(demo_recipe()), "the demo", overrides=overrides)


def steps_of(recipe: Recipe, out: Path = OUT) -> Planned:
    return plan(Run(recipe, out, prepare(recipe), SILENT))


def test_what_each_step_of_the_whole_demo_needs() -> None:
    needs = needs_of(steps_of(tiny()), OUT)
    experts = tuple(f"experts/{axis}" for axis in ("helpful", "harmless", "honest"))
    long = tuple(f"variants/long/experts/{axis}" for axis in ("helpful", "harmless", "honest"))
    assert needs["data"] == needs["base"] == ()
    for name in (*experts, *long, "mixture", "mixtures/few", "sequential/1-helpful", "scarce/mixture"):
        assert needs[name] == ("base",)
    assert needs["sequential/3-honest"] == ("base", "sequential/2-harmless")
    for name in ("ties", "ensemble", "instruct", "xlora", "arrow", "start", "variants/narrow/start"):
        assert needs[name] == ("base", *experts)
    assert needs["ranking"] == ("base", *experts, "mixture")
    assert needs["variants/long/start"] == ("base", *long)
    assert needs["fused"] == ("base", "start")
    assert needs["samples/base"] == ("data", "base")
    assert needs["samples/ensemble"] == ("data", "base", "ensemble")
    assert needs["costs/fused"] == ("data", "base", "fused")
    observed = tuple(name for name in needs if name.startswith("samples/"))
    assert set(needs["scores"]) == {"data", "base", *observed}


def test_scores_need_the_verdicts_that_stand_beside_them() -> None:
    steps: Planned = {name: partial(Path, name) for name in ("verdicts", "scores")}
    assert needs_of(steps, OUT) == {"verdicts": (), "scores": ("verdicts",)}
    assert needs_of({"scores": steps["scores"]}, OUT) == {"scores": ()}


def test_a_base_and_experts_from_elsewhere_are_nobodys_output(tmp_path: Path) -> None:
    context = Context(Base(path=str(tmp_path / "base")))
    steps: Planned = {"start": partial(_nothing, context, {"helpful": tmp_path / "mine"}, OUT / "start")}
    assert needs_of(steps, OUT) == {"start": ()}


def test_a_file_in_a_steps_folder_is_that_steps_and_the_form_of_a_path_does_not_matter() -> None:
    steps: Planned = {
        "a": partial(_nothing, OUT / "a"),
        "b": partial(_nothing, out=OUT / "b", given=[(OUT / "x" / ".." / "a" / "file.json").absolute()]),
    }
    assert needs_of(steps, OUT)["b"] == ("a",)


def test_a_step_before_what_it_needs_is_refused() -> None:
    steps: Planned = {"b": partial(_nothing, OUT / "a"), "a": partial(_nothing, OUT / "a")}
    with pytest.raises(InputError, match=r"the step b needs \['a'\], which the plan has after it"):
        needs_of(steps, OUT)


def _nothing(*given: object, **named: object) -> Path:
    return OUT


def test_a_step_is_bound_anew_and_told_of_by_a_dry_run(tmp_path: Path) -> None:
    def work(context: Context, out: Path) -> Path:
        assert context.dry
        assert context.notice is not None
        context.notice(Step(out / "other", "x", {}))
        context.notice(Step(out, "y", {"n": 1}))
        return out

    context = Context(Base(path="nowhere"))
    task = Task(partial(work, context, out=tmp_path), tmp_path)
    assert step_of(task) == Step(tmp_path, "y", {"n": 1})
    assert context.notice is None
    assert step_of(Task(lambda: tmp_path, tmp_path)) is None
    assert step_of(Task(partial(_nothing, tmp_path), tmp_path)) is None  # it has no context: it would be done
    bound = rebound(task.work, seed=7)
    assert isinstance(bound, partial)
    assert bound.args[0].seed == 7


def test_a_models_prompts_are_shared_among_tasks_before_its_step(tmp_path: Path) -> None:
    recipe = tiny(compare=["base", "fused"], scarce=None)
    whole, shared = (tasks_of(steps_of(recipe), OUT, shards) for shards in (1, 3))
    parts = [f"samples/fused, answers {i} of 3" for i in (1, 2, 3)]
    assert [name for name in shared if name not in whole] == [
        f"samples/{model}, answers {i} of 3" for model in ("base", "fused") for i in (1, 2, 3)
    ]
    assert shared["samples/fused"].needs == (*whole["samples/fused"].needs, *parts)
    for i, name in enumerate(parts):
        task = shared[name]
        assert (task.part, task.folder, task.needs) == (True, OUT / "samples/fused", whole["samples/fused"].needs)
        assert isinstance(task.work, partial)
        assert task.work.keywords == {"part": (i, 3)}
    assert not any(task.part for task in whole.values())


def test_the_prompts_of_a_served_model_are_not_shared() -> None:
    by = Served(base_url="http://127.0.0.1:9/v1", model="m")
    work = partial(observe_model, Context(Base(path="base")), "theirs", by, Exam(OUT / "data"), OUT / "samples/theirs")
    assert list(tasks_of({"samples/theirs": work}, OUT, 3)) == ["samples/theirs"]


def closure(needs: Mapping[str, Iterable[str]], name: str) -> set[str]:
    """A step's needs, and theirs."""
    found = set(needs[name])
    for other in list(found):
        found |= closure(needs, other)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("evaluate", [pytest.param("miniature", marks=pytest.mark.long), "judged"])
def test_every_step_reads_only_what_it_needs(evaluate: str, tmp_path: Path) -> None:
    """Each step is done while the folders of all others are hidden away."""
    recipe = tiny() if evaluate == "miniature" else _judged(tmp_path)
    out, hidden = tmp_path / "run", tmp_path / "hidden"
    tasks = tasks_of(steps_of(recipe, out), out)
    needs = {name: task.needs for name, task in tasks.items()}
    assert evaluate == "miniature" or "verdicts" in needs
    for name, task in tasks.items():
        away = [other for other in tasks if (out / other).is_dir() and other not in closure(needs, name)]
        for other in away:
            (hidden / other).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(out / other, hidden / other)
        told = step_of(task)
        task.work()
        assert told is not None
        assert finished(told)
        for other in away:
            shutil.move(hidden / other, out / other)


def _judged(tmp_path: Path) -> Recipe:
    """A recipe with a generative benchmark, whose verdicts are a step of their own."""
    rows = [{"prompt": f"question {i}?", "accepted": ["blue"]} for i in range(4)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = {
        "kind": "generative",
        "benchmark": "local",
        "name": "asked",
        "data": {"source": str(tmp_path / "asked.jsonl")},
        "judge": {"refused": "refusal"},
    }
    return tiny(
        evaluate=[{"kind": "miniature", "limit": 2}, benchmark],
        judges={"refusal": {"kind": "rule", "rule": "refusal"}},
        compare=["base", "experts", "fused"],
        scarce=None,
    )
