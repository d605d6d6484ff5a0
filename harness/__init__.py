"""Find where and why two programs that should compute the same training run part.

The names below are the public API; each is documented where it is defined. They are imported when
first used, so that `import harness` costs nothing and imports no framework, ever.

Example:
    import harness

    result = harness.diff("traces/pt.trace", "traces/tf.trace")
    print(result.status, result.first_divergence)

"""

from importlib import import_module
from os import environ
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.align import align as align
    from harness.capture import Recorder as Recorder
    from harness.capture import callback as callback
    from harness.capture import record as record
    from harness.compare import Comparison as Comparison
    from harness.compare import DiffResult as DiffResult
    from harness.compare import Tolerance as Tolerance
    from harness.compare import compare as compare
    from harness.compare import diff as diff
    from harness.compare.gradflow import gradflow as gradflow
    from harness.data.weights import convert as convert_weights
    from harness.data.weights import draw as draw_weights
    from harness.data.weights import load as load_weights
    from harness.data.weights import save as save_weights
    from harness.errors import HarnessError as HarnessError
    from harness.explain import Cause as Cause
    from harness.explain import Explanation as Explanation
    from harness.explain import Verdict as Verdict
    from harness.explain import explain_traces as explain
    from harness.explain import explain_traces as explain_traces
    from harness.models.entries import stage as stage
    from harness.observer import Observer as Observer
    from harness.repro import Repro as Repro
    from harness.repro import repro as repro
    from harness.runs.result import RunResult as RunResult
    from harness.runs.run import run_sides as run_sides
    from harness.spec import Capture as Capture
    from harness.spec import ModelSpec as ModelSpec
    from harness.spec import TrainSpec as TrainSpec
    from harness.trace import Alignment as Alignment
    from harness.trace import CheckResult as CheckResult
    from harness.trace import Trace as Trace
    from harness.trace import TraceWriter as TraceWriter
    from harness.trace import check_trace as check_trace
    from harness.trace import open_trace as open_trace

# Public name: where it is defined, and its name there.
_HOMES = {
    "Alignment": ("harness.trace", "Alignment"),
    "align": ("harness.align", "align"),
    "Cause": ("harness.explain", "Cause"),
    "Capture": ("harness.spec", "Capture"),
    "CheckResult": ("harness.trace", "CheckResult"),
    "Comparison": ("harness.compare", "Comparison"),
    "DiffResult": ("harness.compare", "DiffResult"),
    "Explanation": ("harness.explain", "Explanation"),
    "HarnessError": ("harness.errors", "HarnessError"),
    "ModelSpec": ("harness.spec", "ModelSpec"),
    "Observer": ("harness.observer", "Observer"),
    "Recorder": ("harness.capture", "Recorder"),
    "Repro": ("harness.repro", "Repro"),
    "RunResult": ("harness.runs.result", "RunResult"),
    "Tolerance": ("harness.compare", "Tolerance"),
    "Trace": ("harness.trace", "Trace"),
    "TraceWriter": ("harness.trace", "TraceWriter"),
    "TrainSpec": ("harness.spec", "TrainSpec"),
    "Verdict": ("harness.explain", "Verdict"),
    "callback": ("harness.capture", "callback"),
    "check_trace": ("harness.trace", "check_trace"),
    "compare": ("harness.compare", "compare"),
    "convert_weights": ("harness.data.weights", "convert"),
    "diff": ("harness.compare", "diff"),
    "draw_weights": ("harness.data.weights", "draw"),
    "explain": ("harness.explain", "explain_traces"),
    "explain_traces": ("harness.explain", "explain_traces"),
    "load_weights": ("harness.data.weights", "load"),
    "gradflow": ("harness.compare.gradflow", "gradflow"),
    "open_trace": ("harness.trace", "open_trace"),
    "record": ("harness.capture", "record"),
    "repro": ("harness.repro", "repro"),
    "run_sides": ("harness.runs.run", "run_sides"),
    "save_weights": ("harness.data.weights", "save"),
    "stage": ("harness.models.entries", "stage"),
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__


if "HARNESS_DTYPE" in environ:  # a process that `harness run` has started, or one of such a one's
    import_module("harness.capture.boot").set_dtype(environ["HARNESS_DTYPE"])
