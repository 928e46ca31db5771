"""What a model makes of held-out rows: batches change nothing, and both numbers are those of the room of models."""

from pathlib import Path

import pytest
import torch

from tests.baselines.tiny_experts import WORDS, random_model
from triune.diagnose.probing import Held, check_alike, hold, probe
from triune.errors import InputError
from triune.models.encoding import Encoded
from triune.models.likelihood import answer_log_likelihoods, hidden_states
from triune.models.tiny import build_tokenizer
from triune.recipe import Base
from triune.types import Example

BASE = Base(path="x", template="dialogue", max_length=12)
TOKENIZER = build_tokenizer(WORDS)
EXAMPLES = [
    Example("one", "w1 w2", "w3"),
    Example("two", "w4", "w5 w6 w7"),
    Example("one", " ".join(["w8"] * 20), "w9"),
    Example("two", "w1 w1 w1", "w2 w2"),
]


@pytest.fixture(scope="module")
def held() -> Held:
    return hold(TOKENIZER, EXAMPLES, BASE)


def test_rows_that_fit_keep_their_prompt_and_axis(held: Held) -> None:
    assert held.prompts == ("w1 w2", "w4", "w1 w1 w1")
    assert held.axes == ("one", "two", "two")
    assert held.n_left_out == 1
    assert len(held.rows) == 3


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_one_pass_gives_what_two_functions_give(held: Held, batch_size: int) -> None:
    model = random_model().train()
    found = probe(model, held.rows, batch_size=batch_size, pad_id=0)
    assert model.training
    assert found.states.shape == (2, 3, 16)
    sums, counts = answer_log_likelihoods(model, held.rows, batch_size=64, pad_id=0)
    torch.testing.assert_close(found.nll, -sums / counts, rtol=1e-5, atol=1e-6)
    for layer in (1, 2):
        expected = hidden_states(model, held.rows, batch_size=64, pad_id=0, layer=layer)
        torch.testing.assert_close(found.states[layer - 1], expected, rtol=1e-4, atol=1e-5)
    last = hidden_states(model, held.rows, batch_size=64, pad_id=0)
    torch.testing.assert_close(found.states[-1], last, rtol=1e-4, atol=1e-5)


def test_refused(held: Held, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of 1 held-out rows fits in 12 tokens"):
        hold(TOKENIZER, EXAMPLES[2:3], BASE)
    with pytest.raises(InputError, match="none of 0 held-out rows"):
        hold(TOKENIZER, [], BASE)
    with pytest.raises(InputError, match="there are no rows to look at"):
        probe(random_model(), [], batch_size=4, pad_id=0)
    with pytest.raises(InputError, match="batch_size is 0"):
        probe(random_model(), held.rows, batch_size=0, pad_id=0)
    other = hold(build_tokenizer([*WORDS[5:], *WORDS[:5]]), EXAMPLES, BASE)
    with pytest.raises(InputError, match="the tokenizer of 'odd' reads the held-out rows otherwise"):
        check_alike("odd", other, held)
    check_alike("even", hold(TOKENIZER, EXAMPLES, BASE), held)


def test_numbers_that_are_none_are_refused() -> None:
    model = random_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    rows = [Encoded((5, 6, 8), 1), Encoded((5, 7, 8), 1)]
    with pytest.raises(InputError, match="'honest' gives NaN or infinite numbers for 1 of 2 rows"):
        probe(model, rows, batch_size=1, pad_id=0, name="'honest'")
