"""The command line: every verb's help, what each hands on, and the exit codes that scripts rely on."""

import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from triune import cli, pipeline
from triune.baseline_settings import Ties
from triune.cli import options, using, whole
from triune.errors import InputError, TriuneError
from triune.fusion import chooser
from triune.fusion.export.source import Options
from triune.pipeline import chatting, reporting, tinting
from triune.pipeline.engines import LOCAL, Engine
from triune.recipe import Align, Fuse, Recipe, Train
from triune.report import check_page

ENGINE = ("--engine", "--workers", "--cpus", "--gpus", "--retries", "--shards")
VERBS = {
    "demo": ["--quick", "--seed", "--out"],
    "run": ["--quick", "--dry-run", "--schema", "--out", *ENGINE],
    "sweep": ["--quick", "--dry-run", "--yes", "--out", *ENGINE],
    "train": ["--base", "--data", "--out", "--format", "--template", "--max-length", "--seed", "--stream"],
    "check": [
        *("--base", "--expert", "--attention", "--svd-error", "--allow-negated", "--json", "--scan", "--no-scan"),
    ],
    "fuse": [
        *("--base", "--expert", "--attention", "--svd-error", "--allow-negated", "--data", "--out", "--format"),
        *("--template", "--max-length", "--seed"),
    ],
    "align": ["--data", "--out", "--format", "--seed", "--stream"],
    "calibrate": ["--data", "--out", "--format", "--seed"],
    "merge": ["--base", "--expert", "--out", "--dense", "--seed"],
    "evaluate": ["--model", "--out"],
    "report": ["--out", "--reference"],
    "export": [
        *("--out", "--format", "--dtype", "--max-shard-size", "--base", "--tokenizer", "--no-tokenizer"),
        "--allow-negated",
    ],
    "chat": ["--plain", "--template", "--new-tokens", "--temperature", "--seed"],
    "route": ["--base", "--template", "--json"],
    "diagnose": [],
}
DIAGNOSES = {
    "collapse": [
        *("--base", "--expert", "--fused", "--data", "--run", "--out", "--format", "--template", "--max-length"),
        "--seed",
    ],
}
RECIPE = """\
base: {path: nowhere/at/all}
axes:
  helpful: {train: {source: a.jsonl}}
  honest: {train: {source: b.jsonl}}
evaluate: [{kind: nll}]
quick: {seed: 5}
"""
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Any]]:
    """Run the command line in a folder with recipe.yaml and rows.jsonl; gives exit code, output, error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    Path("recipe.yaml").write_text(RECIPE)
    Path("rows.jsonl").write_text('{"prompt": "why?", "response": "Because."}\n')
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    environment = dict(os.environ)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["triune", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    yield call
    os.environ.clear()
    os.environ.update(environment)
    for name, handler in handlers.items():
        signal.signal(name, handler)


def spy(monkeypatch: pytest.MonkeyPatch, verb: str, result: object = Path("out")) -> list[tuple[Any, Any]]:
    """Replace a verb of the pipeline; the list fills with what it is called with."""
    calls: list[tuple[Any, Any]] = []

    def stand_in(*args: Any, **kwargs: Any) -> object:
        calls.append((args, kwargs))
        return result

    monkeypatch.setattr(pipeline, verb, stand_in)
    for module in (using, whole):
        monkeypatch.setattr(module, "close", lambda folder: options.out_console.print(f"closed {folder}"))
    return calls


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str) -> None:
    found = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert found.exit_code == 0
    assert set(re.findall(r"--[a-z-]+", found.output)) == {*VERBS[verb], "--help"}


@pytest.mark.parametrize("name", DIAGNOSES)
def test_help_of_every_diagnosis(name: str) -> None:
    found = CliRunner().invoke(cli.app, ["diagnose", name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert found.exit_code == 0
    assert set(re.findall(r"--[a-z-]+", found.output)) == {*DIAGNOSES[name], "--help"}


def test_the_diagnoses_in_their_order(main: Main) -> None:
    _, out, _ = main("diagnose", "--help")
    assert re.findall(r"^│ ([a-z]+) ", out, re.MULTILINE) == list(DIAGNOSES)


def test_the_verbs_in_their_order(main: Main) -> None:
    code, out, _ = main("--help")
    assert code == 0
    assert re.findall(r"^│ ([a-z]+) ", out, re.MULTILINE) == list(VERBS)


def test_no_arguments_are_answered_with_help(main: Main) -> None:
    code, out, err = main()
    assert code == 2
    assert "demo" in out + err


def test_defaults_stand_in_the_recipe(main: Main) -> None:
    _, out, _ = main("train", "--help")
    assert re.search(r"--max-length.*\[default: 300\]", out)
    assert re.search(r"plain, dialogue, alpaca, alpaca-short, chat\..*\[default: alpaca\]", out)


def test_the_schema_is_json(main: Main) -> None:
    code, out, _ = main("run", "--schema")
    assert code == 0
    assert json.loads(out)["properties"].keys() == Recipe.model_fields.keys()


BASE = ("--base", "nowhere/at/all", "--out", "out")
ROWS = ("--data", "helpful=rows.jsonl")
EXPERTS = ("--expert", "a=b", "--expert", "d=e")
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown verb": (("runn",), "No such command 'runn'. Did you mean 'run'"),
    "unknown option": (("demo", "--quik"), "No such option: --quik"),
    "missing option": (("train", *BASE), "Missing option '--data'"),
    "no number": (("demo", "--seed", "one"), "Invalid value for '--seed'"),
    "negative seed": (("demo", "--seed", "-1"), "Invalid value for '--seed'"),
    "no recipe": (("run",), "no recipe given; see recipes/ for examples, or `triune run --schema`"),
    "recipe missing": (("run", "none.yaml"), "error: no recipe at none.yaml; see recipes/"),
    "recipe forgotten": (("run", "fuse.top_k=1"), "no recipe at fuse.top_k=1"),
    "no override": (("run", "recipe.yaml", "seed"), "'seed' is not key=value, for example align.gating=0.1"),
    "unknown key": (
        ("run", "recipe.yaml", "sed=1"),
        "recipe.yaml: unknown key 'sed'; the nearest known one is 'seed'",
    ),
    "wrong value": (("run", "recipe.yaml", "align.gating=-1"), "greater than or equal to 0 .got -1."),
    "k > E": (("run", "recipe.yaml", "fuse.top_k=3"), "fuse.top_k is 3, but there are only 2 experts; lower it"),
    "no such engine": (("run", "recipe.yaml", "--engine", "slurm"), "known: local, processes, ray"),
    "workers of none": (("run", "recipe.yaml", "--workers", "2"), "are of --engine processes or ray"),
    "a sweep of one point": (("sweep", "recipe.yaml", "seed=1", "--out", "o"), "needs a key with several values"),
    "a sweep of no key": (("sweep", "recipe.yaml", "sed=1,2", "--out", "o"), "unknown key 'sed'"),
    "a sweep to nowhere": (("sweep", "recipe.yaml", "seed=1,2"), "Missing option '--out'"),
    "base missing": (("run", "recipe.yaml", "--out", "out"), "nowhere/at/all: no such folder.*give a model folder"),
    "base missing in train": (("train", *BASE, *ROWS), "nowhere/at/all: no such folder"),
    "short length": (("train", *BASE, *ROWS, "--max-length", "4"), "'max_length': .*equal to 8 .got 4."),
    "unknown format": (("train", *BASE, *ROWS, "--format", "alpacca"), "format 'alpacca' .*Did you mean 'alpaca'"),
    "unknown key of train": (("train", *BASE, *ROWS, "fit.step=1"), "'fit.step'; the nearest known one is 'steps'"),
    "data missing": (("train", *BASE, "--data", "a=row.jsonl"), "row.jsonl does not exist; did you mean rows.jsonl"),
    "data without axis": (("train", *BASE, "--data", "rows.jsonl"), "--data 'rows.jsonl' is not NAME=VALUE"),
    "data without source": (("train", *BASE, "--data", "a="), "--data 'a=' is not NAME=VALUE, for example --data"),
    "an axis twice": (("train", *BASE, *ROWS, *ROWS), "--data names 'helpful' twice; give each once"),
    "a name with a path": (("train", *BASE, "--data", "../a=rows.jsonl"), "--data names '../a'; a name is letters"),
    "experts twice": (("fuse", *BASE, "--expert", "a=b", "--expert", "a=c"), "--expert names 'a' twice"),
    "a weight of no expert": (
        ("fuse", *BASE, "--expert", "a=b", "--expert", "c=-1.0"),
        "--expert c=-1.0 is a weight, and no --expert c=FOLDER .*folder of that name is given as ./-1.0",
    ),
    "two weights": (("fuse", *BASE, *EXPERTS, "--expert", "a=1", "--expert", "a=2"), "--expert names 'a' twice"),
    "a weight in both ways": (
        ("fuse", *BASE, *EXPERTS, "--expert", "a=2", "weights.a=3"),
        "weights.a is given twice, also as --expert NAME=NUMBER; keep one",
    ),
    "a negative weight": (("fuse", *BASE, *EXPERTS, "--expert", "a=-1"), r"\['a'\] are below 0.*--allow-negated"),
    "a weight of 0": (("fuse", *BASE, *EXPERTS, "--expert", "a=0"), "the weight 0, which leaves nothing of them; l"),
    "a weight of nobody": (("fuse", *BASE, *EXPERTS, "weights.c=2"), r"names \['c'\], which are no experts"),
    "no reference": (("fuse", *BASE, *EXPERTS, "importance.reference=c"), "is 'c', which is no folder; allowed: mean"),
    "expert missing": (("fuse", "--base", ".", "--out", "out", "--expert", "a=b"), "b does not exist; give a file or"),
    "nothing to align": (("align", "none", *ROWS, "--out", "out"), "none holds no finished Triune run"),
    "no models": (("evaluate", "recipe.yaml", "--out", "out"), "Missing option '--model'"),
    "a model without a folder": (("evaluate", "recipe.yaml", "--model", "a", "--out", "out"), "'a' is not NAME=VALUE"),
    "no run to report": (("report", "none"), "none is not a folder; give the folder that"),
    "a folder without scores": (("report", "."), "has no scores.json, so there is nothing to report"),
    "one run of two": (("report", "none", "."), "none is not a folder; give the folder that"),
    "a run twice": (("report", ".", "./"), r"\. is given twice; give each run once"),
    "a reference for one run": (("report", ".", "--reference", "base"), "--reference is of a comparison; give sev"),
    "nothing to export": (("export", "none", "--out", "out"), "none does not exist; give the folder of a fused"),
    "an export of no model": (("export", ".", "--out", "out"), "holds no fused model; export takes the folder that"),
    "an unknown export": (
        ("export", ".", "--out", "out", "--format", "onnx"),
        "--format 'onnx' is unknown; known",
    ),
    "no dtype": (("export", ".", "--out", "out", "--dtype", "int8"), "--dtype 'int8' is unknown; known: float32"),
    "no size": (("export", ".", "--out", "out", "--max-shard-size", "big"), "'big' is not a size; give a number of"),
    "an unknown diagnosis": (("diagnose", "fever"), "No such command 'fever'"),
    "a diagnosis of nobody": (("diagnose", "collapse", "--out", "out"), "--base, --expert, --data missing; give "),
    "a diagnosis of two": (
        ("diagnose", "collapse", *BASE, "--run", "x"),
        "--run says what --base would; give one or the other",
    ),
    "a diagnosis with a run's seed": (
        ("diagnose", "collapse", "--run", "x", "--out", "out", "--seed", "3", "--max-length", "20"),
        "--run says what --max-length, --seed would",
    ),
    "a diagnosis of no run": (
        ("diagnose", "collapse", "--run", ".", "--out", "out"),
        "data holds no finished Triune run",
    ),
    "a diagnosis of one expert": (
        ("diagnose", "collapse", *BASE, *ROWS, "--expert", "helpful=b"),
        r"1 expert.s.: \['helpful'\]; collapse is between experts",
    ),
    "nobody to chat with": (("chat", "none", "hello"), "none does not exist; give a run folder or a model folder"),
    "nothing to route by": (
        ("route", ".", "hello"),
        r"router\.json is missing.*give what `triune export",
    ),
    "no new tokens": (("chat", ".", "hello", "--new-tokens", "0"), "Invalid value for '--new-tokens'"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_bad_input_ends_with_2_and_says_why(main: Main, fault: str) -> None:
    words, message = WRONG[fault]
    code, out, err = main(*words)
    assert code == 2
    assert out == ""
    assert re.search(message, " ".join(err.split())), err
    assert "Traceback" not in err
    assert sorted(os.listdir()) == ["recipe.yaml", "rows.jsonl"]


def raising(error: BaseException) -> Callable[..., None]:
    def verb(*args: object, **kwargs: object) -> None:
        raise error

    return verb


def test_other_errors_of_ours_end_with_1(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "report", raising(TriuneError("the loss became nan [at] step 3")))
    assert main("report", ".") == (1, "", "error: the loss became nan [at] step 3\n")


def test_a_full_disk_ends_with_1_and_says_how_to_go_on(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "report", raising(OSError(errno.ENOSPC, "No space left on device", "run/x")))
    code, out, err = main("report", ".")
    assert (code, out) == (1, "")
    assert "the disk is full ([Errno 28] No space left on device: 'run/x'); make room, then the same command" in err
    monkeypatch.setattr(pipeline, "report", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        main("report", ".")


def test_unexpected_errors_keep_their_trace(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "report", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):  # which Python ends with 1
        main("report", ".")


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_with_130(main: Main, monkeypatch: pytest.MonkeyPatch, name: signal.Signals) -> None:
    monkeypatch.setattr(pipeline, "report", lambda run: signal.raise_signal(name))
    code, out, err = main("report", ".")
    assert (code, out) == (130, "")
    assert err == "error: interrupted; finished steps are kept, the same command goes on from there\n"


def test_an_interruption_that_the_caller_ignores_is_ignored(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(run: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return run

    monkeypatch.setattr(pipeline, "report", verb)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert main("report", "here") == (0, "wrote here\n", "")


def test_demo(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "demo")
    assert main("demo") == (0, "closed out\n", "")
    main("demo", "--quick", "--seed", "3", "--out", "there")
    kinds = [(args, kwargs["quick"], kwargs["seed"]) for args, kwargs in calls]
    assert kinds == [((Path("demo"),), False, 0), ((Path("there"),), True, 3)]
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_run(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "run")
    assert main("run", "recipe.yaml")[:2] == (0, "closed out\n")
    assert main("run", "recipe.yaml", "--quick", "fuse.top_k=1")[0] == 0
    assert main("run", "recipe.yaml", "seed=2", "--dry-run", "--out", "there")[:2] == (0, "")
    found = [(a[0].seed, a[0].fuse.top_k, str(a[1]), k["dry"]) for a, k in calls]
    assert found == [(0, 2, "runs/recipe", False), (5, 1, "runs/recipe-quick", False), (2, 2, "there", True)]


def test_the_engine_of_a_run_and_of_a_sweep(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "run")
    words = ("--engine", "processes", "--workers", "3", "--cpus", "2", "--retries", "0", "--shards", "4")
    assert main("run", "recipe.yaml", *words)[0] == 0
    assert main("run", "recipe.yaml")[0] == 0
    assert [k["engine"] for _, k in calls] == [Engine("processes", 3, 2, 0.0, 0, 4), LOCAL]
    swept = spy(monkeypatch, "sweep")
    code, out, _ = main("sweep", "recipe.yaml", "seed=1,2", "--out", "out", "--quick", *words)
    assert code == 0
    assert "The 2 points side by side: file://" in out
    (points, folder, _), named = swept[0]
    assert ([point.recipe.seed for point in points], folder) == ([1, 2], Path("out"))
    assert named == {"dry": False, "engine": Engine("processes", 3, 2, 0.0, 0, 4)}
    assert main("sweep", "recipe.yaml", "seed=1,2", "--out", "out", "--dry-run")[1] == ""


def test_train(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "train")
    words = ("--template", "plain", "--max-length", "64", "--seed", "4", "lora.rank=2", "fit.steps=9")
    assert main("train", *BASE, *ROWS, *words) == (0, "wrote out\n", "")
    (context, rows, out, settings), _ = calls[0]
    assert (context.base.path, context.base.template, context.base.max_length) == ("nowhere/at/all", "plain", 64)
    assert (context.seed, [(row.axis, row.prompt) for row in rows]) == (4, [("helpful", "why?")])
    assert (out, settings) == (Path("out"), Train.model_validate({"lora": {"rank": 2}, "fit": {"steps": 9}}))


def test_fuse(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "fuse")
    experts = ("--expert", "helpful=x", "--expert", "honest=y=z")
    assert main("fuse", *BASE, *experts, "top_k=1", "router_init=zeros")[0] == 0
    (context, found, out, settings, rows), _ = calls[0]
    assert (found, rows) == ({"helpful": Path("x"), "honest": Path("y=z")}, [])
    assert (context.base.max_length, out, settings) == (300, Path("out"), Fuse(top_k=1, router_init="zeros"))


def test_a_number_is_an_experts_weight(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "fuse")
    words = ("--expert", "helpful=-1.0", "--expert", "helpful=x", "--expert", "honest=./2", "--expert", "honest=1e-2")
    assert main("fuse", *BASE, *words, "--allow-negated")[0] == 0
    (_, found, _, settings, _), _ = calls[0]
    assert found == {"helpful": Path("x"), "honest": Path("2")}
    assert settings == Fuse(weights={"helpful": -1.0, "honest": 0.01}, allow_negated=True)
    by_key = ("weights.helpful=-1.0", "weights.honest=0.01", "allow_negated=true")
    assert main("fuse", *BASE, "--expert", "helpful=x", "--expert", "honest=./2", *by_key)[0] == 0
    assert calls[1][0][1:] == calls[0][0][1:]
    # What is no finite number is a folder, as before.
    assert main("fuse", *BASE, "--expert", "helpful=nan", "--expert", "honest=1e999", "--expert", "c=1_0")[0] == 0
    assert calls[2][0][1] == {"helpful": Path("nan"), "honest": Path("1e999"), "c": Path("1_0")}


def test_fuse_takes_its_own_two_options_as_settings(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "fuse")
    experts = ("--expert", "helpful=x", "--expert", "honest=y")
    assert main("fuse", *BASE, *experts, "--attention", "ties", "--svd-error", "0.2")[0] == 0
    assert calls[0][0][3] == Fuse(shared="ties", svd_error=0.2)
    code, _, error = main("fuse", *BASE, *experts, "--svd-error", "2")
    assert code == 2
    assert "svd_error" in error


def test_merge(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "merge")
    experts = ("--expert", "helpful=x", "--expert", "honest=y")
    assert main("merge", "ties", *BASE, *experts, "density=0.3", "--dense")[0] == 0
    (context, found, out, how, settings), options = calls[0]
    assert (found, out, how, settings) == (
        {"helpful": Path("x"), "honest": Path("y")},
        Path("out"),
        "ties",
        Ties(density=0.3),
    )
    assert options == {"dense": True}
    assert context.base.path == "nowhere/at/all"
    assert main("merge", "average", *BASE, *experts)[0] == 0
    assert calls[1][0][4] is None
    code, _, error = main("merge", "average", *BASE, *experts, "density=0.3")
    assert (code, "average has no settings" in error) == (2, True)


@dataclass
class Found:
    """Stands in for what a check finds."""

    fusable: bool


@pytest.mark.parametrize(("fusable", "code"), [(True, 0), (False, 2)])
def test_check(main: Main, monkeypatch: pytest.MonkeyPatch, fusable: bool, code: int) -> None:
    calls = spy(monkeypatch, "check", Found(fusable))
    monkeypatch.setattr(check_page, "render", lambda found: f"page: {found.fusable}")
    monkeypatch.setattr(check_page, "json_text", lambda found: f"json: {found.fusable}")
    words = ("check", "--base", "base", "--expert", "helpful=x", "--expert", "honest=y")
    assert main(*words, "--attention", "base")[:2] == (code, f"page: {fusable}\n")
    assert main(*words, "--json", "--no-scan")[:2] == (code, f"json: {fusable}\n")
    (base, experts, settings), options = calls[0]
    assert (base, experts) == ("base", {"helpful": Path("x"), "honest": Path("y")})
    assert (settings, options) == (Fuse(shared="base"), {"scan": True})
    assert calls[1][1] == {"scan": False}
    main(*words, "--expert", "honest=-0.5", "--allow-negated")
    assert calls[2][0][2] == Fuse(weights={"honest": -0.5}, allow_negated=True)


def test_align(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "align")
    monkeypatch.setattr(pipeline, "context_of", lambda folder, seed, progress: (folder, seed))
    assert main("align", "fused", *ROWS, "--out", "out", "--seed", "7", "gating=0.1")[0] == 0
    (context, fused, rows, out, settings), _ = calls[0]
    assert (context, fused, len(rows), out) == ((Path("fused"), 7), Path("fused"), 1, Path("out"))
    assert settings == Align(gating=0.1)


def test_evaluate(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "examine")
    assert main("evaluate", "recipe.yaml", "--model", "expert:a=x", "seed=9", "--out", "out")[:2] == (
        0,
        "closed out\n",
    )
    (recipe, models, out, _), _ = calls[0]
    assert (recipe.seed, models, out) == (9, {"expert:a": Path("x")}, Path("out"))


def test_report_of_one_run_and_of_several(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "report", Path("here/report.html"))
    compared: list[tuple[Any, ...]] = []
    monkeypatch.setattr(reporting, "compare_runs", lambda *given: compared.append(given) or Path("page"))
    assert main("report", "here") == (0, "wrote here/report.html\n", "")
    assert (calls, compared) == ([((Path("here"),), {})], [])
    assert main("report", "a", "b") == (0, "wrote page\n", "")
    assert main("report", "a", "--out", "there", "--reference", "fused")[0] == 0
    assert [given[:3] for given in compared] == [
        ([Path("a"), Path("b")], Path("comparison"), ""),
        ([Path("a")], Path("there"), "fused"),
    ]
    assert len(calls) == 1


def test_export(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch, "export", Path("out"))
    words = ("--format", "gguf", "--dtype", "float16", "--max-shard-size", "2MB", "--base", "a/b")
    assert main("export", "run", "--out", "out", *words)[:2] == (0, "wrote out\n")
    assert main("export", "run", "--out", "out")[0] == 0
    assert [args[:4] for args, _ in calls] == [
        (Path("run"), Path("out"), "gguf", Options(torch.float16, 2_000_000, "a/b")),
        (Path("run"), Path("out"), "native", Options(None, 5_000_000_000, "")),
    ]
    main("export", "run", "--out", "out", "--allow-negated")
    assert [options for _, options in calls] == [{"allow_negated": word} for word in (False, False, True)]


def test_chat_asks_each_line(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[Any, ...]] = []
    monkeypatch.setattr(chatting, "speaker", lambda run, template: SimpleNamespace(run=run, template=template))
    monkeypatch.setattr(chatting, "chat", lambda who, asked, decoding: (asked, decoding))
    monkeypatch.setattr(tinting, "show", lambda who, pieces, console, *, plain: heard.append((who, *pieces, plain)))
    assert main("chat", "run", "hello", "--plain", "--temperature", "0.5", "--seed", "2", "--template", "chat")[0] == 0
    who, asked, decoding, plain = heard.pop()
    assert (who.run, who.template, asked, plain) == (Path("run"), "chat", "hello", True)
    assert (decoding.max_new_tokens, decoding.temperature, decoding.seed) == (128, 0.5, 2)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n  two \n"))
    assert main("chat", "run")[0] == 0
    assert [row[1] for row in heard] == ["one", "two"]


def test_route_names_the_adapter_of_each_prompt(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []

    def stand_in(folder: Path, base: str | None, template: str | None) -> Any:
        opened.append((folder, base, template))
        choices = {"why?": chooser.Choice("honest", {"kind": 0.25, "honest": 0.75}, {"kind": 0.0, "honest": 1.0})}
        known = chooser.Choice("kind", {"kind": 0.75, "honest": 0.25}, {"kind": 1.0, "honest": 0.0})
        return SimpleNamespace(route_all=lambda prompts: [choices.get(prompt, known) for prompt in prompts])

    monkeypatch.setattr(chooser, "open_chooser", lambda folder, base, *, template: stand_in(folder, base, template))
    assert main("route", "out", "why?", "please") == (0, "honest\nkind\n", "")
    assert opened == [(Path("out"), None, None)]
    code, out, _ = main("route", "out", "why?", "--json", "--base", "b", "--template", "plain")
    assert (code, opened[-1]) == (0, (Path("out"), "b", "plain"))
    assert json.loads(out) == [
        {
            "prompt": "why?",
            "adapter": "honest",
            "probabilities": {"kind": 0.25, "honest": 0.75},
            "weights": {"kind": 0.0, "honest": 1.0},
        }
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("why?\n\n  two \n"))
    assert main("route", "out")[1] == "honest\nkind\n"


def test_input_errors_from_deep_inside_end_with_2(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "demo", raising(InputError("a very long message " * 20 + "end")))
    code, _, err = main("demo")
    assert (code, err) == (2, "error: " + "a very long message " * 20 + "end\n")
