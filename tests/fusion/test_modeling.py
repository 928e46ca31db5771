"""`TriuneForCausalLM` over every family: against unfactored experts, PEFT's own output, and itself reloaded."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

import triune
from tests.fusion.conftest import FAMILIES, random_base, random_experts
from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.adapters import write_adapter
from triune.fusion.building import build
from triune.fusion.configuration import TriuneConfig
from triune.fusion.modeling import TriuneForCausalLM
from triune.models.encoding import Encoded
from triune.models.generation import Decoding, generator_for, token_steps
from triune.recipe import Fuse


def fused_model(base: PreTrainedModel, top_k: int = 2) -> TriuneForCausalLM:
    """A fused copy of the base with random routers."""
    model = build(copy.deepcopy(base), random_experts(base), Fuse(top_k=top_k, router_init="zeros"))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for mixture in model.mixtures():
            nn.init.normal_(mixture.router.weight, std=1.0)
    return model


class DenseMixture(nn.Module):
    """The unfactored reference: whole feed-forward blocks, all of them run, routed as METHODS §3 says."""

    def __init__(self, blocks: list[nn.Module], router: nn.Module, k: int) -> None:
        super().__init__()
        self.blocks, self.router, self.k = nn.ModuleList(blocks), router, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probs = (x @ self.router.weight.to(x.dtype).T).to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)
        top, chosen = probs.topk(self.k, -1)
        weights = torch.zeros_like(probs).scatter(-1, chosen, top / top.sum(-1, keepdim=True)).to(x.dtype)
        return torch.stack([block(x) * weights[..., a : a + 1] for a, block in enumerate(self.blocks)]).sum(0)


def unfactored(base: PreTrainedModel, fused: TriuneForCausalLM, k: int) -> PreTrainedModel:
    """The base's own class with each `mlp` replaced by E full copies of it, each with one expert's increment."""
    singles = []
    for expert in random_experts(base):
        single = copy.deepcopy(base)
        task_vector.apply(expert, single)
        singles.append(single)
    reference = copy.deepcopy(base)
    for index, layer in enumerate(reference.model.layers):
        blocks = [single.model.layers[index].mlp for single in singles]
        layer.mlp = DenseMixture(blocks, fused.mixtures()[index].router, k)
    return reference


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_equals_the_unfactored_mixture(
    family: str, dtype: torch.dtype, limit: float, k: int, tokens: torch.Tensor
) -> None:
    base = random_base(family, dtype)
    model = fused_model(base, k)
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    want = unfactored(base, model, k)(tokens, attention_mask=mask).logits
    assert relative_error(model(tokens, attention_mask=mask).logits, want) < limit


class CalibratedMixture(DenseMixture):
    """TrinityX's block by its definition: α = softmax(z/T), α̃ ∝ γ α exp(b), then the norm."""

    def __init__(self, dense: DenseMixture, config: TriuneConfig, layer: int, norm: nn.Module) -> None:
        super().__init__(list(dense.blocks), dense.router, dense.k)
        self.temperature, self.norm = config.temperatures[layer], norm
        importance, bias = (
            torch.tensor(own, dtype=torch.float64) for own in (config.expert_importance, config.router_bias)
        )
        self.factor = importance * bias[layer].exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = (x @ self.router.weight.to(x.dtype).T / self.temperature).softmax(-1) * self.factor.to(x.dtype)
        top, chosen = (alpha / alpha.sum(-1, keepdim=True)).topk(self.k, -1)
        weights = torch.zeros_like(alpha).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
        return self.norm(
            torch.stack([block(x) * weights[..., a : a + 1] for a, block in enumerate(self.blocks)]).sum(0)
        )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_calibrated_routing_equals_its_definition_and_outlives_saving(
    k: int, tokens: torch.Tensor, tmp_path: Path
) -> None:
    base = random_base("llama", torch.float64)
    plain = fused_model(base, k)
    config = copy.deepcopy(plain.config)
    config.router_temperature, config.expert_importance = [0.7, 1.9], [0.2, 0.5, 0.3]
    config.router_bias, config.post_norm = [[0.4, -0.3, -0.1], [0.0, 1.0, -1.0]], True
    model = TriuneForCausalLM(config).double().eval()
    missing, extra = model.load_state_dict(plain.state_dict(), strict=False)
    assert (len(missing), extra) == (2 * config.num_hidden_layers, [])  # the norms
    with torch.no_grad(), torch.random.fork_rng():
        for name, parameter in model.named_parameters():
            if ".post_norm." in name:
                parameter.copy_(torch.rand(parameter.shape, dtype=torch.float64) + 0.5)
    reference = unfactored(base, model, k)
    for index, layer in enumerate(reference.model.layers):
        layer.mlp = CalibratedMixture(layer.mlp, config, index, model.mixtures()[index].post_norm)
    logits = model(tokens).logits
    assert relative_error(logits, reference(tokens).logits) < 1e-12
    assert relative_error(logits, plain(tokens).logits) > 1e-3
    with torch.inference_mode():
        model(tokens)
    model(tokens).logits.sum().backward()  # the bias kept from the pass before is no inference tensor
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(again(tokens).logits, logits)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_with_one_expert_selected_equals_peft(
    family: str, dtype: torch.dtype, limit: float, tokens: torch.Tensor, tmp_path: Path
) -> None:
    base = random_base(family, dtype)
    model = fused_model(base)
    for a, expert in enumerate(random_experts(base)):
        write_adapter(expert, tmp_path / expert.axis, "base")
        peft = PeftModel.from_pretrained(
            copy.deepcopy(base), str(tmp_path / expert.axis), autocast_adapter_dtype=False
        )
        with model.fixed_routing(torch.eye(3)[a]):
            got = model(tokens).logits
        want = peft(tokens).logits
        assert relative_error(got, want) < limit
        assert relative_error(got, base(tokens).logits) > 1e-3


