"""Models that route whole prompts: what a pass computes, and that every way to generate keeps the prompt's weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, StaticCache

from tests.fusion.conftest import random_base, random_experts
from tests.fusion.prompt_world import axis_rows, deep_base, prompt_model
from tests.fusion.test_modeling import DenseMixture, relative_error, unfactored
from triune.errors import InputError
from triune.fusion import router
from triune.fusion.building import build
from triune.fusion.factored import factored_ffn
from triune.fusion.factors import Block
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.prompt_building import prompt_parts, prompt_states, route_by_prompt
from triune.method_settings import PromptRouting
from triune.models.encoding import Encoded, collate
from triune.models.generation import Decoding, generator_for, token_steps
from triune.models.likelihood import answer_log_likelihoods, prompt_ends
from triune.recipe import Fuse

PROMPTS = [row.input_ids[: row.n_prompt] for row in axis_rows(2, seed=11)]  # six, of 3 and 4 tokens


def batch(prompts: list[tuple[int, ...]], side: Any = "left") -> dict[str, Tensor]:
    made = collate([Encoded(ids, len(ids)) for ids in prompts], 0, side=side)
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def route_of(model: TriuneForCausalLM, prompt: tuple[int, ...]) -> Tensor:
    """By definition: run the prompt with the prior in every layer, read the routing layer's input, route."""
    config: Any = model.config
    ids = torch.tensor([prompt])
    with torch.no_grad(), model.fixed_routing(torch.tensor(config.prior_weights, dtype=torch.float64)):
        h = model.model(ids, output_hidden_states=True).hidden_states[config.routing_layer][:, -1]
        logits = model.prompt_router(h)
    probs = (logits / config.temperatures[0]).softmax(-1)
    return router.top_k_weights(probs, config.num_experts_per_tok)


class GivenMixture(DenseMixture):
    """Dense blocks mixed with weights from outside."""

    def __init__(self, dense: DenseMixture, weights: Tensor) -> None:
        super().__init__(list(dense.blocks), dense.router, dense.k)
        self.weights = weights.double()

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.weights[a] * block(x) for a, block in enumerate(self.blocks))  # type: ignore[return-value]


def reference(model: TriuneForCausalLM, prompt: tuple[int, ...], ids: Tensor) -> Tensor:
    """One row's logits, its experts unfactored; in one pass, the layers before the routing layer have the prior."""
    base = deep_base(torch.float64)
    token_model = build(copy.deepcopy(base), random_experts(base), Fuse(router_init="zeros"))
    plain, weights, config = unfactored(base, token_model, 2), route_of(model, prompt)[0], model.config
    for index, layer in enumerate(plain.model.layers):
        prior = index < config.routing_layer and config.routing_passes == 1
        layer.mlp = GivenMixture(layer.mlp, torch.tensor(config.prior_weights) if prior else weights)
    with torch.no_grad():
        return plain(ids).logits


@pytest.mark.parametrize("passes", [1, 2])
def test_equals_the_unfactored_mixture_with_each_prompts_weights(passes: int) -> None:
    model = prompt_model(torch.float64, passes=passes)
    inputs = batch(PROMPTS[:4], "right")
    with torch.no_grad():
        out = model(**inputs)
    for row, prompt in enumerate(PROMPTS[:4]):
        n = len(prompt)
        want = reference(model, prompt, inputs["input_ids"][row : row + 1, :n])
        assert relative_error(out.logits[row : row + 1, :n], want) < 1e-6  # the route itself is float32
        torch.testing.assert_close(out.prompt_route.weights[row : row + 1], route_of(model, prompt))


