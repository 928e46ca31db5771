"""Training on an existing engine: transformers.Trainer with a loss given as a plain function."""

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from triune.errors import InputError, TriuneError
from triune.experts import checkpoint
from triune.experts.checkpoint import Checkpoint
from triune.experts.training_arguments import recompute_activations, training_arguments
from triune.models.encoding import Encoded, collate
from triune.models.likelihood import answer_counts, answer_nll, prompt_ends
from triune.progress import Advance, Progress
from triune.recipe import Fit
from triune.record import digest

Batch = dict[str, Tensor]
Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, float]]]
Curve = list[dict[str, int | float]]


@runtime_checkable
class StatefulObjective(Protocol):
    """An objective that remembers something from step to step: it is kept in checkpoints, and given back."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]: ...

    def state(self) -> dict[str, Tensor]:
        """What it remembers, by name."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave, now on the device of training; called before the first batch, or never."""
        ...


@dataclass(frozen=True)
class Job:
    """What `fit` needs beside the model: the rows, how to train, the loss, and how to say where it is.

    `objective(model, batch)` gives the mean loss of a batch and its named parts (logged, not differentiated);
    `learning_rates` gives parameters whose name contains a key a learning rate of their own; `targets`, one row an
    example, reaches the objective as batch["target"].

    `checkpoint` is the folder for checkpoints: one is written every `settings.save_every` steps and after the last,
    and the job goes on from the one it finds there. `identity` stands for what they depend on and `fit` cannot see:
    the model's frozen weights and the objective's own settings.
    """

    title: str
    rows: Sequence[Encoded]
    settings: Fit
    seed: int
    pad_id: int
    axes: tuple[str, ...] = ()
    learning_rates: tuple[tuple[str, float], ...] = ()
    targets: Tensor | None = None
    checkpoint: Path | None = None
    identity: str = ""

    def fingerprint(self, model: nn.Module) -> str:
        """Tells this job's checkpoints from those of others. (How often they are written changes no result.)"""
        parameters = {n: [str(p.dtype), *p.shape] for n, p in checkpoint.trainable(model).items()}
        settings = self.settings.model_dump(exclude={"save_every"})
        rows = [digest(repr(row)) for row in self.rows]
        # Not the targets' values: a GPU computes them anew with other last digits.
        targets = None if self.targets is None else list(self.targets.shape)
        own = [self.identity, settings, self.seed, self.pad_id, self.axes, self.learning_rates]
        return digest([checkpoint.FORMAT, own, rows, targets, parameters])

    def collate(self, items: Sequence[int]) -> Batch:
        """The batch of the rows with these numbers."""
        batch = collate([self.rows[i] for i in items], self.pad_id, axes=self.axes)
        if self.targets is not None:
            batch["target"] = self.targets[list(items)]
        return batch


def answer_objective(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Mean over examples of the negative log-likelihood per answer token, in nats."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")} | prompt_ends(model, batch)
    loss = example_mean(answer_nll(model(**inputs, use_cache=False).logits, batch["labels"]), batch["labels"])
    return loss, {}


def example_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean over the examples that have an answer token."""
    return values.sum() / (answer_counts(labels) > 0).sum().clamp_min(1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PEFT's initialisation, dropout and Trainer's shuffling draw from the global generators: seed them, then restore.

    (Trainer seeds Python's and NumPy's generators itself, so these two are only put back.)
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def fit(model: PreTrainedModel | nn.Module, job: Job, objective: Objective, progress: Progress) -> Curve:
    """Train the parameters that require a gradient; returns one row a step: step, loss, and the loss's parts.

    A step's gradient is that of the objective's mean over all of its rows, however they are cut into accumulated
    batches. Parameters aside the model is left as it was found, on the device where it was trained. A job that goes
    on from a checkpoint ends as it would have without the stop, to the last bit where the device is deterministic;
    a checkpoint that is damaged or another job's is said and not used.

    Raises InputError for no rows, nothing to train, or no place for checkpoints; TriuneError where the loss or its
    gradient stops being finite (the step and the usual cause are named), or a checkpoint cannot be written.
    """
    if not job.rows:
        raise InputError(f"{job.title}: no rows to train on; check the axis's data and max_length")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{job.title}: no parameter requires a gradient; check the targets")
    with tempfile.TemporaryDirectory() as scratch, seeded(job.seed), _as_found(model), ExitStack() as watched:
        if job.settings.checkpointing:
            recompute_activations(model, True)
            watched.callback(recompute_activations, model, False)
        trainer = _trainer(model, job, objective, scratch)
        every = job.settings.save_every if job.checkpoint else None
        trainer.add_callback(_Watcher(lambda total: watched.enter_context(progress.task(job.title, total)), every))
        # Mixed precision wraps the model's forward; it would stay wrapped.
        watched.callback(lambda: trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False))
        trainer.begin(job, progress.say)
    return _curve(trainer.state.log_history)


def _trainer(model: nn.Module, job: Job, objective: Objective, scratch: str) -> "_ObjectiveTrainer":
    trainer = _ObjectiveTrainer(
        model=model,
        args=training_arguments(job.settings, job.seed, scratch),
        train_dataset=range(len(job.rows)),
        data_collator=job.collate,
    )
    trainer.objective, trainer.rates, trainer.parts = objective, job.learning_rates, []
    trainer.model_accepts_loss_kwargs = False  # our loss is a mean: Trainer divides it by the accumulation
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Puts every module's training flag back."""
    training = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag


