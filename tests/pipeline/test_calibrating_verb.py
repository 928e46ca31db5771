"""The verb calibrate: what it fits, what it leaves alone, what it refuses; and what a run reports of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.fusion.conftest import random_base, random_experts
from tests.fusion.test_opening import save
from tests.pipeline.test_fusing import AXES, Listener, context
from triune import pipeline
from triune.cli.main import app
from triune.diagnose.routing import routing_logits
from triune.errors import InputError
from triune.experts.adapters import write_adapter
from triune.fusion.opening import open_fused
from triune.models.encoding import pad_id
from triune.models.store import hash_weights
from triune.recipe import Calibrate, Fuse, Importance
from triune.types import Example

ROWS = [Example(AXES[i % 3], f"word{i} word{i % 7}", f"word{i + 2}") for i in range(36)]


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fused folder of the verb, its routers far too sure."""
    place = tmp_path_factory.mktemp("world")
    stored = random_base("llama")
    base = save(stored, place / "base")
    experts = {}
    for vector in random_experts(stored):
        experts[vector.axis] = place / vector.axis
        write_adapter(vector, experts[vector.axis], str(base))
    settings = Fuse(temperature=0.05, importance=Importance(), router_init="logistic")
    return pipeline.fuse(context(base), experts, place / "fused", settings, ROWS)


def nll(folder: Path, rows: Sequence[Example]) -> float:
    """−log p of the rows' axes, token by token, as the opened model routes."""
    model, tokenizer = open_fused(folder)
    logits, _ = routing_logits(model, context(folder).encode(tokenizer, rows), pad_id(tokenizer))
    config = model.config
    biases = torch.tensor(config.biases)
    scaled = logits.values / torch.tensor(config.temperatures)[:, None, None] + biases[:, None]
    own = scaled.double().softmax(-1).mean(0)[torch.arange(len(logits.axis)), logits.axis]
    return float(-own.log().mean())


@pytest.mark.parametrize(("fit", "per_layer"), [("temperature", False), ("layer_vector", True)])
def test_it_fits_the_routing_and_leaves_the_weights_alone(
    fused: Path, tmp_path: Path, fit: str, per_layer: bool
) -> None:
    listener = Listener()
    out = pipeline.calibrate(context(fused, listener), fused, ROWS, tmp_path / "out", Calibrate(fit=fit, least=12))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (fused, out))
    assert hash_weights(out) == hash_weights(fused)
    assert isinstance(after["router_temperature"], list) == per_layer
    assert (after["router_bias"] is not None) == per_layer
    kept = {"router_temperature", "router_bias"}
    assert {k: v for k, v in after.items() if k not in kept} == {k: v for k, v in before.items() if k not in kept}
    account = json.loads((out / "calibration.json").read_text())
    assert account["nll_after"] < account["nll_before"]
    assert account["rows"] == dict.fromkeys(AXES, 12)
    assert any("held-out NLL of the routing" in text for text in listener.said)
    assert nll(out, ROWS) < nll(fused, ROWS)
    if not per_layer:
        assert account["nll_before"] == pytest.approx(nll(fused, ROWS), rel=1e-4)
        assert account["nll_after"] == pytest.approx(nll(out, ROWS), rel=1e-4)


def test_a_second_call_skips(fused: Path, tmp_path: Path) -> None:
    for _ in range(2):
        listener = Listener()
        pipeline.calibrate(context(fused, listener), fused, ROWS, tmp_path / "out", Calibrate(least=12))
    assert "finished before, skipped" in listener.said[-1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS, "helpful has 12, harmless has 12, honest has 12; calibration needs at least 30 rows of every axis"),
        ([row for row in ROWS * 3 if row.axis != "honest"], "held-out rows: honest has 0"),
        ([*ROWS * 3, Example("kind", "word1", "word2")], r"there are rows of \['kind'\], not of its experts"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    fused: Path, tmp_path: Path, rows: list[Example], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triune.pipeline.calibrating.open_fused", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message):
        pipeline.calibrate(context(fused), fused, rows, tmp_path / "out", Calibrate())
    assert not (tmp_path / "out").exists()


def test_a_base_is_no_fused_model(fused: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no fused model; give the folder of `triune fuse` or `triune align`"):
        pipeline.calibrate(context(fused), fused.parent / "base", ROWS, tmp_path / "out", Calibrate())


def test_from_the_command_line(fused: Path, tmp_path: Path) -> None:
    data = []
    for axis in AXES:
        path = tmp_path / f"{axis}.jsonl"
        own = [{"prompt": row.prompt, "response": row.response} for row in ROWS if row.axis == axis]
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
        data += ["--data", f"{axis}={path}"]
    out = str(tmp_path / "out")
    result = CliRunner().invoke(app, ["calibrate", str(fused), *data, "--out", out, "fit=vector", "least=10"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["fit"] == "vector"
