"""Models behind servers as rows of a recipe: asked before anything is made, resumed, and shown with what they lack."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.judges.chat_server import Answer
from tests.judges.chat_server import served as serving
from tests.pipeline.test_running import Listener, tiny
from triune.data.preparing import prepare
from triune.data.rows import load_rows
from triune.errors import InputError, TriuneError
from triune.pipeline import examine, run
from triune.pipeline.planning import Run, models, plan
from triune.pipeline.running import demo_recipe
from triune.recipe import Recipe
from triune.recipe_file import parse_recipe, to_yaml
from triune.served_settings import Served
from triune.types import Sample

pytest.importorskip("openai")
BROKEN = Answer(body="{", claimed=50)
WHY = "“–” of served, theirs: a server gives answers only, so that there is no score by likelihood"


def says(text: str) -> Answer:
    return Answer(body={"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]})


def recipe(base_url: str, tmp_path: Path, **changes: Any) -> Recipe:
    """The demo in a few steps, with a likelihood, which a server has none of."""
    test = tmp_path / "test.jsonl"
    if not test.exists():
        rows = [{"prompt": f"question {index}", "response": "yes"} for index in range(3)]
        test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    axes = {axis: {"train": {"source": "miniature", "limit": 20}} for axis in ("helpful", "harmless", "honest")}
    axes["helpful"]["test"] = {"source": str(test)}
    theirs = {"base_url": base_url, "model": "m", "retries": 0, "concurrency": 1}
    content = {
        "axes": axes,
        "evaluate": [{"kind": "miniature", "limit": 4}, {"kind": "nll"}],
        "compare": ["base", "average", "served"],
        "served": {"theirs": theirs},
        "scarce": None,
        "batch_size": 4,
    }
    return tiny(**{**content, **changes, "evaluate__0__limit": 4})


def until(n: int) -> Callable[[dict[str, Any], int], Answer]:
    """A server that answers `n` requests, breaks off the next, and every one after it."""
    return lambda request, before: says("yes \ud800") if before < n else BROKEN


def test_a_plan_has_its_answers_and_no_costs(tmp_path: Path) -> None:
    with serving(until(10)) as seen:
        own = recipe(seen.base_url, tmp_path)
        steps = plan(Run(own, tmp_path / "run", prepare(own), Listener()))
        assert [request["max_tokens"] for request in seen.requests] == [1]
    assert list(models(own, tmp_path)) == ["base", "average", "served:theirs"]
    found = [name for name in steps if name.startswith(("samples/", "costs/"))]
    assert found[:3] == ["samples/base", "samples/average", "samples/served-theirs"]
    assert found[3:] == ["costs/base", "costs/average"]


@pytest.mark.slow
def test_a_served_model_is_a_row_of_a_recipe_and_goes_on_where_its_server_died(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with serving(until(1 + 4 + 2)) as seen, pytest.raises(TriuneError, match="did not answer 2 of 4 prompts"):
        run(recipe(seen.base_url, tmp_path), out)
    kept = (out / "samples" / ".served-theirs.checkpoint" / "samples.partial.jsonl").read_text().splitlines()
    assert len(kept) == 2  # a head and a batch
    listener = Listener()
    with serving(until(10_000)) as seen:
        run(recipe(seen.base_url, tmp_path), out, listener)
        n_asked = len(seen.requests)
    samples = load_rows(out / "samples" / "served-theirs" / "samples.jsonl", Sample)
    assert {sample.response for sample in samples} == {"yes \ufffd"}
    assert n_asked == 1 + len(samples) - 4
    assert "  4 answers were kept by an interrupted run; only the others are asked" in listener.said
    again = Listener()
    run(recipe("http://127.0.0.1:9/v1", tmp_path), out, again, dry=True)  # nobody is there, and nobody is asked
    assert all(line.endswith("finished") for line in again.said)
    told(out)


def told(out: Path) -> None:
    """What the finished run says of its served model."""
    scores = json.loads((out / "scores.json").read_text())
    found = {model: {r["score"] for r in scores if r["model"] == model} for model in ("average", "served:theirs")}
    assert found["average"] - found["served:theirs"] == {"nll:helpful"}
    assert {"helpful", "harmless", "honest", "mean"} <= found["served:theirs"]
    compared = json.loads((out / "comparisons.json").read_text())
    assert any("served:theirs" in (row["model"], row["other"]) for row in compared["rows"])
    facts = json.loads((out / "models.json").read_text())
    assert {name for name, fact in facts.items() if "absent" in fact} == {"served:theirs"}
    assert facts["served:theirs"]["note"] == "m behind a server"
    assert {facts["served:theirs"][key] for key in ("parameters_total", "train_steps", "latency_ratio")} == {None}
    assert "served:theirs" not in json.loads((out / "curves.json").read_text())
    assert not (out / "costs" / "served-theirs").exists()
    assert WHY in (out / "report.html").read_text()
    assert WHY in (out / "report.md").read_text()
    row = next(line for line in (out / "report.md").read_text().splitlines() if line.startswith("| served, theirs"))
    assert "| – |" in row
    assert parse_recipe((out / "recipe.yaml").read_text(), "x").served["theirs"].model == "m"


@pytest.mark.parametrize("dry", [False, True])
def test_a_server_is_asked_before_anything_is_made(tmp_path: Path, dry: bool) -> None:
    with serving(lambda request, before: Answer(status=404)) as seen, pytest.raises(InputError, match="HTTP 404"):
        run(recipe(seen.base_url, tmp_path), tmp_path / "run", dry=dry)
    with pytest.raises(InputError, match=r"served:theirs: the server of 'm' at .* does not answer .*start it"):
        run(recipe(seen.base_url, tmp_path), tmp_path / "run", dry=dry)
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_a_server_that_no_benchmark_asks(tmp_path: Path) -> None:
    own = parse_recipe(to_yaml(demo_recipe(quick=True)), "x", overrides=["base.miniature=null", "base.path=nowhere"])
    theirs = Served(base_url="http://127.0.0.1:9/v1", model="m")
    likelihoods = own.model_copy(update={"evaluate": recipe("http://x/v1", tmp_path).evaluate[1:]})
    with pytest.raises(InputError, match=r"\['theirs'\] can only answer, and no benchmark of evaluate asks"):
        examine(likelihoods, {"theirs": theirs}, tmp_path / "out")
