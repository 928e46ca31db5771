"""A recipe whose rows are streamed, from its checks to its models; and the two verbs on the command line."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.fusion.conftest import random_base
from tests.fusion.test_opening import save
from triune.cli.main import app
from triune.data.preparing import prepare
from triune.data.streaming import Stream
from triune.errors import InputError
from triune.parsing import read_json
from triune.pipeline import verbs
from triune.pipeline.launching import launched, read_job
from triune.pipeline.planning import Run, plan
from triune.pipeline.pools import Remembering
from triune.pipeline.streaming import check_streamed, router_rows
from triune.progress import SILENT, Progress
from triune.recipe import Recipe

FIT: dict[str, Any] = {"fit": {"steps": 3, "batch_size": 4}}
STREAMED = {"train": FIT, "mixture": FIT, "align": FIT}


def write(path: Path, begin: int, n: int) -> str:
    lines = [
        {"prompt": f"word{2 + i % 30} word{begin % 30} word{2 + i // 30}", "response": f"word{3 + i % 5}"}
        for i in range(begin, begin + n)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_base("llama"), tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def content(tmp_path: Path, base: Path) -> dict[str, Any]:
    """Two axes, one streamed from two shards; two of its prompts are tested."""
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "0.jsonl", 0, 20), write(shards / "1.jsonl", 20, 12)
    test = write(tmp_path / "test.jsonl", 20, 2)
    other = write(tmp_path / "other.jsonl", 40, 9)
    return {
        "base": {"path": str(base), "template": "plain", "max_length": 32},
        "axes": {
            "helpful": {
                "train": {"source": f"{shards}/*.jsonl"},
                "streaming": {"buffer": 8},
                "test": {"source": test},
            },
            "honest": {"train": {"source": other}},
        },
        "evaluate": [{"kind": "nll"}],
        "compare": ["mixture", "fused"],
        **STREAMED,
    }


def run_of(content: dict[str, Any], out: Path, progress: Progress = SILENT) -> Run:
    recipe = Recipe.model_validate(content)
    return Run(recipe, out, prepare(recipe), progress)


def test_a_run_trains_from_streams(tmp_path: Path, content: dict[str, Any]) -> None:
    out, watcher = tmp_path / "run", Remembering()
    steps = plan(run_of(content, out, watcher))
    made = ("data", "experts/helpful", "experts/honest", "mixture", "start", "fused")
    for name in made:
        steps[name]()
    assert read_json(out / "experts/helpful/spent.json") == {"steps": 3, "examples": 12}
    assert read_json(out / "fused/spent.json") == {"steps": 3, "examples": 12}
    assert read_json(out / "data/streams.json")["helpful"]["tested_prompts"] == 2
    told = [line for line in watcher.said if "left out" in line]
    assert told == ["  streamed rows left out: 2, prompt that is tested"] * 3  # the expert, the mixture, the fused
    before = {name: (out / name / "record.json").stat().st_mtime_ns for name in made}
    again = plan(run_of(content, out))
    for name in made:
        again[name]()
    assert {name: (out / name / "record.json").stat().st_mtime_ns for name in made} == before
    # Other bytes of a shard are another stream, which the honest expert does not see.
    write(tmp_path / "shards" / "1.jsonl", 21, 12)
    changed = plan(run_of(content, out))
    for name in made:
        changed[name]()
    new = {name for name in made if (out / name / "record.json").stat().st_mtime_ns != before[name]}
    assert new == set(made) - {"experts/honest"}


def test_what_needs_rows_in_memory_gets_the_first_ones(tmp_path: Path, content: dict[str, Any]) -> None:
    run = run_of({**content, "fuse": {"router_examples": 5}}, tmp_path / "run")
    joint = run.joint(None)
    assert isinstance(joint, Stream)
    rows = router_rows(run, run.recipe.fuse, joint)
    assert sorted(row.axis for row in rows) == ["helpful"] * 5 + ["honest"] * 5
    first = next(run.prepared.streams["helpful"].blocks()).examples[:5]
    assert {row for row in rows if row.axis == "helpful"} == set(first)
    assert router_rows(run, run.recipe.fuse, rows) is rows


def test_a_stream_reaches_the_processes_of_a_step(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of({**content, "launch": {"processes": 2}}, tmp_path / "run")
    rows, found = run.joint(None), []

    def start(command: list[str], **_own: Any) -> Any:
        found.append(read_job(Path(command[-1]))["rows"])
        raise InterruptedError

    monkeypatch.setattr("subprocess.run", start)
    step = verbs.Step(tmp_path / "out", "train", {}, {})
    with pytest.raises(InterruptedError):
        launched(run.context, step, rows, run.recipe.train, title="x")
    assert found[0].identity == verbs.identify_rows(rows)
    parts = [[list(islice(part.blocks(), 5)) for part in stream.parts] for stream in (rows, found[0])]
    assert parts[0] == parts[1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "train": ({"train": {}}, r"train\.fit\.steps is not set, and axes\.helpful\.streaming is"),
    "mixture": ({"mixture": {}}, r"mixture\.fit\.steps is not set"),
    "align": ({"align": {}}, r"align\.fit\.steps is not set"),
    "sequential": ({"sequential": {}}, r"sequential\.fit\.steps is not set"),
    "variant": ({"variants": {"a": {"align.fit.steps": None}}}, r"variants\.a\.align\.fit\.steps is not set"),
    "mixtures": ({"mixtures": {"a": {"mixture.fit.steps": None}}}, r"mixtures\.a\.mixture\.fit\.steps is not set"),
    "injection": ({"train": {**FIT, "injection": {}}}, r"train\.injection needs its rows in memory"),
    "baseline": (
        {"compare": ["fused", "xlora"]},
        r"compare asks for xlora, made from joint rows.*set joint",
    ),
    "targets": ({"align": {**FIT, "representation": 0.1}}, r"align\.representation needs every row's target"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_stream_cannot_do_is_refused_before_anything(content: dict[str, Any], case: str) -> None:
    check_streamed(Recipe.model_validate(content))
    changes, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        check_streamed(Recipe.model_validate({**content, **changes}))


def test_with_joint_rows_counted_only_the_experts_stream(content: dict[str, Any]) -> None:
    kept = {"joint": 5, "mixture": {}, "align": {"representation": 0.1}, "compare": ["fused", "mixture", "xlora"]}
    check_streamed(Recipe.model_validate({**content, **kept}))


def test_train_streams_on_the_command_line(tmp_path: Path, content: dict[str, Any]) -> None:
    words = ["train", "--base", content["base"]["path"], "--data", f"helpful={tmp_path}/shards/*.jsonl"]
    words += ["--template", "plain", "--max-length", "32", "--out", str(tmp_path / "out"), "--stream", "8"]
    found = CliRunner().invoke(app, [*words, "fit.batch_size=4"])
    assert found.exit_code != 0
    assert "set fit.steps" in str(found.exception)
    found = CliRunner().invoke(app, [*words, "fit.batch_size=4", "fit.steps=2"])
    assert found.exit_code == 0, found.output
    assert read_json(tmp_path / "out" / "spent.json") == {"steps": 2, "examples": 8}
    assert CliRunner().invoke(app, [*words[:-1], "0", "fit.steps=2"]).exit_code == 2
