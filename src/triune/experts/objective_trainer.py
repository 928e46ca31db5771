"""transformers.Trainer with the loss given from outside, in one process or several; nothing kept is pickled."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from triune.errors import InputError, TriuneError
from triune.experts import checkpoint, processes, sharding, streamed
from triune.experts.checkpoint import Checkpoint
from triune.experts.job import Batch, Curve, Job, Objective, StatefulObjective
from triune.progress import Advance


class ObjectiveTrainer(Trainer):
    """Trainer with the loss and the learning rates given from outside, and checkpoints without pickles."""

    objective: Objective
    rates: tuple[tuple[str, float], ...]
    parts: list[dict[str, float]]  # of the step under way, by batch
    n_rows: int  # of the step under way, over all processes
    job: Job
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
        checkpoint.claim(job.checkpoint)
        self.place, self.fingerprint, self.say = job.checkpoint, job.fingerprint(self.model), say
        found = checkpoint.newest(self.place, self.fingerprint, say)
        own = 0 if found is None else found.state.global_step
        first = processes.agreed(own)
        if processes.total(torch.tensor(abs(own - first))):
            raise InputError(
                f"{job.title}: the processes see different checkpoints in {job.checkpoint} (the first sees step "
                f"{first}); put it on a disk that all machines share, or delete it"
            )
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
        self.n_rows = int(processes.total(torch.tensor(sum(map(processes.counted, batches)))))
        if self.job.stream is not None and not self.n_rows:
            raise InputError(f"{self.job.title}: no row of a step fits; raise max_length or shorten the template")
        if processes.world() > 1:
            processes.seed_step(self.job.seed, self.state.global_step)
        return batches, n_items

    def get_train_dataloader(self) -> Any:
        if self.job.stream is not None:
            return streamed.stream_loader(self.job, getattr(self, "kept", None))
        if processes.world() == 1:
            return super().get_train_dataloader()
        size, seed = self.job.settings.batch_size, self.job.seed
        batches = processes.SharedBatches(len(self.job.rows), size, seed, lambda: self.state.global_step // a_pass)
        a_pass = -(-len(batches) // self.args.gradient_accumulation_steps)  # in steps
        return processes.shared_loader(self.job.collate, batches)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if processes.sharded():
            sharding.use_plugin(self)

    def compute_loss(self, model: nn.Module, inputs: Batch, *_args: Any, **_kwargs: Any) -> Tensor:
        loss, parts = self.objective(model, inputs)
        share = processes.counted(inputs) / self.n_rows
        self.parts.append({name: value * share for name, value in parts.items()})
        # Trainer divides by the number of batches, and the engine by that of processes, which is right only where all
        # have as many rows as the others.
        return loss * (share * self.current_gradient_accumulation_steps * processes.world())

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """With the loss's parts, averaged over the rows of the step's batches: Trainer's state holds the curve."""
        parts, self.parts = self.parts, []
        names = list(parts[0]) if parts else []
        own = torch.tensor([sum(row[name] for row in parts) for name in names], dtype=torch.float64)
        mean = dict(zip(names, processes.total(own).tolist(), strict=True))
        super().log({**logs, "parts": mean}, start_time)  # type: ignore[dict-item]

    # What Trainer would pickle:

    def _save_checkpoint(self, *_args: Any, **_kwargs: Any) -> None:
        parameters = checkpoint.trainable(self.model)
        tensors: dict[str, Mapping[str, Tensor]] = {
            "parameters": sharding.gathered(parameters),
            **{k: sharding.gathered(v) for k, v in checkpoint.adamw_tensors(self.optimizer, parameters).items()},
            "objective": self.objective.state() if isinstance(self.objective, StatefulObjective) else {},
        }
        rates = [group["lr"] for group in self.optimizer.param_groups]
        numbers = {"scheduler": self.lr_scheduler.state_dict(), "rates": rates}
        if self.job.stream is not None:
            numbers["stream"] = self.job.stream.marks(streamed.rows_done(self.job, self.state.global_step))
        if processes.rank() == 0:
            checkpoint.write(self.place, self.fingerprint, self.state, tensors, numbers)
        processes.wait()

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
        if processes.world() == 1:  # several draw anew at each step
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


class Watcher(TrainerCallback):
    """Tells progress of every step, stops a run whose loss or gradient is no longer a number, says when to save."""

    def __init__(self, begin: Callable[[int], Advance], save_every: int | None) -> None:
        self.begin, self.save_every = begin, save_every

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        self.advance = self.begin(state.max_steps)
        if state.global_step:
            self.advance(state.global_step, f"loss {curve(state.log_history)[-1]['loss']:.3f}")

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


def curve(history: Sequence[dict[str, Any]]) -> Curve:
    """Trainer's log of the steps, with the loss's parts."""
    steps = [log for log in history if "loss" in log]
    return [{"step": int(log["step"]), "loss": float(log["loss"]), **log["parts"]} for log in steps]
