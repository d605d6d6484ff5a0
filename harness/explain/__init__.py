"""Why two runs differ: the verdict (rounding or a bug) and its cause."""

from harness.explain.case import Case, Cause
from harness.explain.evidence import Evidence, Following, Vote
from harness.explain.verdict import Verdict, judge

__all__ = ["Case", "Cause", "Evidence", "Following", "Verdict", "Vote", "judge"]
