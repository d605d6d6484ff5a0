"""What the axes of a trace point count, so that a place reads as "timestep 3, gate f, unit 17"."""

from __future__ import annotations

from fnmatch import fnmatchcase

GATES = "ifgo"

# The first row that matches a tensor's name; names of no row get a plain index. "gate" is an axis
# of four blocks of units.
AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("inputs/[xy]", ("batch row", "timestep")),
    ("inputs/mask/*", ("batch row", "timestep", "unit")),
    ("state/*", ("batch row", "unit")),
    ("*ward/layer*/gates", ("batch row", "timestep", "gate")),
    ("*ward/logits", ("batch row", "timestep", "token")),
    ("*ward/*", ("batch row", "timestep", "unit")),
    # Parameters, and what an optimizer keeps for them.
    *(
        (glob + slot, axes)
        for slot in ("", "/*")
        for glob, axes in (
            ("*/embedding", ("token", "unit")),
            ("*/layer*/w_i", ("input", "gate")),
            ("*/layer*/w_h", ("hidden", "gate")),
            ("*/layer*/b_[ih]", ("gate",)),
            ("*/softmax_w", ("hidden", "token")),
            ("*/softmax_b", ("token",)),
        )
    ),
)


def describe_index(name: str, shape: tuple[int, ...], index: tuple[int, ...]) -> str:
    """`index` of tensor `name` in words; "" for a scalar, "[2, 3]" where the axes are not known."""
    if not index:
        return ""
    axes = next((axes for glob, axes in AXES if fnmatchcase(name, glob)), ())
    if len(axes) != len(index) or ("gate" in axes and shape[-1] % 4):
        return str(list(index))
    words = []
    for axis, size, i in zip(axes, shape, index, strict=True):
        if axis == "gate":
            gate, unit = divmod(i, size // 4)
            words.append(f"gate {GATES[gate]}, unit {unit}")
        else:
            words.append(f"{axis} {i}")
    return ", ".join(words)
