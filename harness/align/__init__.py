"""Which tensor of one trace is which of another's: names, layouts, fused and split parts."""

from harness.align.search import align
from harness.callable_module import callable_as

__all__ = ["align"]

callable_as(__name__, align)
