"""Coverage-guided fuzzing of what is read as bytes: the same targets as pytest's, cases chosen by what they reach.

    pip install atheris==3.0.0      # 34 MB, wheels for Linux; no dependency of Triune
    PYTHONPATH=src:. python tests/fuzz/atheris_driver.py safetensors -max_total_time=180

The first word is one of TARGETS; what follows is libFuzzer's (-runs, -seed, -max_len, a folder of cases). It begins
with the target's sound file and the cases found before, ends at the first case that breaks the rule of `fuzzing`, and
keeps that case as crash-* in the working folder; "Done N runs" says how many there were. Our own modules and PyYAML
are traced. Without atheris it says so and ends with 3.
"""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

MISSING = 3
TRACED = ["triune", "yaml"]


def targets() -> dict[str, Callable[[Path], tuple[Callable[[bytes], None], list[bytes]]]]:
    """How to make each target in a folder: what is called with bytes, and the cases to begin with."""
    from tests.fuzz import test_fuzz_models as models
    from tests.fuzz import test_fuzz_texts as texts
    from tests.fuzz.fuzzing import Target, keeps_the_rule
    from tests.fuzz.test_fuzz_weights import safetensors
    from tests.spoiling import make_world

    def of(target: Target) -> tuple[Callable[[bytes], None], list[bytes]]:
        return lambda made: keeps_the_rule(target, made), [target.sound, *target.found]

    def adapter(place: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
        (place / "world").mkdir()
        (place / "made").mkdir()
        make_world(place / "world")
        return of(models.adapter_configs(place, place / "made"))

    def lines(place: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
        target = texts.rows(place)
        begin = [content for _, suffix, content in target.found if suffix == ".jsonl"]
        readers = sorted(texts.READERS)

        def call(made: bytes) -> None:
            """Every reader in its turn, chosen by the bytes."""
            keeps_the_rule(target, (readers[sum(made) % len(readers)], ".jsonl", made))

        return call, [texts.json_bytes(texts.ROWS), *begin]

    return {
        "safetensors": lambda place: of(safetensors(place)),
        "adapter_config": adapter,
        "recipe": lambda place: of(texts.recipes(place / "my.yaml")),
        "jsonl": lines,
        "annotations": lambda place: of(texts.annotations(place / "annotations.json")),
    }


TARGETS = ("safetensors", "adapter_config", "recipe", "jsonl", "annotations")


def main(words: list[str]) -> int:
    if not words or words[0] not in TARGETS:
        print(f"the first word is one of {', '.join(TARGETS)}; got {words[:1]}", file=sys.stderr)
        return 2
    if find_spec("atheris") is None:
        print("atheris is not installed; pip install atheris==3.0.0", file=sys.stderr)
        return MISSING
    import atheris

    warnings.simplefilter("ignore")
    logging.disable()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with atheris.instrument_imports(include=TRACED):
        made = targets()
    # Memory, where there is any: each case is a file.
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=room) as folder:
        begin = Path(folder, "begin")
        for name in ("begin", "place"):
            Path(folder, name).mkdir()
        call, cases = made[words[0]](Path(folder, "place"))
        for number, case in enumerate(cases):
            if len(case) < 2000:  # long ones hold libFuzzer back
                (begin / str(number)).write_bytes(case)
        # Time and memory are the rule's own to watch.
        atheris.Setup([sys.argv[0], "-rss_limit_mb=0", "-timeout=600", *words[1:], str(begin)], call)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
