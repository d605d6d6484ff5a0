"""The trace: a folder that holds every tensor of every step (specified in traces/README.md)."""

import ml_dtypes as ml_dtypes  # from here on NumPy knows the names of the narrow floats

from harness.trace.aligned import open_trace
from harness.trace.alignment import Alignment, Match
from harness.trace.alignment_file import read_alignment, write_alignment
from harness.trace.folder import remove_trace
from harness.trace.intervention import Intervention
from harness.trace.parts import Rows, Timesteps
from harness.trace.reader import CheckResult, Step, Trace, check_trace, select
from harness.trace.resume import resumed
from harness.trace.schema import Header, Place, Program, StepEntry, TensorEntry, TraceError
from harness.trace.writer import TraceWriter

__all__ = [
    "Alignment",
    "CheckResult",
    "Header",
    "Intervention",
    "Match",
    "Place",
    "Program",
    "Rows",
    "Step",
    "StepEntry",
    "TensorEntry",
    "Timesteps",
    "Trace",
    "TraceError",
    "TraceWriter",
    "check_trace",
    "open_trace",
    "read_alignment",
    "remove_trace",
    "resumed",
    "select",
    "write_alignment",
]
