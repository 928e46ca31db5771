"""What of training fails only after hours: batches that processes do not divide, rows too short for an example."""

from collections.abc import Mapping

from triune.errors import InputError
from triune.launch_settings import Launch
from triune.method_settings import Fit
from triune.recipe import Recipe


def check_batches(launch: Launch, fits: Mapping[str, Fit]) -> None:
    """Raise InputError for a batch, by its place in the recipe, that the processes do not divide."""
    for place, fit in fits.items():
        if fit.batch_size % launch.processes:
            raise InputError(
                f"{place}.batch_size is {fit.batch_size}, which launch.processes = {launch.processes} do not divide; "
                "it counts the rows of all processes together: choose a multiple"
            )


def check_packing(fits: Mapping[str, Fit], max_length: int) -> None:
    """Raise InputError for a packed row, by its place in the recipe, that may be too short for an example."""
    for place, fit in fits.items():
        if fit.packing is not None and fit.packing < max_length:
            raise InputError(
                f"{place}.packing is {fit.packing} tokens a row, and an example may have base.max_length = "
                f"{max_length}; raise it to that at least, or lower base.max_length"
            )


def check_packed_routing(fused: Mapping[str, Recipe]) -> None:
    """Raise InputError for a model that routes whole prompts, by what stands before its keys, and packs its rows."""
    for place, each in fused.items():
        if each.align.fit.packing is not None and each.fuse.prompt_routing is not None:
            raise InputError(
                f"{place}align.fit.packing is set, and fuse.prompt_routing finds one prompt a row; leave one of the "
                "two out"
            )
