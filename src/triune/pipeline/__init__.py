"""The verbs: one short function each, that reads folders, calls one room, and writes a folder with a record."""

from triune.pipeline.calibrating import calibrate
from triune.pipeline.checking import check
from triune.pipeline.diagnosing import diagnose_collapse
from triune.pipeline.evaluating import Exam, evaluate
from triune.pipeline.exporting import export
from triune.pipeline.fusing import fuse
from triune.pipeline.merging import merge
from triune.pipeline.reporting import compare_runs
from triune.pipeline.running import demo, examine
from triune.pipeline.seeds import run
from triune.pipeline.sequential import train_sequence
from triune.pipeline.sweeping import sweep
from triune.pipeline.verbs import Context, align, context_of, report, train

__all__ = [
    "Context",
    "Exam",
    "align",
    "calibrate",
    "check",
    "compare_runs",
    "context_of",
    "demo",
    "diagnose_collapse",
    "evaluate",
    "examine",
    "export",
    "fuse",
    "merge",
    "report",
    "run",
    "sweep",
    "train",
    "train_sequence",
]
