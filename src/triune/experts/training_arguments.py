"""Fit's settings in transformers' words."""

from typing import Any

import torch
from transformers import TrainingArguments

from triune.experts.processes import share
from triune.recipe import Fit


def recompute_activations(model: Any, wanted: bool) -> None:
    """Keep activations, or compute them again in the backward pass."""
    # transformers 5.23 renamed the methods and warns at the old names; 5.17 has only the old ones.
    end = "enable" if wanted else "disable"
    new = getattr(model, f"activation_checkpointing_{end}", None)
    (new or getattr(model, f"gradient_checkpointing_{end}"))()


def training_arguments(s: Fit, seed: int, scratch: str, *, streamed: bool = False) -> TrainingArguments:
    """Trainer's arguments for these settings; it writes nothing that is to stay, and reports to nobody."""
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=s.steps or -1,
        num_train_epochs=s.epochs,
        per_device_train_batch_size=share(s.batch_size),
        gradient_accumulation_steps=s.accumulation,
        learning_rate=s.learning_rate,
        # The plain "constant" would ignore the warm-up.
        lr_scheduler_type="constant_with_warmup" if s.schedule == "constant" else s.schedule,
        warmup_steps=s.warmup_steps,
        weight_decay=s.weight_decay,
        max_grad_norm=s.clip,
        bf16=s.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused where there is no GPU
        seed=seed,
        data_seed=seed,
        optim="adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # `fit` says itself when; Trainer's own checkpoints are pickles
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        ignore_data_skip=streamed,  # a stream goes on from its mark; Trainer would read all that is done again
    )
    # Several GPUs in one process would get torch's DataParallel, whose replicas the routers' hooks do not survive;
    # `accelerate launch` is the way to use them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