class _ObjectiveTrainer(Trainer):
    """Trainer with the loss and the learning rates given from outside, and checkpoints without pickles."""

    objective: Objective
    rates: tuple[tuple[str, float], ...]
    parts: list[dict[str, float]]  # of the step under way, by batch
    n_rows: int  # of the step under way
    place: Path  # of checkpoints
    fingerprint: str  # of the job, in its checkpoints
    kept: Checkpoint  # that training goes on from
    say: checkpoint.Say
    # Trainer's own, which it declares as perhaps None.
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def begin(self, job: Job, say: checkpoint.Say) -> None:
        """Train from the job's checkpoint or from the beginning."""
        if job.checkpoint is None or not (job.settings.save_every or job.checkpoint.is_dir()):
            self.train()
            return
        if self.args.world_size > 1:
            raise InputError(f"{job.title}: several processes keep no checkpoint; leave save_every out, or use one")
        checkpoint.claim(job.checkpoint)
        self.place, self.fingerprint, self.say = job.checkpoint, job.fingerprint(self.model), say
        found = checkpoint.newest(self.place, self.fingerprint, say)
        if found is None:
            self.train()
            return
        self.kept, done, total = found, found.state.global_step, found.state.max_steps
        say(f"  {job.title}: going on after step {done} of {total}")
        if done < total:
            self.train(resume_from_checkpoint=str(found.folder))
        else:  # Trainer would do one step more
            self._load_from_checkpoint()
            self.state = found.state

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, n_items = super().get_batch_samples(*args, **kwargs)
        self.n_rows = sum(len(batch["labels"]) for batch in batches)
        return batches, n_items

    def compute_loss(self, model: nn.Module, inputs: Batch, *_args: Any, **_kwargs: Any) -> Tensor:
        loss, parts = self.objective(model, inputs)
        share = len(inputs["labels"]) / self.n_rows
        self.parts.append({name: value * share for name, value in parts.items()})
        # Trainer divides by the number of batches, which is right only where all have as many rows as the others.
        return loss * (share * self.current_gradient_accumulation_steps)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """With the loss's parts, averaged over the rows of the step's batches: Trainer's state holds the curve."""
        parts, self.parts = self.parts, []
        mean = {name: float(sum(row[name] for row in parts)) for name in (parts[0] if parts else {})}
        super().log({**logs, "parts": mean}, start_time)  # type: ignore[dict-item]

    # What Trainer would pickle:

    def _save_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        parameters = checkpoint.trainable(self.model)
        tensors: dict[str, Mapping[str, Tensor]] = {
            "parameters": parameters,
            **checkpoint.adamw_tensors(self.optimizer, parameters),
            "objective": self.objective.state() if isinstance(self.objective, StatefulObjective) else {},
        }
        rates = [group["lr"] for group in self.optimizer.param_groups]
        numbers = {"scheduler": self.lr_scheduler.state_dict(), "rates": rates}
        checkpoint.write(self.place, self.fingerprint, self.state, tensors, numbers)

    def _load_from_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        checkpoint.restore_parameters(self.model, self.kept.tensors("parameters"))
        if isinstance(self.objective, StatefulObjective):
            own = self.kept.tensors("objective")
            self.objective.load_state({name: tensor.to(self.args.device) for name, tensor in own.items()})

    def _load_optimizer_and_scheduler(self, *args: Any, **_kwargs: Any) -> None:
        if args == (None,):  # older versions ask on a fresh start too
            return
        adamw = {kind: self.kept.tensors(kind) for kind in checkpoint.ADAMW}
        checkpoint.restore_adamw(self.optimizer, checkpoint.trainable(self.model), adamw)
        for group, rate in zip(self.optimizer.param_groups, self.kept.numbers["rates"], strict=True):
            group["lr"] = rate
        self.lr_scheduler.load_state_dict(self.kept.numbers["scheduler"])

    def _load_rng_state(self, *_args: Any, **_kwargs: Any) -> None:
        checkpoint.restore_generators(self.kept, self.say)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.rates:
            tuned: Any = model or self.model
            named = [(n, p) for n, p in tuned.named_parameters() if p.requires_grad]
            groups = []
            for key, rate in (*self.rates, ("", self.args.learning_rate)):
                own = [p for n, p in named if key in n]
                named = [(n, p) for n, p in named if key not in n]
                if own:
                    groups.append({"params": own, "lr": rate})
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return super().create_optimizer(model)


class _Watcher(TrainerCallback):
    """Tells progress of every step, stops a run whose loss or gradient is no longer a number, says when to save."""

    def __init__(self, begin: Callable[[int], Advance], save_every: int | None) -> None:
        self.begin, self.save_every = begin, save_every

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        self.advance = self.begin(state.max_steps)
        if state.global_step:
            self.advance(state.global_step, f"loss {_curve(state.log_history)[-1]['loss']:.3f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if self.save_every and (state.global_step % self.save_every == 0 or state.global_step >= state.max_steps):
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        for name, value in (("loss", logs["loss"]), ("gradient", logs.get("grad_norm", 0.0))):
            if not math.isfinite(value):
                raise TriuneError(
                    f"the {name} became {value} at step {state.global_step}; lower the learning rate or use float32"
                )
        self.advance(1, f"loss {logs['loss']:.3f}")


def _curve(history: Sequence[dict[str, Any]]) -> Curve:
    """Trainer's log of the steps, with the loss's parts."""
    steps = [log for log in history if "loss" in log]
    return [{"step": int(log["step"]), "loss": float(log["loss"]), **log["parts"]} for log in steps]
