"""The loss of stage 2: L = L_LM + Σ weight · term, each term a function of `triune.fusion.losses`.

H3Fusion (arXiv 2411.17792): gating, drift, representation. TrinityX (arXiv 2509.08486): entropy, KL to the running
average, KL to a prior. Balance is the Switch Transformer's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from triune.errors import InputError
from triune.experts.fitting import Batch, example_mean
from triune.experts.lowrank import LowRank
from triune.experts.processes import whole_mean, world
from triune.experts.sharding import bare, whole
from triune.fusion import losses, router
from triune.fusion.building import layer_factors
from triune.fusion.modeling import TriuneForCausalLM
from triune.models.likelihood import answer_nll, prompt_ends
from triune.models.packing import run
from triune.recipe import Align

Terms = dict[str, tuple[float, Tensor]]  # a term's weight and its value in this batch
RUNNING = "running"
SIDES = ("b", "a")


@dataclass
class StageTwo:
    """The loss of a batch, and what it remembers from batch to batch.

    `running` is the running average of the routing, [layers, experts]; `start` holds, of every expert whose drift
    counts, the factors that the model had at the first call. Both belong to a checkpoint: `state`, `load_state`.
    """

    model: TriuneForCausalLM
    settings: Align
    prior: Tensor
    running: Tensor | None = None
    start: dict[int, list[list[LowRank]]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """(the batch's loss, the value of each term before its weight)."""
        out = run(
            module,
            batch,
            **prompt_ends(self.model, batch),
            output_router_logits=True,
            output_hidden_states=self.settings.representation > 0,
        )
        labels, mask = batch["labels"], batch["attention_mask"].bool()
        terms: Terms = {"lm": (1.0, example_mean(answer_nll(out.logits, labels), labels))}
        config: Any = self.model.config
        terms |= self._routing_terms(router.layer_probabilities(out.router_logits, config), mask, batch)
        terms |= self._drift_terms(cast(TriuneForCausalLM, bare(module)))
        if self.settings.representation:
            fused = losses.mean_hidden(out.hidden_states[-1], mask)
            apart = losses.representation_loss(fused, batch["target"].to(fused)).mean()
            terms["representation"] = (self.settings.representation, apart)
        total = torch.stack([weight * value for weight, value in terms.values() if weight]).sum()
        return total, {name: float(value.detach()) for name, (_, value) in terms.items()}

    def _routing_terms(
        self,
        probs: Float[Tensor, "layers batch tokens experts"],
        mask: Bool[Tensor, "batch tokens"],
        batch: Batch,
    ) -> Terms:
        settings, routing = self.settings, losses.sample_routing(probs, mask)
        chosen = router.top_k_weights(probs, self.model.mixtures()[0].top_k) > 0
        load = losses.sample_routing(chosen.to(probs.dtype) / chosen.sum(-1, keepdim=True), mask)
        now = losses.batch_routing(probs, mask)
        if world() > 1:  # what follows is not linear in the batch's means: they must be those of all processes
            now = whole_mean(now, batch)
            load = whole_mean(load.mean(0), batch).expand_as(load)
        before = now if self.running is None else self.running.to(now)
        if torch.is_grad_enabled():
            self.running = losses.running_average(self.running, now, settings.running_decay)
        return {
            "gating": (settings.gating, losses.gating_loss(routing, batch["axis"]).mean()),
            "balance": (settings.balance, losses.balance_loss(routing, load).mean()),
            "entropy": (settings.entropy, losses.routing_entropy(probs, mask).mean()),
            RUNNING: (settings.running, losses.routing_divergence(now, before)),
            "prior": (settings.prior, losses.routing_divergence(now, self.prior.to(now))),
        }

    def _drift_terms(self, model: TriuneForCausalLM) -> Terms:
        terms: Terms = {}
        for index, name in enumerate(self.model.config.expert_names):
            gamma = self.settings.drift.get(name, 0.0)
            if gamma:
                now = layer_factors(model, index, whole)
                moved = losses.drift(now, self.start.setdefault(index, _detached(now)))
                terms[f"drift:{name}"] = (gamma, moved)
        return terms

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, by name."""
        found = {} if self.running is None else {RUNNING: self.running}
        for expert, layers in self.start.items():
            for layer, parts in enumerate(layers):
                for place, part in enumerate(parts):
                    found |= {f"start.{expert}.{layer}.{place}.{side}": getattr(part, side) for side in SIDES}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.running = state.get(RUNNING)
        experts = sorted({int(name.split(".")[1]) for name in state if name != RUNNING})
        for index in experts:
            now = layer_factors(self.model, index)
            self.start[index] = [
                [
                    LowRank(*(state[f"start.{index}.{layer}.{place}.{side}"].to(part.b) for side in SIDES))
                    for place, part in enumerate(parts)
                ]
                for layer, parts in enumerate(now)
            ]


def objective(model: TriuneForCausalLM, settings: Align) -> StageTwo:
    """The stage-2 loss of a fused model. Raises InputError where `settings` names an axis without an expert."""
    return StageTwo(model, settings, prior_shares(model.config.expert_names, settings))


def prior_shares(names: Sequence[str], settings: Align) -> Float[Tensor, "experts"]:
    """The prior over experts: `settings.prior_shares`, 1 where an axis is not named, scaled to sum to one.

    Raises InputError for an axis without an expert.
    """
    strangers = [axis for axis in settings.prior_shares if axis not in names]
    if strangers:
        raise InputError(f"align.prior_shares names {strangers}; the model's experts are {list(names)}")
    shares = torch.tensor([settings.prior_shares.get(name, 1.0) for name in names])
    return shares / shares.sum()


def _detached(factors: list[list[LowRank]]) -> list[list[LowRank]]:
    return [[LowRank(p.b.detach().clone(), p.a.detach().clone()) for p in layer] for layer in factors]
