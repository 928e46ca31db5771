"""The verb diagnose: what it writes, skips and takes from a run; what it refuses before a model is loaded."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_fusing import Listener
from typer.testing import CliRunner

from tests.baselines.tiny_experts import save_experts, save_fine_tune, settings
from triune import pipeline
from triune.cli.main import app
from triune.cli.options import out_console
from triune.data.rows import write_rows
from triune.errors import InputError
from triune.method_settings import DiagnoseCollapse
from triune.models.loading import quiet
from triune.models.tiny import build_tokenizer, tiny_llama
from triune.pipeline import Context, diagnosing
from triune.pipeline.diagnosing import UNCHECKED, Suspects, collapse_of_run
from triune.pipeline.verbs import identify_rows
from triune.recipe import Fuse
from triune.record import RECORD, read_record, write_json
from triune.report.collapse_account import load_collapse
from triune.types import BenchmarkPrompt, Example, Sample

AXES = ("helpful", "harmless", "honest")
LEAST = DiagnoseCollapse(least=4, batch_size=5)


def rows_of(n: int, axes: tuple[str, ...] = AXES) -> list[Example]:
    rng = random.Random(0)

    def words(least: int) -> str:
        return " ".join(f"w{rng.randrange(30)}" for _ in range(rng.randint(least, 5)))

    return [Example(axis, words(3), words(1)) for _ in range(n) for axis in axes]


ROWS = rows_of(8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diagnosed")
    experts = save_experts(folder)
    save_fine_tune(folder / "whole", folder / "base", **{"model.norm.weight": torch.full((16,), 1.5)})
    pipeline.fuse(context(folder), experts, folder / "fused", Fuse(router_init="logistic"), ROWS)
    return folder


def context(root: Path, listener: Any = None, seed: int = 0) -> Context:
    return Context(settings(root), seed, listener or Listener())


@pytest.fixture
def suspects(root: Path) -> Suspects:
    return Suspects("experts of base", {axis: root / "experts" / axis for axis in AXES}, ROWS)


def test_it_writes_numbers_page_and_markdown(root: Path, suspects: Suspects, tmp_path: Path) -> None:
    given = replace(
        suspects, experts={**suspects.experts, "whole": root / "whole"}, fused=root / "fused", held_out="known"
    )
    out = pipeline.diagnose_collapse(context(root), given, tmp_path / "out", LEAST)
    assert sorted(p.name for p in out.iterdir()) == ["collapse.html", "collapse.json", "collapse.md", RECORD]
    found = load_collapse(out)
    assert (found.about, found.held_out) == ("experts of base", "known")
    assert found.view.experts == (*AXES, "whole")
    assert found.n_prompts == (8, 8, 8)
    assert found.score is None
    assert found.routing is not None
    assert [own.what for own in found.routing.diagrams] == ["all layers", "whole rows"]
    assert sum(one.n for one in found.routing.diagrams[1].bins) == 24
    record = read_record(out)
    assert (record["verb"], record["settings"]["collapse"]) == ("diagnose", LEAST.model_dump())
    assert record["inputs"].keys() == {"base", "rows", "fused", *(f"expert:{name}" for name in (*AXES, "whole"))}


def test_it_skips_what_is_finished_and_redoes_what_changed(
    root: Path, suspects: Suspects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.diagnose_collapse(context(root), suspects, tmp_path / "out", LEAST)
    identity = read_record(tmp_path / "out")["identity"]
    with monkeypatch.context() as patch:
        patch.setattr(diagnosing, "measure_collapse", lambda *_: pytest.fail("measured again"))
        listener = Listener()
        pipeline.diagnose_collapse(context(root, listener), suspects, tmp_path / "out", LEAST)
        assert "finished before, skipped" in listener.said[-1]
    fewer = LEAST.model_copy(update={"rows": 5})
    pipeline.diagnose_collapse(context(root), suspects, tmp_path / "out", fewer)
    assert read_record(tmp_path / "out")["identity"] != identity
    assert load_collapse(tmp_path / "out").n_prompts == (5, 5, 5)


def test_too_many_rows_are_drawn_by_the_seed() -> None:
    drawn = [diagnosing._drawn(rows_of(30), 10, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for own in drawn:
        assert [sum(row.axis == axis for row in own) for axis in AXES] == [10, 10, 10]
        assert own == [row for row in rows_of(30) if row in own]
    assert diagnosing._drawn(ROWS, 8, 0) == ROWS


def other_width(root: Path, place: Path) -> Path:
    with quiet():
        tokenizer = build_tokenizer([f"w{i}" for i in range(30)])
        model = tiny_llama(len(tokenizer), seed=0, hidden_size=32, n_layers=2, intermediate_size=24, n_heads=2)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return place


def other_tokens(root: Path, place: Path) -> Path:
    save_fine_tune(place, root / "base")
    build_tokenizer(
        [f"w{i}" for i in range(29, -1, -1)] + ["user", "bot", ":", *map(str, range(1, 7))]
    ).save_pretrained(place)
    return place


REFUSED: dict[str, tuple[Callable[[Suspects, Path, Path], Suspects], str]] = {
    "one expert": (
        lambda s, root, _: replace(s, experts={"helpful": s.experts["helpful"]}),
        r"1 expert\(s\): \['helpful'\]; collapse is between experts, give two or more",
    ),
    "an axis without rows enough": (
        lambda s, root, _: replace(s, rows=[*rows_of(8, ("helpful", "harmless")), *rows_of(2, ("honest",))]),
        "held-out prompts: honest has 2; the numbers need 4 of every axis",
    ),
    "one axis": (
        lambda s, root, _: replace(s, rows=rows_of(8, ("honest",))),
        r"the rows are of \['honest'\], the experts are \['helpful', 'harmless', 'honest'\]: give held-out rows of ",
    ),
    "no rows": (lambda s, root, _: replace(s, rows=[]), r"the rows are of \[\], the experts are"),
    "an axis without expert": (
        lambda s, root, _: replace(s, rows=rows_of(8, (*AXES, "kind"))),
        r"'honest', 'kind'\], the experts are .* an expert under each axis's name",
    ),
    "no fused model": (
        lambda s, root, _: replace(s, fused=root / "base"),
        "base holds no fused model; give the folder of `triune fuse`",
    ),
    "no folder": (
        lambda s, root, place: replace(s, experts={**s.experts, "honest": place / "none"}),
        "none does not exist; give the folder of an adapter or of a model",
    ),
    "another width": (
        lambda s, root, place: replace(s, experts={**s.experts, "honest": other_width(root, place / "wide")}),
        "'honest' is a llama of 2 layers and width 32, the base a llama of 2 layers and width 16; give experts of",
    ),
    "another tokenizer": (
        lambda s, root, place: replace(s, experts={**s.experts, "honest": other_tokens(root, place / "strange")}),
        "the tokenizer of 'honest' reads the held-out rows otherwise than the base's",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused_before_a_model_is_loaded(
    fault: str, root: Path, suspects: Suspects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = REFUSED[fault]
    monkeypatch.setattr(diagnosing, "measure_collapse", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message):
        pipeline.diagnose_collapse(context(root), spoil(suspects, root, tmp_path), tmp_path / "out", LEAST)
    assert not (tmp_path / "out").exists()


def test_experts_of_other_weights_are_refused(root: Path, suspects: Suspects, tmp_path: Path) -> None:
    save_fine_tune(tmp_path / "base", root / "base", **{"model.norm.weight": torch.full((16,), 2.0)})
    with pytest.raises(InputError, match="'helpful' was trained on other base weights"):
        pipeline.diagnose_collapse(context(tmp_path), suspects, tmp_path / "out", LEAST)


def test_training_rows_are_refused_where_a_record_tells(root: Path, suspects: Suspects, tmp_path: Path) -> None:
    place = tmp_path / "honest"
    place.mkdir()
    for path in (root / "experts" / "honest").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    own = [row for row in ROWS if row.axis == "honest"]
    write_json(place / RECORD, {"identity": "x", "inputs": {"rows": identify_rows(own)}})
    given = replace(suspects, experts={**suspects.experts, "honest": place})
    with pytest.raises(InputError, match=r"the rows of 'honest' are those that 'honest' was trained on .*record"):
        pipeline.diagnose_collapse(context(root), given, tmp_path / "out", LEAST)
    held_out = replace(given, rows=rows_of(9)[1:])
    assert pipeline.diagnose_collapse(context(root), held_out, tmp_path / "out", LEAST)


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Path:
    """A run's folder as `triune run` leaves it, with answers of the base and of the experts."""
    place = tmp_path / "run"
    (place / "data").mkdir(parents=True)
    axes = {axis: {"train": {"source": "x.jsonl"}, "expert": str(root / "experts" / axis)} for axis in AXES}
    base = settings(root).model_dump()
    recipe = {"base": base, "axes": axes, "evaluate": [{"kind": "nll"}], "seed": 3}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(place / "data" / RECORD, {"identity": "data"})
    rows = [*rows_of(20), Example("honest", "w1", "")]
    write_rows(place / "data" / "probes.jsonl", rows)
    prompts = {axis: [BenchmarkPrompt(axis, f"w{i}", ("w1",)) for i in range(4)] for axis in AXES}
    for axis, own in prompts.items():
        write_rows(place / "data" / f"prompts.{axis}.jsonl", own)
    for name in ("base", *(f"expert-{axis}" for axis in AXES)):
        right = 2 if name == "base" else 4
        said = [
            Sample(name, axis, i, p.prompt, ("i will not help" if axis == "harmless" else "w1") if i < right else "w2")
            for axis, own in prompts.items()
            for i, p in enumerate(own)
        ]
        (place / "samples" / name).mkdir(parents=True)
        write_rows(place / "samples" / name / "samples.jsonl", said)
        write_json(place / "samples" / name / RECORD, {"identity": name})
    return place