def test_prompts_differ_and_the_passes_route_alike() -> None:
    one, two = prompt_model(passes=1), prompt_model(passes=2)
    inputs = batch(PROMPTS)
    with torch.no_grad():
        first, second = one(**inputs), two(**inputs)
    assert torch.equal(first.prompt_route.weights, second.prompt_route.weights)
    assert len({tuple(row) for row in first.prompt_route.weights.tolist()}) == len(PROMPTS)
    assert not torch.allclose(first.logits, second.logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("passes", [1, 2])
def test_padding_changes_no_route(side: str, passes: int) -> None:
    model = prompt_model(passes=passes)
    with torch.no_grad():
        together = model(**batch(PROMPTS, side)).prompt_route
        for row, prompt in enumerate(PROMPTS):
            alone = model(torch.tensor([prompt])).prompt_route
            torch.testing.assert_close(together.weights[row], alone.weights[0])
            torch.testing.assert_close(together.logits[row], alone.logits[0])


@pytest.mark.parametrize("passes", [1, 2])
def test_every_family(family: str, passes: int) -> None:
    """Two layers; the route, and the logits of a padded batch, are those of each prompt alone."""
    base = random_base(family)
    model = build(base, random_experts(base), Fuse(router_init="zeros"))
    states = prompt_states(model, axis_rows(), 1, 0)
    config: Any = model.config
    route_by_prompt(model, prompt_parts(states, {}, PromptRouting(latent=6, passes=passes), config))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    together = model.generate(**batch(PROMPTS), **options)[:, -4:]
    with torch.no_grad():
        routes = model(**batch(PROMPTS, "right")).prompt_route
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(routes.weights[row : row + 1], route_of(model, prompt), rtol=1e-3, atol=1e-4)
        ids = torch.tensor([prompt])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert alone[0, -4:].tolist() == together[row].tolist()


def test_answers_do_not_change_the_route() -> None:
    model, rows = prompt_model(), axis_rows(2, seed=11)
    for side in ("left", "right"):
        made = collate(rows, 0, side=side)  # type: ignore[arg-type]
        inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            want = model(**batch(PROMPTS)).prompt_route.weights
            by_place = model(**inputs, **prompt_ends(model, made)).prompt_route.weights
            by_labels = model(**inputs, labels=made["labels"]).prompt_route.weights
            unsaid = model(**inputs).prompt_route.weights
        torch.testing.assert_close(by_place, want)
        torch.testing.assert_close(by_labels, want)
        assert not torch.allclose(unsaid, want)


def test_likelihoods_are_those_of_the_prompts_own_route() -> None:
    model, rows = prompt_model(), axis_rows(2, seed=11)
    sums, counts = answer_log_likelihoods(model, rows, batch_size=4, pad_id=0)
    assert counts.tolist() == [3] * 6
    for row, found in zip(rows, sums, strict=True):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            route = model(ids[:, : row.n_prompt]).prompt_route
            logp = model(ids, prompt_route=route).logits.log_softmax(-1)[0, row.n_prompt - 1 : -1]
        want = logp.gather(-1, ids[0, row.n_prompt :, None]).sum()
        torch.testing.assert_close(found.float(), want, rtol=1e-4, atol=1e-4)


@contextmanager
def counted(model: TriuneForCausalLM) -> Iterator[list[int]]:
    """How many prompts the router saw, call by call."""
    calls: list[int] = []
    hook = model.prompt_router.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    yield calls
    hook.remove()


HOW = {
    "greedy": {},
    "uncached": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "beams uncached": {"num_beams": 2, "use_cache": False},
}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("how", HOW)
def test_generating_together_equals_one_by_one(how: str, passes: int) -> None:
    model = prompt_model(passes=passes)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **HOW[how]}
    with counted(model) as calls:
        together = model.generate(**batch(PROMPTS), **options)[:, -6:]
    assert len(calls) == 1  # decoding never asks the router
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **options)
        assert alone[0, -6:].tolist() == together[row].tolist()


def test_greedy_equals_steps_with_the_weights_held_fixed() -> None:
    model = prompt_model(passes=2)
    for prompt in PROMPTS[:3]:
        ids = torch.tensor([prompt])
        got = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5)
        with model.fixed_routing(route_of(model, prompt)):
            want = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5)
        assert got.tolist() == want.tolist()


def test_cached_beams_and_returned_sequences_equal_uncached() -> None:
    model = prompt_model()
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 5, "do_sample": False}
    want = model.generate(**batch(PROMPTS), use_cache=False, **options)
    assert torch.equal(model.generate(**batch(PROMPTS), **options), want)


def test_sampling_with_a_seed() -> None:
    model = prompt_model()
    options = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 2}
    found = []
    for use_cache in (True, False, True):
        with torch.random.fork_rng():
            torch.manual_seed(4)
            found.append(model.generate(**batch(PROMPTS), use_cache=use_cache, **options))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[1])


def test_guessed_tokens_behind_the_prompt_do_not_route_it() -> None:
    model = prompt_model()
    prompt = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
    want = model.generate(prompt, **options)
    with counted(model) as calls:
        got = model.generate(prompt, prompt_lookup_num_tokens=3, **options)
    assert torch.equal(got, want)
    assert len(calls) == 1


def test_token_steps_and_interleaved_generations() -> None:
    model = prompt_model()
    rows = [Encoded(prompt, len(prompt)) for prompt in PROMPTS]
    for temperature in (0.0, 1.0):
        decoding = Decoding(max_new_tokens=5, temperature=temperature, seed=1, stop_at=())
        rngs = [generator_for(1, i) for i in range(len(rows))]
        together = list(token_steps(model, rows, decoding, rngs if temperature else ()))
        alone = [
            token_steps(model, [row], decoding, [generator_for(1, i)] if temperature else ())
            for i, row in enumerate(rows)
        ]
        taking_turns = [[next(steps)[0] for steps in alone] for _ in range(5)]
        assert together == taking_turns


def test_the_route_is_kept_with_its_cache() -> None:
    model = prompt_model()
    with torch.no_grad():
        first = model(torch.tensor([PROMPTS[0]]), use_cache=True)
        cache = first.past_key_values
        more = model(torch.tensor([[7, 8]]), past_key_values=cache, use_cache=True, output_router_logits=True)
        assert torch.equal(more.prompt_route.weights, first.prompt_route.weights)
        assert torch.equal(more.router_logits[0][0, 1], first.prompt_route.logits[0])
        with pytest.raises(InputError, match="2 rows"):
            model(torch.tensor([[7], [8]]), past_key_values=cache)
        with model.fixed_routing(torch.ones(3) / 3):
            other = model(torch.tensor([PROMPTS[0]]), use_cache=True)
        with pytest.raises(InputError, match="begin with an empty cache"):
            model(torch.tensor([[7]]), past_key_values=other.past_key_values)


