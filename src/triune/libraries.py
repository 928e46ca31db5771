"""What the libraries below are told at the start of a process: to send nothing, and to keep quiet."""

import logging
import os

# bitsandbytes, which PEFT imports, asks for a package at each start on CPUs with AVX512-BF16; Triune does without it.
LOUD = "bitsandbytes.backends.cpu.ops"


def settle_libraries() -> None:
    """No telemetry, no warning of tokenizers about our forks, no advice on packages that are not needed."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger(LOUD).setLevel(logging.ERROR)
    from huggingface_hub import constants

    # The library read its environment when it was imported, which may have been before.
    constants.HF_HUB_DISABLE_TELEMETRY = True