def test_routing_can_be_fixed_for_each_prompt_of_a_batch(tokens: torch.Tensor) -> None:
    model = fused_model(random_base("llama"))
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0.2, 0.3, 0.5]])
    with model.fixed_routing(weights):
        together = model(tokens).logits
    for row in range(3):
        with model.fixed_routing(weights[row]):
            torch.testing.assert_close(model(tokens[row : row + 1]).logits[0], together[row], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="wanted \\[3\\]"), model.fixed_routing(torch.ones(2)):
        pass
    assert all(mixture.fixed is None for mixture in model.mixtures())


def test_save_and_load_through_the_auto_class(family: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    model = fused_model(random_base(family))
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, triune.TriuneForCausalLM)
    assert not any(info.values())
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=0)
    assert loaded.config.expert_names == ["helpful", "harmless", "honest"]
    assert not list(tmp_path.glob("*.bin"))
    assert loaded.config.get_text_config().model_type == FAMILIES[family]().model_type


def test_bf16(tokens: torch.Tensor, tmp_path: Path) -> None:
    model = fused_model(random_base("llama"))
    want = model(tokens).logits
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(tokens).logits.dtype == torch.bfloat16
    # Near-ties of the top 2 may flip; with the routing fixed only rounding is left.
    with half.fixed_routing(torch.tensor([0.2, 0.3, 0.5])), model.fixed_routing(torch.tensor([0.2, 0.3, 0.5])):
        got, want = half(tokens).logits.float(), model(tokens).logits
    assert ((got - want).norm() / want.norm()).item() < 0.03


def test_generate_batched_and_left_padded_equals_one_by_one() -> None:
    model = fused_model(random_base("llama", torch.float64))
    prompts = [torch.randint(3, 40, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 7, 5)]
    width = max(map(len, prompts))
    ids = torch.stack([nn.functional.pad(p, (width - len(p), 0)) for p in prompts])
    mask = torch.stack([nn.functional.pad(torch.ones_like(p), (width - len(p), 0)) for p in prompts])
    batched = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, width:]
    for row, prompt in enumerate(prompts):
        alone = model.generate(
            prompt[None], attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8, do_sample=False
        )[0, len(prompt) :]
        assert batched[row, : len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_our_decoding_batched_equals_one_by_one(temperature: float) -> None:
    model = fused_model(random_base("llama", torch.float64))
    rows = [Encoded(tuple(range(3, 3 + n)), n) for n in (3, 7, 5)]
    decoding = Decoding(8, temperature=temperature, seed=4)

    def answers(chosen: list[int]) -> list[list[int | None]]:
        rngs = [generator_for(decoding.seed, index) for index in chosen]
        steps = token_steps(model, [rows[index] for index in chosen], decoding, rngs)
        return [list(answer) for answer in zip(*steps, strict=True)]

    together = answers([0, 1, 2])
    assert together == [answers([index])[0] for index in range(3)]
    assert len({tuple(answer) for answer in together}) > 1


def test_cached_decoding_equals_the_full_forward_pass(tokens: torch.Tensor) -> None:
    model = fused_model(random_base("mistral-window", torch.float64))
    past, steps = None, []
    for t in range(tokens.shape[1]):
        out = model(tokens[:, t : t + 1], past_key_values=past, use_cache=True)
        past, steps = out.past_key_values, [*steps, out.logits]
    torch.testing.assert_close(torch.cat(steps, 1), model(tokens).logits, rtol=1e-9, atol=1e-9)


def test_router_logits_and_their_gradient_under_checkpointing(tokens: torch.Tensor) -> None:
    grads = []
    for checkpointing in (False, True):
        model = fused_model(random_base("llama", torch.float64)).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        out = model(tokens, labels=tokens, output_router_logits=True, use_cache=False)
        assert [x.shape for x in out.router_logits] == [(3, 9, 3)] * 2
        (out.loss + sum(x.square().sum() for x in out.router_logits)).backward()
        grads.append([m.router.weight.grad for m in model.mixtures()])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


def test_zero_routers_and_factors_are_the_base(tokens: torch.Tensor) -> None:
    base = random_base("qwen3")
    experts = random_experts(base, std=0.0)
    model = build(copy.deepcopy(base), experts, Fuse(router_init="zeros"))
    torch.testing.assert_close(model(tokens).logits, base(tokens).logits, rtol=1e-5, atol=1e-5)


def test_device_map_keeps_a_layer_whole(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = fused_model(random_base("llama"))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert "LlamaDecoderLayer" in loaded._no_split_modules
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)


def test_a_base_of_another_kind_is_refused() -> None:
    config = triune.TriuneConfig(text_config=GPT2Config(n_embd=8, n_layer=1, n_head=1), expert_names=["a", "b"])
    with pytest.raises(InputError, match=r"gpt2.*supported: llama"):
        TriuneForCausalLM(config)
