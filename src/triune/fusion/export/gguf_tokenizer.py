"""A tokenizer as llama.cpp's: the same text gives the same tokens there, or the tokenizer is refused.

llama.cpp has no general tokenizer but a few kinds (src/llama-vocab.cpp, as of llama-cpp-python 0.3.36). Two are used:
"llama" joins the neighbours whose union has the highest score, as SentencePiece does; "gpt2" is byte-level BPE with a
list of merges and one of its own ways to cut text into words. What differs in rare cases only is said in `notes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from triune.fusion.export.gguf_sentencepiece import BYTES, is_sentencepiece, refused, sentencepiece, steps_of
from triune.models.loading import load_tokenizer
from triune.parsing import parse_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
ENDS = ("eos", "eot", "eom")  # what generation stops at
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
# The patterns by which text is cut into words before merging, as tokenizer.json has them: llama.cpp's names.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
}
WHOLE_WORDS_FIRST = ("llama-bpe",)  # llama.cpp takes a word that is a token as it is, as ignore_merges says
# Whatever the settings say, llama.cpp takes tokens of these texts for control tokens and stops at them.
STOPS_BY_NAME = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
    *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
)


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer; `special` holds ids by llama.cpp's names (bos, eos, eot, …)."""

    model: str
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | list[dict[str, str]]
    scores: list[float] = field(default_factory=list)  # "llama" only
    merges: list[str] = field(default_factory=list)  # "gpt2" only, and its way to cut words:
    pre: str = ""
    add_space: bool = False
    notes: tuple[str, ...] = ()


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The tokenizer of a model folder for llama.cpp, padded with unused tokens up to the embedding's `vocab_size`.

    Raises InputError where llama.cpp has no such tokenizer, with what it lacks.
    """
    tokenizer: Any = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refused(f"{type(tokenizer).__name__} has no tokenizer.json form")
    core = parse_json(backend.to_str())
    model = core["model"]
    if model["type"] != "BPE":
        raise refused(f"llama.cpp has no {model['type']} tokenizer that gives the same tokens")
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if odd:
        raise refused(f"llama.cpp's tokenizers have no {', '.join(odd)}")
    ids = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    read = sentencepiece if is_sentencepiece(core) else _byte_level
    add_bos, add_eos = _added_around(tokenizer)
    tokens, types = _padded(ids, _types(ids, core), vocab_size)
    special, found = _special(tokenizer, folder), read(core, tokens)
    strange = [t for t in STOPS_BY_NAME if t in ids and ids[t] not in {special.get(n) for n in ENDS}]
    if strange:
        found["notes"] += (f"llama.cpp reads {', '.join(strange)} as control tokens and stops there, by the name.",)
    return Vocabulary(
        tokens=tokens,
        types=types,
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(tokenizer),
        **found,
    )


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Put a vocabulary into a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space)
    else:
        writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
    writer.add_array("triune.tokenizer_notes", list(vocabulary.notes))


def _types(ids: Mapping[str, int], core: Mapping[str, Any]) -> list[int]:
    added = {entry["content"]: entry for entry in core["added_tokens"]}
    moved = [e["content"] for e in added.values() if e["lstrip"] or e["rstrip"] or e["single_word"]]
    if moved:
        raise refused(f"the added token {moved[0]!r} takes in spaces beside it, or only stands alone")
    if any(step["type"] == "Prepend" for step in steps_of(core["normalizer"], "normalizers")):
        spaced = [e["content"] for e in added.values() if e["normalized"] and not e["special"]]
        if spaced:
            raise refused(f"the added token {spaced[0]!r} is looked for behind a space only (normalized is true)")
    unknown = core["model"].get("unk_token")
    fallback = set(BYTES) if core["model"].get("byte_fallback") else set()

    def kind(token: str) -> int:
        if token == unknown:
            return UNKNOWN
        if token in added:
            return CONTROL if added[token]["special"] else USER_DEFINED
        return BYTE if token in fallback else NORMAL

    return [kind(token) for token in ids]


def _padded(ids: Mapping[str, int], types: list[int], vocab_size: int) -> tuple[list[str], list[int]]:
    """One token a row of the embedding; rows (and gaps) without a token are named and marked as unused."""
    if ids and max(ids.values()) >= vocab_size:
        raise refused(f"it gives ids up to {max(ids.values())}, but the embedding has {vocab_size} rows")
    by_id = {number: (token, kind) for (token, number), kind in zip(ids.items(), types, strict=True)}
    rows = [by_id.get(number, (f"[unused{number}]", UNUSED)) for number in range(vocab_size)]
    tokens = [token for token, _ in rows]
    if len(set(tokens)) < vocab_size or "" in tokens:
        raise refused("two of its ids have one text, or one has none")
    return tokens, [kind for _, kind in rows]


def _added_around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether BOS goes before a text, and EOS behind it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before in ([], bos):
        for behind in ([], eos):
            if full == before + plain + behind and None not in before + behind:
                return bool(before), bool(behind)
    raise refused(f"it puts more around a text than BOS and EOS: 'a' becomes {full}")


def _special(tokenizer: Any, folder: Path) -> dict[str, int]:
    """Special ids by llama.cpp's names. What generation stops at is eos, eot and eom there: three at most."""
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    special = {name: number for name, number in found.items() if number is not None}
    path = folder / "generation_config.json"
    settings = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stops = settings.get("eos_token_id")
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    own = [special["eos"]] if "eos" in special else []
    ends = list(dict.fromkeys([s for s in own if s in stops or not stops] + stops))
    if not 1 <= len(ends) <= 3:
        raise refused(f"generation stops at the ids {ends}; llama.cpp wants one to three")
    return special | dict(zip(ENDS, ends, strict=False))


def _chat_template(tokenizer: Any) -> str | list[dict[str, str]]:
    found = tokenizer.chat_template or ""
    return found if isinstance(found, str) else [{"name": n, "template": text} for n, text in found.items()]


def _byte_level(core: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    model, pre = core["model"], _word_pattern(core)
    if bool(model.get("ignore_merges")) != (pre in WHOLE_WORDS_FIRST):
        raise refused(f"ignore_merges is {model.get('ignore_merges')}, and llama.cpp's {pre!r} has the opposite")
    normal = [step["type"] for step in steps_of(core["normalizer"], "normalizers")]
    if normal not in ([], ["NFC"]):
        raise refused(f"llama.cpp has no normalizer {', '.join(normal)} for byte-level tokens")
    notes = ("llama.cpp does not bring text into Unicode form NFC; give it text in that form.",) if normal else ()
    if not model["merges"]:
        raise refused("it has no merges, which llama.cpp wants")
    # A byte without a token is dropped by both, unless the unknown token stands in for it.
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(tokens)
    if missing and model.get("unk_token"):
        raise refused(f"{len(missing)} bytes have no token and become {model['unk_token']!r}; llama.cpp drops them")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"model": "gpt2", "pre": pre, "merges": merges, "notes": notes}


def _word_pattern(core: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which text is cut into words."""
    steps = steps_of(core["pre_tokenizer"], "pretokenizers")
    last = steps[-1] if steps else {}
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"] and last.get("use_regex"):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and last.get("use_regex") and steps[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not last.get("use_regex"):
            pattern = steps[0]["pattern"].get("Regex", "")
            if pattern in PATTERNS and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
                return PATTERNS[pattern]
    known = ", ".join(["gpt-2", "smollm", *PATTERNS.values()])
    raise refused(f"its way to cut text into words is none that this export knows as llama.cpp's ({known})")
