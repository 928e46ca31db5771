"""The scripts of benchmarks/ and docs/ are run from their own folders, so their modules are found by bare names."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "docs")]
