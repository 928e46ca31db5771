"""What a folder says of texts and tokens, and how an expert's differs from the base's: read without any weight."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from triune.errors import InputError
from triune.fusion.checking_results import Comparison, Severity
from triune.models.preflight import TOKENIZER_FILES, read_tokenizer
from triune.parsing import parse_json
from triune.record import digest

# A few reserved tokens are often given new names; a tokenizer that differs in more ids than this share is another one.
RENAMED_SHARE = 0.01
PROBES = ("Once upon a time, 1 + 23 = 24.", "  two  spaces\n\ttab", "naïve 日本語 😀", "### Instruction:\nName it.\n")
KEPT = "the fused model keeps the base's tokenizer"
ROLES: dict[str, tuple[Severity, str]] = {
    "bos_token": ("warning", "texts of the fused model begin with another token than this expert was trained on"),
    "eos_token": ("warning", "the fused model does not stop where this expert learned to end an answer"),
    "unk_token": ("fact", "unknown pieces become another token"),
    "pad_token": ("fact", "padding is masked, so nothing follows from it"),
}


@dataclass(frozen=True)
class Tokens:
    """A folder's tokenizer. ids: text → id of every token; added: id → text of those added to the vocabulary.

    special: role → (text, id); parts: what else decides how a text is split, each as a digest; probes: the ids of
    PROBES.
    """

    ids: Mapping[str, int]
    added: Mapping[int, str]
    special: Mapping[str, tuple[str, int]]
    parts: Mapping[str, str]
    probes: tuple[tuple[int, ...], ...]


def read_tokens(folder: Path) -> Tokens | None:
    """The folder's tokenizer; None where it has none. Raises InputError where its files cannot be read."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    tokenizer = read_tokenizer(folder)
    special = {
        role: (str(getattr(tokenizer, role)), int(getattr(tokenizer, f"{role}_id")))
        for role in ROLES
        if getattr(tokenizer, role, None) is not None and getattr(tokenizer, f"{role}_id", None) is not None
    }
    added = {int(index): str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    probes = tuple(tuple(tokenizer(text, verbose=False)["input_ids"]) for text in PROBES)
    return Tokens(tokenizer.get_vocab(), added, special, _parts(tokenizer), probes)


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    found = parse_json(backend.to_str())
    found["model"].pop("vocab", None)
    return {name: digest(found[name]) for name in ("normalizer", "pre_tokenizer", "post_processor", "model")}


def read_template(folder: Path) -> str | None:
    """The folder's chat template (of several the whole table); None where it has none.

    Raises InputError where tokenizer_config.json is not JSON.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    found = read_object(folder / "tokenizer_config.json").get("chat_template")
    if found is None or isinstance(found, str):
        return found
    return json.dumps(found, sort_keys=True)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. Raises InputError where it is something else."""
    if not path.is_file():
        return {}
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); save the folder again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a JSON {type(found).__name__}, not an object; save the folder again")
    return found


def compare_tokens(base: Tokens | None, expert: Tokens | None) -> list[Comparison]:
    """Vocabulary, added tokens, splitting and special tokens; "not said" where one has no tokenizer."""
    aspects = {
        "vocabulary": compare_vocabulary,
        "added tokens": compare_added,
        "splitting": compare_splitting,
        "special tokens": compare_special,
    }
    if base is None or expert is None:
        return [Comparison(aspect, "not said") for aspect in aspects]
    return [compare(base, expert) for compare in aspects.values()]


def compare_vocabulary(base: Tokens, expert: Tokens) -> Comparison:
    """Which text each id stands for, added tokens left out."""
    there, here = _texts(base), _texts(expert)
    first, second = f"{len(there):,} tokens", f"{len(here):,} tokens"
    if there == here:
        return Comparison("vocabulary", "same", first, second)
    # A token that one of them holds as an added one is no other word.
    all_there, all_here = {**there, **base.added}, {**here, **expert.added}
    renamed = [i for i in sorted(there.keys() & all_here.keys()) if there[i] != all_here[i]]
    lacking = sorted(there.keys() - all_here.keys())
    beyond = sorted(here.keys() - all_there.keys())
    if not (renamed or lacking or beyond):
        return Comparison("vocabulary", "same", first, second)
    other = len(renamed) + len(lacking) + len(beyond) > RENAMED_SHARE * len(there)
    parts = [f"{len(renamed):,} ids stand for other texts ({_renamed(renamed, there, all_here)})"] if renamed else []
    parts += [f"{len(lacking):,} ids of the base are missing ({_named(lacking, there)})"] if lacking else []
    parts += [f"{len(beyond):,} ids are new ({_named(beyond, here)})"] if beyond else []
    means = "this expert was trained on another tokenizer" if other else f"{KEPT}, where these are other tokens"
    way_out = "give an expert of this base" if other else "check what its training texts needed them for"
    severity: Severity = "refused" if other else "warning"
    return Comparison("vocabulary", "different", first, second, f"{'; '.join(parts)}: {means}", severity, way_out)


