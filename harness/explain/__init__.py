"""Why two runs differ: the verdict (rounding or a bug) and its cause."""

from harness.callable_module import callable_as
from harness.explain.case import Case, Cause
from harness.explain.evidence import Evidence, Following, Vote
from harness.explain.traces import Explanation, explain_traces
from harness.explain.verdict import Verdict, judge

__all__ = [
    "Case",
    "Cause",
    "Evidence",
    "Explanation",
    "Following",
    "Verdict",
    "Vote",
    "explain_traces",
    "judge",
]

callable_as(__name__, explain_traces)
