"""Answer likelihoods: by hand, against a slow loop, at the limits, and their gradients."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from triune.errors import InputError
from triune.models.encoding import IGNORED, Encoded, encode_pair, pad_id
from triune.models.likelihood import (
    answer_counts,
    answer_log_likelihoods,
    answer_nll,
    answer_starts,
    hidden_states,
    inference,
    prompt_ends,
    token_log_probs,
)

Real = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def random_case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 6, 5, generator=rng, dtype=dtype)
    labels = torch.randint(0, 5, (4, 6), generator=rng)
    labels[torch.rand(4, 6, generator=rng) < 0.5] = IGNORED
    return logits, labels


def slow_log_prob(logits: Tensor, target: int) -> float:
    """log softmax from its definition, one position at a time."""
    values = [float(value) for value in logits]
    top = max(values)
    return values[target] - top - math.log(math.fsum(math.exp(value - top) for value in values))


def test_value_by_hand() -> None:
    # Softmax of (log 1, log 3) is (1/4, 3/4); the first label and the ignored one do not count.
    row = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    logits = row.expand(1, 4, 2)
    labels = torch.tensor([[0, 1, IGNORED, 0]])
    expected = torch.tensor([[math.log(0.75), 0.0, math.log(0.25)]], dtype=torch.float64)
    torch.testing.assert_close(token_log_probs(logits, labels), expected, rtol=1e-12, atol=0)
    assert answer_counts(labels).tolist() == [2]
    assert answer_nll(logits, labels).item() == pytest.approx(-math.log(0.75 * 0.25) / 2, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_slow_loop(seed: int) -> None:
    logits, labels = random_case(seed)
    scores, losses = token_log_probs(logits, labels), answer_nll(logits, labels)
    for row in range(4):
        found = []
        for position in range(5):
            target = int(labels[row, position + 1])
            if target == IGNORED:
                assert scores[row, position] == 0
                continue
            found.append(slow_log_prob(logits[row, position], target))
            assert scores[row, position].item() == pytest.approx(found[-1], rel=1e-12)
        if found:
            assert losses[row].item() == pytest.approx(-math.fsum(found) / len(found), rel=1e-12)


def test_rows_without_an_answer_give_zero_and_no_nan() -> None:
    logits, labels = random_case(0)
    logits[1] = math.nan
    labels[1] = IGNORED
    logits = logits.requires_grad_()
    losses = answer_nll(logits, labels)
    losses.sum().backward()
    assert losses[1] == 0
    assert answer_counts(labels)[1] == 0
    assert logits.grad is not None
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1] == 0).all()


def test_limits() -> None:
    certain = torch.full((1, 2, 3), -math.inf)
    certain[..., 1] = 0.0
    assert answer_nll(certain, torch.tensor([[IGNORED, 1]])).item() == 0
    assert answer_nll(certain, torch.tensor([[IGNORED, 2]])).item() == math.inf
    uniform = torch.zeros(1, 2, 7)
    assert answer_nll(uniform, torch.tensor([[IGNORED, 4]])).item() == pytest.approx(math.log(7))
    one_token = token_log_probs(torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.int64))
    assert one_token.shape == (2, 0)
    assert answer_nll(torch.zeros(0, 3, 2), torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, labels = random_case(2, torch.float32)
    halves = logits.to(torch.bfloat16)
    scores = token_log_probs(halves, labels)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, token_log_probs(halves.float(), labels), rtol=0, atol=0)


def test_gradients() -> None:
    logits, labels = random_case(3)
    labels[0] = IGNORED
    logits = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: answer_nll(z, labels), (logits,))
    assert torch.autograd.gradcheck(lambda z: token_log_probs(z, labels), (logits,))


def test_short_answers_weigh_as_much_as_long_ones() -> None:
    logits = torch.zeros(2, 6, 3)
    labels = torch.full((2, 6), IGNORED)
    labels[0, 1:] = 0
    labels[1, 5] = 0
    torch.testing.assert_close(answer_nll(logits, labels), torch.full((2,), math.log(3)))


ROWS = [
    Encoded((0, 9, 4, 30, 7, 1), 3),
    Encoded((0, 5), 1),
    Encoded((0, 17, 3, 8, 200, 11, 90, 41, 1), 2),
    Encoded((0, 6, 6), 3),
    Encoded((12, 40, 3), 0),
]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_equal_single_rows(tiny_llama: LlamaForCausalLM, batch_size: int) -> None:
    model = tiny_llama.double()
    try:
        sums, counts = answer_log_likelihoods(model, ROWS, batch_size=batch_size, pad_id=1)
        for index, row in enumerate(ROWS):
            with torch.no_grad():
                logits = model(torch.tensor([row.input_ids])).logits[0]
            first = max(row.n_prompt, 1)
            expected = [slow_log_prob(logits[t - 1], row.input_ids[t]) for t in range(first, len(row.input_ids))]
            assert counts[index] == len(expected)
            assert sums[index].item() == pytest.approx(math.fsum(expected), rel=1e-12)
    finally:
        model.float()


def test_real_model_prefers_its_own_story(real: Real) -> None:
    model, tokenizer = real
    answers = [" there was a little girl named Lily.", " Lily little named was girl a there."]
    rows = [encode_pair(tokenizer, "Once upon a time,", answer, 128) for answer in answers]
    kept = [row for row in rows if row is not None]
    sums, counts = answer_log_likelihoods(model, kept, batch_size=2, pad_id=pad_id(tokenizer))
    assert counts.tolist() == [len(row.input_ids) - row.n_prompt for row in kept]
    story, shuffled = (sums / counts).tolist()
    assert story > shuffled + 1


def test_no_rows() -> None:
    model = torch.nn.Linear(1, 1)
    sums, counts = answer_log_likelihoods(model, [], batch_size=4, pad_id=0)
    assert sums.shape == counts.shape == (0,)
    assert hidden_states(model, [], batch_size=4, pad_id=0).shape == (0, 0)
    with pytest.raises(InputError, match="batch_size"):
        answer_log_likelihoods(model, ROWS, batch_size=0, pad_id=0)


def test_training_flags_come_back(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.train()
    tiny_llama.model.norm.eval()
    seen: list[tuple[bool, bool]] = []
    hook: Callable[..., None] = lambda module, *_: seen.append((module.training, torch.is_grad_enabled()))  # noqa: E731
    handle = tiny_llama.lm_head.register_forward_hook(hook)
    try:
        answer_log_likelihoods(tiny_llama, ROWS[:1], batch_size=1, pad_id=0)
        assert seen == [(False, False)]
        assert tiny_llama.training
        assert tiny_llama.lm_head.training
        assert not tiny_llama.model.norm.training
        with pytest.raises(RuntimeError, match="stop"), inference(tiny_llama):
            raise RuntimeError("stop")
        assert tiny_llama.training
    finally:
        handle.remove()
        tiny_llama.eval()


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_hidden_states_are_means_over_real_tokens(tiny_llama: LlamaForCausalLM, layer: int) -> None:
    states = hidden_states(tiny_llama, ROWS, batch_size=3, pad_id=1, layer=layer)
    assert states.shape == (len(ROWS), 32)
    modules = {-1: tiny_llama.model.norm, 0: tiny_llama.model.embed_tokens, 1: tiny_llama.model.layers[0]}
    for index, row in enumerate(ROWS):
        kept: list[Tensor] = []
        handle = modules[layer].register_forward_hook(lambda _m, _i, output, kept=kept: kept.append(output))
        with torch.no_grad():
            tiny_llama(torch.tensor([row.input_ids]))
        handle.remove()
        torch.testing.assert_close(states[index], kept[0][0].mean(dim=0), rtol=1e-5, atol=1e-6)


def test_where_answers_start_and_prompts_end() -> None:
    labels = torch.tensor([[IGNORED, IGNORED, 5, 6], [IGNORED] * 4, [7, IGNORED, IGNORED, IGNORED]])
    assert answer_starts(labels).tolist() == [2, 4, 0]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    model = torch.nn.Linear(1, 1)
    assert prompt_ends(model, {"labels": labels, "attention_mask": mask}) == {}
    model.config = SimpleNamespace(routing="prompt")  # type: ignore[assignment]
    ends = prompt_ends(model, {"labels": labels, "attention_mask": mask})["routing_position"]
    assert ends.tolist() == [1, 1, -1]  # the third row's prompt is empty, which the model refuses