def _texts(tokens: Tokens) -> dict[int, str]:
    return {index: text for text, index in tokens.ids.items() if index not in tokens.added}


def _named(ids: Sequence[int], texts: Mapping[int, str]) -> str:
    return ", ".join(f"{i} {texts[i]!r}" for i in ids[:3]) + (", …" if len(ids) > 3 else "")


def _renamed(ids: Sequence[int], there: Mapping[int, str], here: Mapping[int, str]) -> str:
    return ", ".join(f"{i} {there[i]!r} → {here[i]!r}" for i in ids[:3]) + (", …" if len(ids) > 3 else "")


def compare_added(base: Tokens, expert: Tokens) -> Comparison:
    """Tokens added to the vocabulary, by id and text."""
    first, second = f"{len(base.added)}", f"{len(expert.added)}"
    known = {index: text for text, index in base.ids.items()}
    extra = {i: text for i, text in expert.added.items() if known.get(i) != text}
    mine = {index: text for text, index in expert.ids.items()}
    lost = {i: text for i, text in base.added.items() if mine.get(i) != text}
    if not extra and not lost:
        return Comparison("added tokens", "same", first, second)
    parts = [f"it has {_named(sorted(extra), extra)}, which the base lacks"] if extra else []
    parts += [f"it lacks the base's {_named(sorted(lost), lost)}"] if lost else []
    means = f"{'; '.join(parts)}: {KEPT}, which splits the former into pieces that this expert never saw"
    way_out = "train the expert on the base's own tokens, or add them to the base before all experts are trained"
    if not extra:
        means, way_out = f"{'; '.join(parts)}: texts that hold them are read differently", ""
    return Comparison("added tokens", "different", first, second, means, "warning" if extra else "fact", way_out)


def compare_splitting(base: Tokens, expert: Tokens) -> Comparison:
    """Normalisation, pre-tokenisation, merges and what is put around a text; where the files differ, by their ids."""
    differing = [name for name in base.parts if base.parts[name] != expert.parts.get(name)]
    if not differing and base.parts.keys() == expert.parts.keys():
        return Comparison("splitting", "same")
    pairs = zip(PROBES, base.probes, expert.probes, strict=True)
    wrong = next(((text, there, here) for text, there, here in pairs if there != here), None)
    if wrong is None:
        return Comparison("splitting", "same")
    text, there, here = wrong
    what = f"{', '.join(differing) or 'its kind'} of the tokenizer differ: {text!r} gives"
    means = f"{what} {list(there[:8])}… in the base and {list(here[:8])}… here, and {KEPT}"
    return Comparison("splitting", "different", "", "", means, "warning", "train on the base's tokenizer")


def compare_special(base: Tokens, expert: Tokens) -> Comparison:
    """Beginning, end, unknown and padding token, by text and id."""
    differing = [role for role in ROLES if base.special.get(role) != expert.special.get(role)]
    first, second = (" ".join(_special(t, role) for role in ("bos_token", "eos_token")) for t in (base, expert))
    if not differing:
        return Comparison("special tokens", "same", first, second)
    # Training adds a padding token of its own where the base has none; that alone changes nothing.
    worst: Severity = "warning" if any(ROLES[role][0] == "warning" for role in differing) else "fact"
    means = "; ".join(
        f"{role} is {_special(base, role)} in the base and {_special(expert, role)} here: {ROLES[role][1]}"
        for role in differing
    )
    way_out = "set the base's special tokens as the experts were trained, before fusing" if worst == "warning" else ""
    return Comparison("special tokens", "different", first, second, means, worst, way_out)


def _special(tokens: Tokens, role: str) -> str:
    text, index = tokens.special.get(role, ("none", None))
    return text if index is None else f"{text!r} ({index})"


def compare_templates(base: str | None, expert: str | None, said: bool) -> Comparison:
    """The chat templates; `said` tells whether the expert's folder holds a tokenizer's settings at all."""
    first, second = (f"{len(t)} characters" if t is not None else "none" for t in (base, expert))
    if base == expert and (said or expert is not None):
        return Comparison("chat template", "same", first, second)
    if expert is None and not said:
        return Comparison("chat template", "not said", first, "")
    if expert is None:
        means = "its tokenizer has no chat template; the fused model keeps the base's"
        return Comparison("chat template", "different", first, second, means)
    own = "the base has none" if base is None else "the base's is another"
    return Comparison(
        "chat template",
        "different",
        first,
        second,
        f"the expert brings a chat template and {own}, which the fused model keeps: asked in that form, this expert "
        "answers less as it was trained",
        "warning",
        "copy the template that the experts were trained on into the base's folder, or ask in that form",
    )