def test_from_a_run(root: Path, run: Path, tmp_path: Path) -> None:
    own, suspects = collapse_of_run(run)
    assert (own.seed, own.base) == (3, settings(root))
    assert suspects.experts == {axis: root / "experts" / axis for axis in AXES}
    assert (suspects.about, suspects.fused, len(suspects.rows)) == ("the run run", None, 60)
    assert suspects.held_out != UNCHECKED
    out = pipeline.diagnose_collapse(own, suspects, tmp_path / "out", DiagnoseCollapse())
    found = load_collapse(out)
    assert found.view.score is not None
    assert found.view.score.unit == "%"
    # The experts answer everything right, the base every other prompt.
    assert {cell.value for row in found.view.score.cells for cell in row} == {-50.0}
    assert {cell.n for row in found.view.score.cells for cell in row} == {4}
    assert {f"samples:{name}" for name in ("base", *AXES)} <= read_record(out)["inputs"].keys()
    assert collapse_of_run(run, root / "fused")[1].fused == root / "fused"


def test_a_run_with_test_rows_gives_all_of_them(run: Path) -> None:
    more = [Example("honest", f"w1 w{i}", "w2") for i in range(30)]
    write_rows(run / "data" / "test.honest.jsonl", more)
    rows = collapse_of_run(run)[1].rows
    assert [row for row in rows if row.axis == "honest"] == more
    assert len(rows) == 2 * 20 + 30


