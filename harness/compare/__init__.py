"""Comparing: metrics of two arrays, the tolerance, and the diff of two traces."""

from harness.callable_module import callable_as
from harness.compare.diff import diff
from harness.compare.metrics import Comparison, compare
from harness.compare.result import DiffResult, Structure
from harness.compare.tolerance import DEFAULT_TABLE, Tolerance

__all__ = ["DEFAULT_TABLE", "Comparison", "DiffResult", "Structure", "Tolerance", "compare", "diff"]

callable_as(__name__, compare)
