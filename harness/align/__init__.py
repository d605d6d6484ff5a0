"""Which tensor of one trace is which of another's: names, layouts, fused and split parts."""

from harness.align.choice import NONE, chosen
from harness.align.search import align
from harness.callable_module import callable_as

__all__ = ["NONE", "align", "chosen"]

callable_as(__name__, align)