def test_an_emptied_cache_routes_anew() -> None:
    model = prompt_model()
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=16)
    with torch.no_grad():
        for prompt in PROMPTS[:2]:
            found = model(torch.tensor([prompt]), past_key_values=cache, use_cache=True).prompt_route
            torch.testing.assert_close(found.weights, route_of(model, prompt))
            cache.reset()


def test_router_logits_are_the_prompts_at_each_of_its_tokens() -> None:
    model = prompt_model()
    inputs = batch(PROMPTS)
    with torch.no_grad():
        out = model(**inputs, output_router_logits=True)
    (logits,) = out.router_logits
    assert logits.shape == (*inputs["input_ids"].shape, 3)
    assert torch.equal(logits, out.prompt_route.logits[:, None].expand_as(logits))
    assert model(**inputs).router_logits is None
    assert model._listeners == []


@pytest.mark.parametrize("lambdas", [(0.6, 0.4), (0.0, 0.0)])
def test_saved_and_loaded_it_is_the_same(lambdas: tuple[float, float], tmp_path: Path) -> None:
    model = prompt_model(fractal=lambdas[0], natural=lambdas[1], passes=2)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.routing == "prompt"
    inputs = batch(PROMPTS)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert {n for n in again.state_dict() if n.endswith("mlp.router.weight")} == set()


def test_in_bfloat16_the_router_stays_float32(tmp_path: Path) -> None:
    model = prompt_model()
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in half.prompt_router.state_dict().values()} == {torch.float32}
    assert half.lm_head.weight.dtype == torch.bfloat16
    with torch.no_grad():
        found, want = half(**batch(PROMPTS)), model(**batch(PROMPTS))
    assert found.logits.dtype == torch.bfloat16
    assert found.prompt_route.weights.dtype == torch.float32
    assert (found.prompt_route.weights - want.prompt_route.weights).abs().mean() < 0.2
    answers = half.generate(**batch(PROMPTS), max_new_tokens=3)
    assert answers.shape[1] <= batch(PROMPTS)["input_ids"].shape[1] + 3


@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_are_the_same_under_checkpointing(passes: int) -> None:
    model = prompt_model(torch.float64, passes=passes).train()
    inputs = batch(PROMPTS)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        out = model(**inputs, use_cache=False, output_router_logits=True)
        (out.logits.square().mean() + out.router_logits[0].square().mean()).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert "prompt_router.weight" in found[0]
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad)
    model.eval()
    with torch.no_grad():
        model(**inputs)
    assert all(mixture.routed is None for mixture in model.mixtures())


def test_weights_set_from_outside_go_before_the_router() -> None:
    model = prompt_model()
    weights = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2])]
    with torch.no_grad(), model.fixed_routing(weights), counted(model) as calls:
        out = model(**batch(PROMPTS), output_router_logits=True)
    assert calls == []
    assert out.prompt_route is None
    assert out.router_logits == ()


def test_what_cannot_be_routed_is_refused() -> None:
    model = prompt_model()
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(InputError, match=r"not .*model\.model"):
        model.model(ids)
    with pytest.raises(InputError, match="a prompt is empty"):
        model(ids, attention_mask=torch.zeros_like(ids))
    with pytest.raises(InputError, match="a prompt is empty"):
        model(ids, labels=ids)
    with pytest.raises(InputError, match="does not hold its end"):
        model(ids, routing_position=torch.tensor([3]))
    with pytest.raises(InputError, match="prefill_chunk_size"):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, prefill_chunk_size=2)
    assert all(mixture.routed is None for mixture in model.mixtures())


def test_token_routing_is_bit_for_bit_what_it_was(tokens: Tensor) -> None:
    """The pass by hand: routers, temperature, bias and top-k as they were before prompts could be routed."""
    base = random_base("llama")
    model = build(base, random_experts(base), Fuse(router_init="zeros", temperature=0.7))
    rng = torch.Generator().manual_seed(3)
    for mixture in model.mixtures():
        with torch.no_grad():
            mixture.router.weight.copy_(torch.randn(mixture.router.weight.shape, generator=rng))
    assert model.prompt_router is None
    assert not any("prompt" in name for name in model.state_dict())
    with torch.no_grad():
        out = model(tokens, output_router_logits=True)
        assert out.prompt_route is None
        hidden = model.model(tokens).last_hidden_state
        assert torch.equal(model.lm_head(hidden), out.logits)
    x = torch.randn(2, 3, 16, generator=rng)
    own = model.mixtures()[0]
    top, chosen = (own.router(x) / 0.7).softmax(-1).topk(2, dim=-1)
    weights = torch.zeros(2, 3, 3).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
    block = Block(own.gate_proj, own.up_proj, own.down_proj, own.act_fn, own.down_proj.bias)
    want = factored_ffn(x.flatten(0, 1), weights.flatten(0, 1), block, own.factors(), own.saved)
    assert torch.equal(own(x).flatten(0, 1), want)
