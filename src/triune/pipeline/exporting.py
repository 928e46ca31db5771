"""The verb export: a fused model in another format, whole or not at all, and resumed where it was cut short."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml

from triune.errors import InputError
from triune.fusion.export.card import Story, model_card
from triune.fusion.export.formats import Format, find_format
from triune.fusion.export.source import DTYPES, Options, Source, open_source
from triune.fusion.weighting import CARD, check_allowed
from triune.models.shards import DiskFull, disk_full, readable, size_in_bytes
from triune.parsing import parse_yaml
from triune.progress import SILENT, Progress
from triune.record import Step, claim, finished, identify, lost, write_text, writing
from triune.report.folder import SCORES, load_run
from triune.report.markdown import fenced, scores
from triune.report.run import Run

MARK = ".identity"  # in the folder of an export under way: which one


def options_from(dtype: str, max_shard_size: str, base: str, *, tokenizer: bool = True) -> Options:
    """Options in words: a name of DTYPES ("" as stored), a size such as 5GB. Raises InputError for others."""
    if dtype and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    return Options(DTYPES[dtype] if dtype else None, size_in_bytes(max_shard_size), base, tokenizer)


def export(
    place: Path, out: Path, name: str, options: Options, progress: Progress = SILENT, *, allow_negated: bool = False
) -> Path:
    """Export a run's fused model (or a fused folder) to a format of FORMATS, with a model card and a record.

    What an interruption or a full disk leaves is kept in a hidden folder beside `out`, and the same call goes on from
    there. Raises InputError, before anything is written, for a model that is not sound (see `open_source`) or that
    the format cannot express, for one with a subtracted expert without `allow_negated`, and for a folder that is not
    ours to write.
    """
    format = find_format(name)
    folder = place / "fused" if (place / "fused" / "config.json").is_file() else place
    source = open_source(folder)
    check_allowed(source.config, allow_negated=allow_negated)
    _check_apart(folder, out)
    format.check(source, options)
    step = Step(out, "export", _settings(name, options), _inputs(place, folder))
    if finished(step):
        progress.say(f"{out}: finished before, skipped")
        _forget(_kept(step), step.identity)
    else:
        card = model_card(source, options.dtype or source.dtype, _story(format, source, options, place, out))
        _write(step, format, source, options, (card, progress))
    files = [path for path in out.rglob("*") if path.is_file()]
    progress.say(f"{name}: {readable(sum(path.stat().st_size for path in files))} in {len(files)} files")
    progress.say(format.serve(source).format(out=out))
    return out


def _check_apart(folder: Path, out: Path) -> None:
    """The export must not push its own model aside."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--out {out} is in the model's own folder {folder}; choose a folder outside of it")


def _settings(name: str, options: Options) -> dict[str, object]:
    dtype = None if options.dtype is None else str(options.dtype).removeprefix("torch.")
    return {"format": name, **asdict(options), "dtype": dtype}


def _inputs(place: Path, folder: Path) -> dict[str, str]:
    """The model, and what the card says of the run."""
    told = [path for path in (place / SCORES, place / "recipe.yaml") if path.is_file()]
    return {"model": identify(folder), **{path.name: identify(path) for path in told}}


def _write(step: Step, format: Format, source: Source, options: Options, told: tuple[str, Progress]) -> None:
    card, progress = told
    kept = _kept(step)
    for damage in lost(step):
        progress.say(f"{step.folder}: {damage}; it is exported again")
    with writing(step) as draft, disk_full(kept):  # the step also holds `kept` against other processes
        with _taken_up(kept, step.identity):
            format.write(source, options, kept, progress)
        write_text(kept / CARD, card)
        _link(kept, draft)
    shutil.rmtree(kept, ignore_errors=True)


def _kept(step: Step) -> Path:
    """Where an export under way is, beside its final place."""
    final = Path(os.path.realpath(step.folder))
    return final.with_name(f".{final.name}.export")


def _forget(kept: Path, identity: str) -> None:
    """Remove what a process left that was killed after it had finished this export; not another export's beginning."""
    mark = kept / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == identity:
        shutil.rmtree(kept, ignore_errors=True)


@contextmanager
def _taken_up(kept: Path, identity: str) -> Iterator[None]:
    """The folder of an export under way, with what an earlier try left there, if that was the same export.

    It outlives an interruption and a full disk, which the next try goes on from; not an input that cannot be exported.
    """
    claim(kept, MARK)
    mark = kept / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") != identity:
        shutil.rmtree(kept)
    kept.mkdir(exist_ok=True)
    write_text(mark, identity)
    try:
        yield
    except DiskFull:
        raise
    except InputError:
        shutil.rmtree(kept)
        raise


def _link(kept: Path, draft: Path) -> None:
    """Everything finished under a second name: should the step fail in its last moment, nothing is lost."""
    for path in sorted(kept.rglob("*")):
        target = draft / path.relative_to(kept)
        if path.is_dir():
            target.mkdir()
        elif path.name != MARK and not path.name.endswith(".part"):
            try:
                os.link(path, target)
            except OSError:  # a file system without hard links
                path.replace(target)


def _story(format: Format, source: Source, options: Options, place: Path, out: Path) -> Story:
    run = load_run(place) if (place / SCORES).is_file() else None
    base, licence = _base(run, options)
    recipe = run.recipe if run is not None else None
    return Story(
        title=(recipe.title if recipe else "") or out.resolve().name,
        what=format.what(source),
        library=format.library,
        serve=format.serve(source).format(out=out.name),
        base=base,
        licence=licence,
        scores=scores(run, scarce=False) if run is not None else "",
        recipe=fenced(recipe.text) if recipe else _settings_text(source),
        limits=[*format.limits(source, options), *(recipe.caveats if recipe else ())],
    )


def _settings_text(source: Source) -> str:
    """What the record of `fuse` or `align` says, for a model without a run."""
    settings = source.record.get("settings")
    return fenced(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)) if settings else ""


def _base(run: Run | None, options: Options) -> tuple[str, str]:
    """The base's name, without the place on this machine, and its licence where its own model card says it."""
    text = run.recipe.text if run is not None and run.recipe is not None else ""
    recorded = (parse_yaml(text) or {}).get("base") or {}
    name = options.base or recorded.get("path") or ("the miniature world's base" if recorded.get("miniature") else "")
    folder = Path(recorded.get("path") or options.base)
    card = folder / CARD
    return folder.name if name and Path(name).is_dir() else name, _licence(card) if card.is_file() else ""


def _licence(card: Path) -> str:
    """What the front matter of a model card says; empty where it says nothing."""
    found = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        front = parse_yaml(found[1]) if found else None
    except yaml.YAMLError:
        return ""
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else ""
