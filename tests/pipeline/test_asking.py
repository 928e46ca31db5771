"""What the verb evaluate keeps of answers: through an interruption, beside the samples, and of a server's model."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.judges.chat_server import Answer
from tests.judges.chat_server import served as serving
from triune.data.rows import load_rows, write_rows
from triune.data.templates import render
from triune.data_settings import Generative, Slice
from triune.errors import InputError, TriuneError
from triune.models.generation import Decoding, generate
from triune.models.loading import load_base
from triune.models.tiny import build_tokenizer, tiny_llama
from triune.pipeline import examine
from triune.pipeline.evaluating import Exam, observe, observe_part
from triune.pipeline.serving import observe_served
from triune.pipeline.verbs import Context
from triune.progress import SILENT, Advance
from triune.recipe import Base
from triune.recipe_file import parse_recipe, to_yaml
from triune.record import read_record
from triune.report.folder import load_run
from triune.served_settings import Served
from triune.types import BenchmarkPrompt, Sample

WORDS = [f"w{index}" for index in range(20)] + ["user", "bot", ":"]
TEXTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10", "w11"]


class Watcher:
    """Remembers what is said; presses Ctrl-C when a task is about to pass `patience` prompts."""

    def __init__(self, patience: int = 1000) -> None:
        self.patience = patience
        self.said: list[str] = []

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Advance]:
        done = [0]

        def advance(steps: int = 1, note: str = "") -> None:
            done[0] += steps
            if done[0] > self.patience:
                raise KeyboardInterrupt

        yield advance

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and the data folder of one benchmark."""
    place = tmp_path_factory.mktemp("world")
    model = tiny_llama(len(WORDS) + 4, seed=0, hidden_size=16, n_layers=1, intermediate_size=24, n_heads=2)
    rng = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=rng)
    model.save_pretrained(place / "base")
    build_tokenizer(WORDS).save_pretrained(place / "base")
    data = place / "data"
    data.mkdir()
    (data / "summary.json").write_text('{"test": {}}')
    (data / "probes.jsonl").write_text("")
    write_rows(data / "prompts.helpful.jsonl", [BenchmarkPrompt("helpful", text) for text in TEXTS])
    return place


def context(world: Path, watcher: Watcher | None = None) -> Context:
    return Context(Base(path=str(world / "base"), template="dialogue"), 0, watcher or SILENT)


