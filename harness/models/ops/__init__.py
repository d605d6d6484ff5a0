"""Ops: what a stage can be made of. One table; each op is a formula and all that is known of it."""

from harness.models.ops import basic, changes, losses, updates
from harness.models.ops.op import OPS as OPS
from harness.models.ops.op import Op as Op
from harness.models.ops.op import find as find

__all__ = ["OPS", "Op", "basic", "changes", "find", "losses", "updates"]
