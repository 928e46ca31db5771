"""A training job's checkpoint: a folder of safetensors and JSON, whole or absent; nothing in it is pickled.

Reading a pickle runs whatever code it holds; transformers' own checkpoints are pickles but for the weights.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.trainer_callback import TrainerState

from triune.errors import InputError, TriuneError
from triune.experts.sharding import like, put
from triune.models.store import sync
from triune.parsing import is_plain_name, parse_json
from triune.record import identify, write_json
from triune.record_checks import clear_parts

FORMAT = 1  # of the folder; another one is another job's
STEP = "step-"
MANIFEST = "checkpoint.json"  # the job, and every other file's hash
NUMBERS = "numbers.json"
TRAINER = "trainer_state.json"  # Trainer reads its state from the folder under this name
ADAMW = ("exp_avg", "exp_avg_sq", "step")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint of the asked job: its folder, Trainer's state, and the plain numbers."""

    folder: Path
    state: TrainerState
    numbers: Mapping[str, Any]

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """The tensors of `kind` by name, on the CPU."""
        # Cloned: safetensors maps the file, which the next checkpoint removes.
        return {name: tensor.clone() for name, tensor in load_file(_file(self.folder, kind)).items()}


def write(
    place: Path,
    job: str,
    state: TrainerState,
    tensors: Mapping[str, Mapping[str, Tensor]],
    numbers: Mapping[str, Any],
) -> Path:
    """Write `place`/step-N whole, then remove what `place` held before; returns the folder.

    `tensors` are by kind and name; `job` is the digest that a later `newest` must ask with. The state of the random
    generators is kept beside them.

    Raises TriuneError where the disk refuses; the older checkpoint is then still there.
    """
    draft, final = place / ".draft", place / f"{STEP}{state.global_step}"
    try:
        shutil.rmtree(draft, ignore_errors=True)  # left by a process that was killed
        draft.mkdir(parents=True)
        for kind, own in {**tensors, "generators": _torch_generators()}.items():
            # Copied: safetensors refuses tensors that share memory or are not contiguous.
            copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in own.items()}
            save_file(copies, _file(draft, kind))
        state.save_to_json(str(draft / TRAINER))
        write_json(draft / NUMBERS, {**numbers, "python": random.getstate(), "numpy": np.random.get_state()})
        write_json(draft / MANIFEST, {"job": job, "files": {p.name: identify(p) for p in sorted(draft.iterdir())}})
        for path in (*draft.iterdir(), draft):
            sync(path)
        if final.exists():  # another job's or a damaged one: this job would not have come here again
            shutil.rmtree(final)
        draft.replace(final)
        sync(place)
        for older in _steps(place):
            if older != final:
                shutil.rmtree(older)
    except (OSError, SafetensorError) as error:
        raise TriuneError(
            f"cannot write a checkpoint in {place} ({error}); make room there, then the same command goes on from "
            "the last one"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def newest(place: Path, job: str, say: Say) -> Checkpoint | None:
    """The latest whole checkpoint of this job under `place`, or None; every one that cannot be used is said.

    An unusable one is no error: the place is Triune's own, and the command that was killed must also work then.
    """
    for folder in _steps(place):
        try:
            return read(folder, job)
        except InputError as error:
            say(f"  {error}")
    return None


def read(folder: Path, job: str) -> Checkpoint:
    """The checkpoint in `folder`. Raises InputError where it is damaged or another job's."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        owner, files = manifest["job"], dict(manifest["files"])
        if owner == job:
            for name in files:
                if not is_plain_name(name):
                    raise InputError(f"{name!r} is no file of its own folder")
            changed = [name for name, whole in files.items() if identify(folder / name) != whole]
            if changed:
                raise InputError(f"{', '.join(changed)} changed since")
            state = TrainerState.load_from_json(str(folder / TRAINER))
            return Checkpoint(folder, state, parse_json((folder / NUMBERS).read_text(encoding="utf-8")))
    # TypeError: also the state of another version of transformers, with other fields.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"the checkpoint {folder} is damaged ({reason}) and is not used; delete it") from error
    raise InputError(
        f"the checkpoint {folder} is of another job (settings, seed, rows or model differ) and is not used; the first "
        "one of this job replaces it"
    )


def claim(place: Path) -> None:
    """Make the folder for checkpoints. Raises InputError where that is not possible."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"checkpoints cannot be kept in {place} ({error.strerror}); choose another folder") from error


def discard(place: Path) -> None:
    """Remove the checkpoints under `place`, and `place` where nothing else is in it."""
    for folder in (*_steps(place), place / ".draft"):
        shutil.rmtree(folder, ignore_errors=True)
    clear_parts(place)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def _steps(place: Path) -> list[Path]:
    """The checkpoints' folders, the latest first."""
    found = [path for path in place.glob(f"{STEP}*") if path.name.removeprefix(STEP).isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(STEP)), reverse=True)


def _file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.safetensors"


# What is kept: parameters, AdamW, the generators


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def restore_parameters(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Put the kept values into the model's own parameters, wherever they are."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            put(parameter, kept[name])


def adamw_tensors(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by kind and parameter; a parameter that has had no gradient yet has none."""
    state = {name: optimizer.state[p] for name, p in parameters.items() if p in optimizer.state}
    return {kind: {name: own[kind] for name, own in state.items() if own} for kind in ADAMW}


def restore_adamw(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], kept: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Put AdamW's kept state back, each tensor where the optimizer wants it."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {
        number: {
            kind: kept[kind][name] if kind == "step" else like(parameters[name], kept[kind][name]) for kind in ADAMW
        }
        for number, name in enumerate(order)
        if name in kept["step"]
    }
    optimizer.load_state_dict(state)


def _torch_generators() -> dict[str, Tensor]:
    return {"cpu": torch.get_rng_state(), **dict(_cuda_generators())}


def _cuda_generators() -> Iterator[tuple[str, Tensor]]:
    for number in range(torch.cuda.device_count()):
        yield f"cuda:{number}", torch.cuda.get_rng_state(number)


def restore_generators(checkpoint: Checkpoint, say: Say) -> None:
    """Put every generator's state back; says where the machine's GPUs are not those of the checkpoint."""
    kept = checkpoint.tensors("generators")
    torch.set_rng_state(kept.pop("cpu"))
    here = {f"cuda:{number}" for number in range(torch.cuda.device_count())}
    for name in here & kept.keys():
        torch.cuda.set_rng_state(kept[name], name)
    if here != kept.keys():
        say("  the checkpoint was written with other GPUs: dropout differs from that of a run without a stop")
    version, numbers, gauss = checkpoint.numbers["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = checkpoint.numbers["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
