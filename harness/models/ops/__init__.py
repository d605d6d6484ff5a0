"""Ops: what a stage can be made of. One table; each op is a formula and all that is known of it."""

from harness.models.ops import (
    activations,
    arithmetic,
    attention,
    basic,
    changes,
    clipping,
    convolve,
    losses,
    normalize,
    penalties,
    running,
    shapes,
    targets,
    updates,
)
from harness.models.ops.op import OPS as OPS
from harness.models.ops.op import Op as Op
from harness.models.ops.op import find as find
from harness.models.ops.op import parameters as parameters

__all__ = [
    "OPS",
    "Op",
    "activations",
    "arithmetic",
    "attention",
    "basic",
    "changes",
    "clipping",
    "convolve",
    "find",
    "losses",
    "normalize",
    "parameters",
    "penalties",
    "running",
    "shapes",
    "targets",
    "updates",
]
