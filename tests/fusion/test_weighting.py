"""Experts' weights: what is multiplied, what is refused, and what whoever gets the model is told."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fusion.conftest import random_base, random_experts
from triune.errors import InputError
from triune.experts import lowrank
from triune.experts.task_vector import TaskVector
from triune.fusion.building import build
from triune.fusion.configuration import TriuneConfig
from triune.fusion.weighting import CARD, check_allowed, warning, weighted, weights_of, write_card
from triune.recipe import Fuse, check_weights

AXES = ("helpful", "harmless", "honest")
MINUS = Fuse(weights={"harmless": -1.0, "honest": 0.5}, allow_negated=True)


def config(*weights: float) -> TriuneConfig:
    return TriuneConfig(expert_names=list(AXES[: len(weights)]), expert_weights=list(weights) or None)


def test_a_weight_multiplies_everything_that_an_expert_changes() -> None:
    experts = random_experts(random_base("llama"))
    experts[2] = TaskVector("honest", experts[2].parts, "abc", {"model.norm.weight": torch.arange(16.0)})
    found = weighted(experts, MINUS)
    assert found[0] is experts[0]
    for got, old, factor in zip(found[1:], experts[1:], (-1.0, 0.5), strict=True):
        assert got.parts.keys() == old.parts.keys()
        for name, part in old.parts.items():
            assert torch.equal(lowrank.dense(got.parts[name]), factor * lowrank.dense(part))
    assert found[2].others["model.norm.weight"].tolist() == [n / 2 for n in range(16)]
    assert [vector.base_hash for vector in found] == ["", "", "abc"]
    assert weights_of(AXES, MINUS) == [1.0, -1.0, 0.5]
    assert weights_of(AXES, Fuse(weights={"honest": 1.0})) is None


def test_a_negated_expert_in_the_model_is_minus_the_expert() -> None:
    experts = random_experts(random_base("llama"))
    plus, minus = (build(random_base("llama"), experts, settings) for settings in (Fuse(), MINUS))
    assert (plus.config.expert_weights, minus.config.expert_weights) == (None, [1.0, -1.0, 0.5])
    assert (plus.config.negated, minus.config.negated) == ([], ["harmless"])
    for index, factor in enumerate((1.0, -1.0, 0.5)):
        for mine, theirs in zip(minus.mixtures(), plus.mixtures(), strict=True):
            for which in ("gate", "up", "down"):
                (b, a), (old_b, old_a) = (getattr(m.factors(), which).expert(index) for m in (mine, theirs))
                torch.testing.assert_close(b.T @ a, factor * (old_b.T @ old_a))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"kind": 2.0}}, r"names \['kind'\], which are no experts; experts: \['helpful', 'harmless'"),
        ({"weights": {"honest": 0}}, r"gives \['honest'\] the weight 0, .*; leave them out"),
        ({"weights": {"honest": 0}, "allow_negated": True}, "weight 0"),
        ({"weights": {"honest": -0.1}}, r"of \['honest'\] are below 0, .* set fuse.allow_negated .--allow-negated"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_weights(Fuse(**settings), AXES)
    with pytest.raises(InputError, match=message):
        build(random_base("llama"), random_experts(random_base("llama")), Fuse(**settings))
    check_weights(MINUS, AXES)
    check_weights(Fuse(allow_negated=True), AXES)


def test_who_was_subtracted_is_said_in_plain_words(tmp_path: Path) -> None:
    for positive in (config(), config(2.0, 0.5, 1.0)):
        assert warning(positive) == ""
        write_card(positive, tmp_path)
        assert not (tmp_path / CARD).exists()
        check_allowed(positive, allow_negated=False)
    text = warning(config(1.0, -0.5, 1.0))
    assert text.startswith(
        "The expert 'harmless' (weight -0.5) was subtracted: this model was made less harmless on purpose"
    )
    both = warning(config(-1.0, -2.0))
    assert both.startswith("The experts 'helpful' (weight -1), 'harmless' (weight -2) were subtracted: this model was")
    assert "made less helpful and less harmless on purpose" in both
    write_card(config(1.0, -0.5, 1.0), tmp_path)
    card = (tmp_path / CARD).read_text()
    assert f"\n**Warning.** {text}\n" in card
    assert card.startswith("---\ntags:\n- triune\n")
    assert "\n" not in warning(TriuneConfig(expert_names=["a\n\n# b|c", "d"], expert_weights=[-1.0, 1.0]))
    with pytest.raises(InputError, match=r"\['harmless'\] were subtracted .*--allow-negated"):
        check_allowed(config(1.0, -0.5, 1.0), allow_negated=False)
    check_allowed(config(1.0, -0.5, 1.0), allow_negated=True)