def test_a_run_without_answers_has_no_score(run: Path) -> None:
    (run / "samples" / "base" / "samples.jsonl").unlink()
    assert diagnosing._judged(collapse_of_run(run)[1], AXES) is None
    assert collapse_of_run(run)[1].samples == {}


def test_an_axis_without_a_benchmark_leaves_the_score_out(run: Path) -> None:
    suspects = collapse_of_run(run)[1]
    assert diagnosing._judged(suspects, AXES) is not None
    (run / "data" / "prompts.honest.jsonl").unlink()
    assert diagnosing._judged(suspects, AXES) is None


def test_what_is_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run \(recipe\.yaml is missing\); give the folder of `triune run`"):
        collapse_of_run(tmp_path)
    (run / "data" / RECORD).unlink()
    with pytest.raises(InputError, match="holds no finished Triune run"):
        collapse_of_run(run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "seeds": [1, 2]}))
    with pytest.raises(InputError, match=r"is a run over seeds; give one seed's folder, as .*/seed-1"):
        collapse_of_run(run)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell is broken."""
    monkeypatch.setattr(out_console, "width", 200)


@pytest.mark.usefixtures("wide")
def test_from_the_command_line(root: Path, tmp_path: Path) -> None:
    words = ["--base", str(root / "base"), "--template", "dialogue", "--max-length", "64"]
    for axis in AXES:
        path = tmp_path / f"{axis}.jsonl"
        own = [{"prompt": row.prompt, "response": row.response} for row in ROWS if row.axis == axis]
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
        words += ["--data", f"{axis}={path}", "--expert", f"{axis}={root / 'experts' / axis}"]
    words += ["--fused", str(root / "fused"), "--out", str(tmp_path / "out"), "least=4", "rank=2"]
    result = CliRunner().invoke(app, ["diagnose", "collapse", *words])
    assert result.exit_code == 0, result.output
    for text in ("forgetting, loss, nats/token", "misrouted rows", "cannot be checked here", "collapse.html"):
        assert text in result.output
    assert load_collapse(tmp_path / "out").about == "experts of base"


@pytest.mark.usefixtures("wide")
def test_a_run_from_the_command_line(run: Path, tmp_path: Path) -> None:
    words = ["diagnose", "collapse", "--run", str(run), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "forgetting, score, %" in result.output
    assert "as the run proved" in result.output
