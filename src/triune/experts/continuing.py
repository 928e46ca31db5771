"""One LoRA adapter that is trained on, from where an earlier training left it."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from triune.errors import InputError
from triune.experts.adapters import WEIGHTS, read_config
from triune.experts.checkpoint import trainable
from triune.experts.fitting import Curve, Job, answer_objective, fit
from triune.experts.training import with_adapters
from triune.models.store import load_tensors
from triune.progress import Progress
from triune.recipe import Lora


def continue_adapter(base: PreTrainedModel, lora: Lora, start: Path, job: Job, out: Path, progress: Progress) -> Curve:
    """As `triune.experts.training.train_adapter`, but the factors begin as those of the adapter in `start`.

    AdamW and the learning rate's schedule begin anew. The base is left as it was. Raises InputError where the adapter
    is none of these settings (rank, targets, scale), and as `train_adapter`.
    """
    learning = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    model = with_adapters(base, lora, job.seed)
    try:
        _restore(model, lora, start)
        curve = fit(model, job, answer_objective, progress)
        model.save_pretrained(str(out), save_embedding_layers=False)
    finally:
        model.unload()
        for parameter, flag in learning:
            parameter.requires_grad_(flag)
    return curve


@torch.no_grad()
def _restore(model: torch.nn.Module, lora: Lora, start: Path) -> None:
    config = read_config(start)
    wanted = {"r": lora.rank, "lora_alpha": lora.alpha, "use_rslora": lora.rslora}
    got = {name: config.get(name) for name in wanted}
    kept = load_tensors(start / WEIGHTS)
    # PEFT's name of the one adapter is in the model's names and not in the file's.
    own = {name.replace(".default.", "."): parameter for name, parameter in trainable(model).items()}
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (kept, own)]
    if got != wanted or shapes[0] != shapes[1]:
        raise InputError(
            f"the adapter {start} has {got} on {len(shapes[0])} factors, and the settings ask for {wanted} on "
            f"{len(shapes[1])}; go on with the settings that it was trained with"
        )
    for name, parameter in own.items():
        parameter.copy_(kept[name])