def test_an_interrupted_evaluation_keeps_its_answers(world: Path, tmp_path: Path) -> None:
    exam, out = Exam(world / "data", batch_size=2, new_tokens=4), tmp_path / "samples" / "base"
    with pytest.raises(KeyboardInterrupt):
        observe(context(world, Watcher(patience=2)), "base", None, exam, out)
    kept = tmp_path / "samples" / ".base.checkpoint" / "samples.partial.jsonl"
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [".base.checkpoint"]
    assert len(kept.read_text().splitlines()) == 3
    watcher = Watcher()
    observe(context(world, watcher), "base", None, exam, out)
    assert watcher.said[0] == "  4 answers were kept by an interrupted run; only the others are asked"
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["base"]
    observe(context(world), "base", None, exam, tmp_path / "whole")
    for name in ("samples.jsonl", "endings.json", "likelihoods.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    samples = load_rows(out / "samples.jsonl", Sample)
    model, tokenizer = load_base(world / "base")
    asked = [render("dialogue", text, tokenizer) for text in TEXTS]
    assert [s.response for s in samples] == generate(model, tokenizer, asked, Decoding(4), batch_size=5)
    assert sum(json.loads((out / "endings.json").read_text())["counts"].values()) == len(TEXTS)


def test_parts_of_an_evaluation_are_taken_over_and_gone(world: Path, tmp_path: Path) -> None:
    exam, out = Exam(world / "data", batch_size=2, new_tokens=4), tmp_path / "samples" / "base"
    for i in (0, 2, 3):  # of three batches the second is left to the step; there is no fourth
        observe_part(context(world), "base", None, exam, out, part=(i, 4))
    place = tmp_path / "samples" / ".base.checkpoint"
    assert sorted(p.name for p in place.iterdir()) == [f"asked-{i}-of-4.samples.partial.jsonl" for i in (0, 2)]
    observe(context(world), "base", None, exam, out)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["base"]
    observe(context(world), "base", None, exam, tmp_path / "whole")
    for name in ("samples.jsonl", "endings.json", "likelihoods.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_record(out)["identity"] == read_record(tmp_path / "whole")["identity"]
    observe_part(context(world), "base", None, exam, out, part=(0, 4))
    assert not place.exists()


def test_a_server_is_a_row(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")

    def behaviour(request: dict[str, object], before: int) -> Answer:
        if "w4" in str(request["prompt"]).split():
            return Answer(status=400)
        text = f" said {len(str(request['prompt']))}"
        return Answer(body={"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]})

    exam, watcher = Exam(world / "data", batch_size=2, new_tokens=4), Watcher()
    with serving(behaviour) as seen:
        by = Served(base_url=seen.base_url, model="m", retries=0)
        out = observe_served(context(world, watcher), "theirs", by, exam, tmp_path / "theirs")
        assert watcher.said[0] == "  m did not answer 1 of 5 prompts: 1 x HTTP 400"
        n_asked = len(seen.requests)
        again = by.model_copy(update={"retries": 3})
        observe_served(context(world), "theirs", again, exam, out)
        assert len(seen.requests) == n_asked == 5
    samples = load_rows(out / "samples.jsonl", Sample)
    assert [bool(sample.response) for sample in samples] == [True, False, True, True, True]
    assert [row["index"] for row in json.loads((out / "endings.json").read_text())["unanswered"]] == [1]
    assert read_record(out)["settings"]["served"] == {"model": "m", "api": "completions"}


def test_a_server_that_dies_loses_only_the_batch_under_way(world: Path, tmp_path: Path) -> None:
    """Five prompts, four a batch: it dies in the first batch, then in the second, then it lives."""
    pytest.importorskip("openai")
    reply, broken = Answer(body={"choices": [{"text": "w1", "finish_reason": "stop"}]}), Answer(body="{", claimed=50)
    exam, out = Exam(world / "data", batch_size=2, new_tokens=4), tmp_path / "theirs"
    asked = []
    for lives, lost in ((2, "2 of 4"), (4, "1 of 1"), (9, "")):
        with serving(lambda request, before, lives=lives: reply if before < lives else broken) as seen:
            by = Served(base_url=seen.base_url, model="m", retries=0, concurrency=1)
            if lost:
                with pytest.raises(TriuneError, match=f"did not answer {lost} prompts .*goes on from there"):
                    observe_served(context(world), "theirs", by, exam, out)
                assert not out.exists()
            else:
                observe_served(context(world), "theirs", by, exam, out)
        asked.append(len(seen.requests))
    assert asked == [4 + 1, 4 + 1, 1]  # in the first, whether it is still there is asked, too
    assert [sample.response for sample in load_rows(out / "samples.jsonl", Sample)] == ["w1"] * len(TEXTS)
    assert json.loads((out / "endings.json").read_text())["unanswered"] == []


def test_evaluate_asks_its_servers_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    from triune.pipeline.running import demo_recipe

    changes = ["base.miniature=null", f"base.path={world / 'base'}", "scarce=null", "evaluate.0.limit=2"]
    recipe = parse_recipe(to_yaml(demo_recipe(quick=True)), "x", overrides=[*changes, "compare=[base]"])
    nobody = Served(base_url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(InputError, match=r"theirs: the server of 'm' at http://127.0.0.1:9/v1 does not answer"):
        examine(recipe, {"theirs": nobody}, tmp_path / "scored")
    assert not (tmp_path / "scored").exists()


def test_a_server_is_asked_for_each_benchmarks_own_length(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    write_rows(data / "prompts.mine.jsonl", [BenchmarkPrompt("mine", "w3"), BenchmarkPrompt("mine", "w5")])
    mine = Generative(
        kind="generative", benchmark="local", data=Slice(source="x"), judge="a", name="mine", new_tokens=9
    )
    reply = Answer(body={"choices": [{"index": 0, "text": "w1", "finish_reason": "stop"}]})
    with serving(lambda request, before: reply) as seen:
        by, exam = Served(base_url=seen.base_url, model="m"), Exam(data, new_tokens=4, benchmarks=(mine,))
        out = observe_served(context(world), "theirs", by, exam, tmp_path / "theirs")
        assert sorted(request["max_tokens"] for request in seen.requests) == [4] * len(TEXTS) + [9, 9]
        observe_served(context(world), "theirs", by, exam, out)
        assert len(seen.requests) == len(TEXTS) + 2
    samples = load_rows(out / "samples.jsonl", Sample)
    assert [(s.index, s.benchmark) for s in samples] == list(enumerate(["helpful"] * len(TEXTS) + ["mine"] * 2))
    assert read_record(out)["settings"]["lengths"] == {"mine": 9}


def test_a_server_stands_in_the_report(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    from triune.pipeline.running import demo_recipe

    changes = ["base.miniature=null", f"base.path={world / 'base'}", "scarce=null", "evaluate.0.limit=2"]
    recipe = parse_recipe(
        to_yaml(demo_recipe(quick=True)), "x", overrides=[*changes, "new_tokens=3", "compare=[base]"]
    )
    reply = Answer(body={"choices": [{"index": 0, "text": "w1", "finish_reason": "stop"}]})
    with serving(lambda request, before: reply) as seen:
        out = examine(recipe, {"theirs": Served(base_url=seen.base_url, model="m")}, tmp_path / "scored")
    rows = json.loads((out / "scores.json").read_text())
    scores = {name: {row["score"] for row in rows if row["model"] == name} for name in ("base", "theirs")}
    assert {"helpful", "harmless", "honest"} <= scores["theirs"] <= scores["base"]
    assert load_run(out).models["theirs"].parameters_total is None
    assert "theirs" in (out / "report.html").read_text()
