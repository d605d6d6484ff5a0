"""What the tensors of a trace with names of its own are: "GRAD/*=grads" makes GRAD/w a gradient.

The parts that stand for something in a training step are those of the twins' traces (ROLES): what
is a gradient, a weight, a slot, decides how a tensor is judged and which causes are looked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from harness.trace.schema import TraceError, check_name

ROLES = (
    *("inputs", "inputs/params", "inputs/mask", "state/in", "state/out", "forward", "backward"),
    *("grads", "update/clipped", "optimizer", "params"),
)
# Single tensors that every training step has.
SINGLE = ("forward/loss", "update/global_norm", "update/learning_rate", "inputs/x", "inputs/y")
EXAMPLE = "GRAD/*=grads, WEIGHT/*=params, or loss=forward/loss"


class Role(NamedTuple):
    """Tensors whose names match `pattern` stand under `role`, with what the star stood for."""

    pattern: re.Pattern[str]
    role: str

    def of(self, name: str) -> str | None:
        """The name that a tensor has by its role; None where it has not this one."""
        found = self.pattern.fullmatch(name)
        if not found:
            return None
        return f"{self.role}/{found[1]}" if found.groups() else self.role


def parse(texts: Sequence[str]) -> tuple[Role, ...]:
    """Roles as they are given: GLOB=ROLE. Raises TraceError that shows how they are written."""
    roles = []
    for text in texts:
        glob, equals, role = text.rpartition("=")
        stars = glob.count("*")
        if not equals or not glob or stars > 1:
            raise TraceError(f"role {text!r}: give GLOB=ROLE with one star: {EXAMPLE}")
        known = ROLES if stars else SINGLE
        if role not in known:
            kind = "a part of names" if stars else "one tensor"
            there = ", ".join(known)
            raise TraceError(f"role {text!r}: {role!r} is not {kind}; there are: {there}")
        pattern = re.escape(glob).replace(r"\*", "(.+)")
        roles.append(Role(re.compile(pattern), role))
    return tuple(roles)


def renamed(name: str, roles: Sequence[Role]) -> str:
    """A tensor's name by the first role that it has; its own where it has none."""
    for role in roles:
        new = role.of(name)
        if new is not None and check_name(new) is None:
            return new
    return name


def has_role(name: str) -> bool:
    """Whether a name says what the tensor is in a training step."""
    return name in SINGLE or any(name.startswith(f"{role}/") for role in ROLES)
