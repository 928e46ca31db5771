"""No file that Triune reads can run code: the sources call nothing that would, and a pickle is refused everywhere."""

import ast
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.spoiling import make_world
from triune import cli
from triune.errors import InputError
from triune.experts.kinds import read_expert
from triune.fusion.chooser import open_chooser
from triune.judges.guard_models import load_score_model
from triune.models.loading import load_base
from triune.parsing import parse_yaml

PACKAGE = Path(__file__).parents[2] / "src" / "triune"
# Functions by their last names; a dotted one must match both parts.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "torch.load", "torch.save", "yaml.load", "yaml.load_all", "yaml.unsafe_load"),
    *("yaml.full_load", "shutil.unpack_archive", "pty.spawn"),
    *("extractall", "extract", "from_pickle", "read_pickle", "to_pickle"),
}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "zipfile", "tarfile"}
# Keyword arguments that turn a safe call into an unsafe one.
ARGUMENTS = {"trust_remote_code": {True}, "allow_pickle": {True}, "shell": {True}, "use_safetensors": {False}}
REGEX = {"re.compile"}  # compile alone is Python's own


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def faults(source: str) -> list[str]:
    """What a source does that it must not, as "line: what"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES]  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        whole = dotted(node.func)
        two = ".".join(whole.split(".")[-2:])
        last = whole.split(".")[-1]
        method = last in {"extractall", "extract", "from_pickle", "read_pickle", "to_pickle"}
        if two in FORBIDDEN - REGEX or (whole in FORBIDDEN) or method:
            found.append(f"{node.lineno}: calls {whole}")
        for keyword in node.keywords:
            bad = ARGUMENTS.get(keyword.arg or "")
            if bad and not (isinstance(keyword.value, ast.Constant) and keyword.value.value not in bad):
                found.append(f"{node.lineno}: {whole}({keyword.arg}={ast.unparse(keyword.value)})")
    return found


def test_no_source_runs_what_it_reads() -> None:
    found = {
        str(path.relative_to(PACKAGE)): wrong
        for path in sorted(PACKAGE.rglob("*.py"))
        if (wrong := faults(path.read_text(encoding="utf-8")))
    }
    assert found == {}


BAD_SOURCES = (
    "import pickle",
    "from joblib import load",
    "import torch\ntorch.load('x')",
    "import numpy as np\nnp.load('x', allow_pickle=True)",
    "AutoModel.from_pretrained('x', trust_remote_code=True)",
    "AutoModel.from_pretrained('x', trust_remote_code=setting)",
    "AutoModel.from_pretrained('x', use_safetensors=False)",
    "yaml.load(text)",
    "yaml.load(text, Loader=yaml.Loader)",
    "eval('1')",
    "exec('1')",
    "os.system('x')",
    "archive.extractall('.')",
    "subprocess.run('x', shell=True)",
)


@pytest.mark.parametrize("source", BAD_SOURCES)
def test_the_reader_of_sources_sees_each(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize(
    "source", ["model.eval()", "re.compile('x')", "yaml.safe_load(x)", "f(trust_remote_code=False)", "yaml.compose(x)"]
)
def test_the_reader_of_sources_lets_others_be(source: str) -> None:
    assert faults(source) == []


def test_models_are_loaded_without_their_code_and_without_pickles() -> None:
    """Each call that would otherwise ask, or look for a pickle, says no."""
    calls = [
        (path.name, node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.fullmatch(r"Auto\w+\.from_(pretrained|config)", dotted(node.func))
    ]
    assert len(calls) >= 6
    for name, node in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code") == "False", (name, node.lineno)
        if dotted(node.func) == "AutoModelForCausalLM.from_pretrained":
            assert given.get("use_safetensors") == "True", (name, node.lineno)


def test_yaml_makes_plain_values_only() -> None:
    for text in ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/module:os"):
        with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
            parse_yaml(text)


# A pickle that would be noticed


class Payload:
    """Read as a pickle, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound world as the working folder, with folders whose only weights are pickles that make `ran`."""
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path)
    load = pickle.dumps(Payload(tmp_path / "ran"))
    for suffix in ("bin", "pt", "pkl", "pth", "ckpt"):
        (tmp_path / f"weights.{suffix}").write_bytes(load)
    for name, weights in {"bad-base": "pytorch_model.bin", "bad-pt": "model.pt", "bad-pkl": "model.pkl"}.items():
        shutil.copytree("base", name)
        (tmp_path / name / "model.safetensors").unlink()
        (tmp_path / name / weights).write_bytes(load)
    for name, weights in {"bad-expert": "adapter_model.bin", "pkl-expert": "adapter_model.pkl"}.items():
        shutil.copytree("helpful", name)
        (tmp_path / name / "adapter_model.safetensors").unlink()
        (tmp_path / name / weights).write_bytes(load)
    return tmp_path


def test_the_pickle_would_be_noticed(world: Path) -> None:
    pickle.loads((world / "weights.bin").read_bytes())
    assert (world / "ran").is_dir()


@pytest.fixture
def triune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run a command that must end with 2; what it said."""
    import signal

    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["triune", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2, capsys.readouterr()
        return capsys.readouterr().err

    yield call
    for name, handler in handlers.items():
        signal.signal(name, handler)


BASES = ("bad-base", "bad-pt", "bad-pkl", "weights.bin", "weights.pt", "weights.pkl", "weights.pth", "weights.ckpt")
EXPERTS = ("bad-expert", "pkl-expert", *BASES)
ROWS = ("--data", "helpful=helpful.jsonl", "--data", "honest=honest.jsonl")
DATA = (*ROWS, "--template", "plain", "--max-length", "32")
RECIPE = """
base: {{path: {base}, template: plain, max_length: 32}}
axes:
  helpful: {{train: {{source: helpful.jsonl, stop: 0.5}}, test: {{source: helpful.jsonl, start: 0.5}}{expert}}}
  honest: {{train: {{source: honest.jsonl, stop: 0.5}}, test: {{source: honest.jsonl, start: 0.5}}}}
evaluate: [{{kind: nll}}]
"""


def with_base(base: str) -> dict[str, tuple[str, ...]]:
    """Every verb that takes a base."""
    experts = ("--expert", "helpful=helpful", "--expert", "honest=honest")
    Path("recipe.yaml").write_text(RECIPE.format(base=base, expert=""))
    return {
        "train": ("train", "--base", base, *DATA, "--out", "out"),
        "fuse": ("fuse", "--base", base, *experts, *DATA, "--out", "out"),
        "merge": ("merge", "average", "--base", base, *experts, "--out", "out"),
        "run": ("run", "recipe.yaml", "--out", "out"),
        "evaluate": ("evaluate", "recipe.yaml", "--model", "a=honest", "--out", "out"),
        "chat": ("chat", base, "why?"),
        "diagnose": ("diagnose", "collapse", "--base", base, *experts, *DATA, "--out", "out"),
    }


def with_expert(expert: str) -> dict[str, tuple[str, ...]]:
    """Every verb that takes an expert or a model."""
    experts = ("--expert", f"helpful={expert}", "--expert", "honest=honest")
    Path("recipe.yaml").write_text(RECIPE.format(base="base", expert=""))
    Path("expert.yaml").write_text(RECIPE.format(base="base", expert=f", expert: {expert}"))
    return {
        "fuse": ("fuse", "--base", "base", *experts, *DATA, "--out", "out"),
        "merge": ("merge", "average", "--base", "base", *experts, "--out", "out"),
        "run": ("run", "expert.yaml", "--out", "out"),
        "evaluate": ("evaluate", "recipe.yaml", "--model", f"a={expert}", "--out", "out"),
        "align": ("align", expert, *ROWS, "--out", "out"),
        "calibrate": ("calibrate", expert, "--data", "helpful=helpful.jsonl", "--out", "out"),
        "export": ("export", expert, "--out", "out"),
        "chat": ("chat", expert, "why?"),
        "route": ("route", expert, "why?"),
        "diagnose": ("diagnose", "collapse", "--base", "base", *experts, *DATA, "--out", "out"),
    }


def test_every_verb_refuses_a_pickled_base(world: Path, triune: Callable[..., str]) -> None:
    for base in BASES:
        for words in with_base(base).values():
            said = triune(*words)
            assert said.startswith("error: "), (words, said)
    assert not (world / "ran").exists()
    assert not (world / "out").exists()


def test_every_verb_refuses_a_pickled_expert(world: Path, triune: Callable[..., str]) -> None:
    for expert in EXPERTS:
        for words in with_expert(expert).values():
            said = triune(*words)
            assert said.startswith("error: "), (words, said)
    assert not (world / "ran").exists()
    assert not (world / "out").exists()


def test_a_check_says_that_a_pickle_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    for base, expert in (("bad-base", "helpful"), ("base", "bad-expert")):
        words = ["check", "--base", base, "--expert", f"helpful={expert}", "--expert", "honest=honest"]
        found = CliRunner().invoke(cli.app, words)
        assert found.exit_code != 0
        assert "pickle" in found.output
        assert "CANNOT BE FUSED" in found.output
    assert not (world / "ran").exists()


def test_the_library_refuses_pickles_too(world: Path) -> None:
    import torch

    for base in BASES:
        with pytest.raises(InputError):
            load_base(base)
        with pytest.raises(InputError):
            load_score_model(world / base, torch.float32, "cpu")
        with pytest.raises(InputError):
            open_chooser(world / base)
    for expert in EXPERTS:
        with pytest.raises(InputError):
            read_expert(world / expert, "helpful", world / "base")
    assert not (world / "ran").exists()


def test_a_pickle_beside_safetensors_is_left_alone(world: Path) -> None:
    shutil.copy("weights.bin", "base/pytorch_model.bin")
    shutil.copy("weights.bin", "helpful/adapter_model.bin")
    load_base("base")
    read_expert(world / "helpful", "helpful", world / "base")
    assert not (world / "ran").exists()


def test_code_beside_a_model_is_not_imported(world: Path) -> None:
    """config.json may name a module of its own folder (auto_map): it is never imported."""
    import json

    (world / "base" / "evil.py").write_text(f"import os\nos.mkdir({str(world / 'ran')!r})\nclass C: pass\n")
    path = world / "base" / "config.json"
    named = {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C", "AutoTokenizer": "evil.C"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}))
    load_base("base")
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "evil"}))
    with pytest.raises(InputError, match="model_type 'evil'; supported"):
        load_base("base")
    assert not (world / "ran").exists()
