"""Training on an existing engine: transformers.Trainer with a loss given as a plain function."""

import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback

from triune.errors import InputError
from triune.experts import checkpoint, processes, sharding
from triune.experts.job import Batch, Curve, Job, Objective, StatefulObjective
from triune.experts.objective_trainer import ObjectiveTrainer, Watcher, curve
from triune.experts.streamed import check_stream
from triune.experts.training_arguments import recompute_activations, training_arguments
from triune.models.likelihood import answer_counts, answer_nll, prompt_ends
from triune.models.packing import check_packing, run
from triune.models.quantised import refuse_quantised
from triune.progress import SILENT, Progress
from triune.recipe import Fit

__all__ = [
    "Batch",
    "Curve",
    "Job",
    "Objective",
    "StatefulObjective",
    "answer_objective",
    "example_mean",
    "fit",
    "seeded",
]


def answer_objective(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Mean over examples of the negative log-likelihood per answer token, in nats."""
    logits = run(model, batch, **prompt_ends(sharding.bare(model), batch)).logits
    loss = example_mean(answer_nll(logits, batch["labels"]), batch["labels"])
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

    Under several processes (`accelerate launch`) each takes its part of every batch, and all end with the same
    parameters and curve: those of one process to rounding, but for dropout, which each draws by itself. A checkpoint
    does not depend on how many there are.

    Raises InputError for no rows, nothing to train, a batch that the processes do not divide, rows too short to pack
    the examples into, or no place for checkpoints; TriuneError where the loss or its gradient stops being finite (the
    step and the usual cause are named), or a checkpoint cannot be written.
    """
    processes.join()
    progress = progress if processes.rank() == 0 else SILENT
    check_stream(job)
    if not job.n_rows:
        raise InputError(f"{job.title}: no rows to train on; check the axis's data and max_length")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{job.title}: no parameter requires a gradient; check the targets")
    if processes.sharded():
        refuse_quantised(model, "FSDP2", "train it in one process or under DDP (launch.sharded: false)")
    if job.settings.packing is not None and job.stream is None:
        check_packing(job.rows, job.settings.packing)
    with tempfile.TemporaryDirectory() as scratch, seeded(job.seed), _as_found(model), ExitStack() as watched:
        if job.stream is not None:
            watched.callback(job.stream.close)
        if job.settings.checkpointing:
            recompute_activations(model, True)
            watched.callback(recompute_activations, model, False)
        trainer = _trainer(_for_trainer(model, job.settings), job, objective, scratch)
        every = job.settings.save_every if job.checkpoint else None
        trainer.add_callback(Watcher(lambda total: watched.enter_context(progress.task(job.title, total)), every))
        # Mixed precision wraps the model's forward; it would stay wrapped.
        watched.callback(lambda: trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False))
        trainer.begin(job, progress.say)
        if processes.sharded():
            sharding.forget_plugin()
            _take(model, sharding.gathered(checkpoint.trainable(trainer.model)))
    return curve(trainer.state.log_history)


def _for_trainer(model: nn.Module, settings: Fit) -> nn.Module:
    """The model, or a twin of it that Trainer may put in parts."""
    if not processes.sharded():
        return model
    twin = sharding.twin(model)
    if settings.precision == "bfloat16":
        sharding.autocast(twin)
    return twin


def _take(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """The parameters that the parts were trained to."""
    for name, parameter in checkpoint.trainable(model).items():
        parameter.data = values[name]  # where it was trained


def _trainer(model: nn.Module, job: Job, objective: Objective, scratch: str) -> "ObjectiveTrainer":
    trainer = ObjectiveTrainer(
        model=model,
        args=training_arguments(job.settings, job.seed, scratch, streamed=job.stream is not None),
        train_dataset=range(job.n_rows),
        data_collator=job.collate,
    )
    trainer.objective, trainer.rates, trainer.parts, trainer.job = objective, job.learning_rates, [], job
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
