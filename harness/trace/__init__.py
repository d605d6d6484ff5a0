"""The trace: a folder that holds every tensor of every step (specified in traces/README.md)."""

import ml_dtypes as ml_dtypes  # from here on NumPy knows the names of the narrow floats

from harness.trace.intervention import Intervention
from harness.trace.parts import Rows, Timesteps
from harness.trace.reader import CheckResult, Step, Trace, check_trace, open_trace, select
from harness.trace.resume import resumed
from harness.trace.schema import Header, Place, Program, StepEntry, TensorEntry, TraceError
from harness.trace.writer import TraceWriter, remove_trace

__all__ = [
    "CheckResult",
    "Header",
    "Intervention",
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
    "remove_trace",
    "resumed",
    "select",
]
