"""Some rows of an expression's value alone: what is computed row by row is computed for those."""

from __future__ import annotations

from collections.abc import Callable

from harness.models.graph import Node, is_ref, node
from harness.models.ops import OPS

Shape = Callable[[Node], tuple[int, ...] | None]

# Ops whose every operand has the rows of the result, but for numbers.
EACH = frozenset(
    {
        *("add", "multiply", "complement", "negate", "block", "place_block", "square", "absolute"),
        *("identity", "sigmoid", "tanh", "sigmoid_slope", "tanh_slope", "relu", "gelu", "times"),
        *("plus", "rounded", "signs", "zeros", "dropout", "blocks"),
    }
)
# Those of whose operands the first has.
FIRST = frozenset({"bias", "linear", "scale"})


def some_rows(x: Node, rows: tuple[int, ...], shape: tuple[int, ...], of: Shape) -> Node:
    """The rows `rows` (of the first axis) of an expression whose value has this shape.

    `of` gives the shape of a reference, None where it is not known.
    """
    made: dict[Node, Node] = {}

    def taken(y: Node) -> Node:
        if y not in made:
            made[y] = pushed(y)
        return made[y]

    def pushed(y: Node) -> Node:
        op = y.arg("of") if y.op == "kin" else y.op
        if is_ref(y):
            size = of(y)
            has = size is None or (len(size) > 0 and size[0] == shape[0])
            return node("rows", y, which=rows) if has else y
        if y.op in ("const", "step"):
            return y
        rule = OPS[op].rows if op in OPS else ""
        if op in EACH or rule == "each":
            return node(y.op, *map(taken, y.inputs), **dict(y.args))
        if op in FIRST:
            return node(y.op, taken(y.inputs[0]), *y.inputs[1:], **dict(y.args))
        if op == "outer" and y.op != "kin":
            columns = node("columns", y.inputs[0], which=rows)
            return node("outer", columns, *y.inputs[1:])
        return node("rows", y, which=rows)

    return taken(x)
