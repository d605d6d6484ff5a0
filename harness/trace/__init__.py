"""The trace: a folder that holds every tensor of every step (specified in traces/README.md)."""

from harness.trace.reader import Step, Trace, open_trace
from harness.trace.schema import Header, StepEntry, TensorEntry, TraceError
from harness.trace.writer import TraceWriter

__all__ = [
    "Header",
    "Step",
    "StepEntry",
    "TensorEntry",
    "Trace",
    "TraceError",
    "TraceWriter",
    "open_trace",
]
