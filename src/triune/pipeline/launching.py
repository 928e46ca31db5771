"""A training step in processes of its own: `accelerate launch` starts this file's program, which calls the verb."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from triune.data.streaming import Rows, plain_rows, restored_rows
from triune.errors import InputError, TriuneError
from triune.experts import processes
from triune.launch_settings import Launch
from triune.pipeline.starters import starting
from triune.progress import SILENT
from triune.record import Step, finished, write_json
from triune.settings import Settings

PROGRAM = "triune.pipeline.launched"


def launched(context: Any, step: Step, rows: Rows, settings: Settings, **own: str) -> bool:
    """Do a step (train or align) in `context.launch.processes` processes; False where it is this one's to do.

    `context` is `triune.pipeline.verbs.Context`, whose verbs call this.

    The processes write the step's folder as they would without a recipe, so that its record, its checkpoints and its
    identity are the same. `own` are the verb's further arguments. Raises TriuneError where they fail; what went wrong
    is on their standard error.
    """
    wanted = context.launch
    if wanted.processes == 1 or processes.world() > 1 or context.dry or finished(step):
        return False
    with tempfile.TemporaryDirectory(prefix="triune-") as scratch:
        job = Path(scratch) / "job.json"
        content = {
            "verb": step.verb,
            "out": step.folder,
            "base": context.base.model_dump(mode="json"),
            "seed": context.seed,
            "told": context.progress is not SILENT,
            "settings": settings.model_dump(mode="json"),
            "rows": plain_rows(rows),
            "own": own,
        }
        write_json(job, content)
        with starting(Path(scratch)):
            done = subprocess.run(command(wanted, job), check=False)
    if done.returncode or not finished(step):
        raise TriuneError(
            f"{step.folder}: its {wanted.processes} processes ended with code {done.returncode}; what went wrong is "
            "said above. The same command goes on from the last checkpoint (fit.save_every), if there is one"
        )
    return True


def command(launch: Launch, job: Path) -> list[str]:
    """What starts the processes. Raises nothing: `launch` has been checked."""
    found = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(launch.processes)]
    if launch.config is not None:
        found += ["--config_file", launch.config]
    else:
        # Without a file every default that is not named is warned of. Port 0 is any that is free.
        found += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        found += ["--main_process_port", "0"]
    # On CPUs too: `accelerate launch --cpu` starts a single process, however many are asked for (accelerate 1.15).
    found += ["--use_fsdp", "--fsdp_version", "2"] if launch.sharded else ["--multi_gpu"]
    return [*found, "-m", PROGRAM, str(job)]


def read_job(path: Path) -> dict[str, Any]:
    """A job as `launched` wrote it. Raises InputError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["rows"] = restored_rows(found["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no job of a recipe ({error}); start the recipe, not its processes") from error
    return dict(found)
