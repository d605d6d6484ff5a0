"""The trace: a folder that holds every tensor of every step (specified in traces/README.md)."""

from harness.trace.intervention import Intervention
from harness.trace.reader import CheckResult, Step, Trace, check_trace, open_trace, select
from harness.trace.schema import Header, StepEntry, TensorEntry, TraceError
from harness.trace.writer import TraceWriter, remove_trace

__all__ = [
    "CheckResult",
    "Header",
    "Intervention",
    "Step",
    "StepEntry",
    "TensorEntry",
    "Trace",
    "TraceError",
    "TraceWriter",
    "check_trace",
    "open_trace",
    "remove_trace",
    "select",
]
