"""Reading a tensor of a graph without keeping TensorFlow from fusing what makes it.

A product, a bias and a sum become one operation where nobody else reads what lies between, and that
rounds otherwise than three. So a tensor that has one reader is not read itself: the operations up
to tensors that have several are made once more, marked so that they are not taken for the same.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

tf: Any = import_module("tensorflow")
attributes: Any = import_module("tensorflow.core.framework.attr_value_pb2")

ATTRIBUTE = "_recorded"
DEEPEST = 32  # operations made once more in a row


class Apart:
    """The tensors of one graph as they can be read."""

    def __init__(self, graph: Any) -> None:
        """Nothing is made once more yet."""
        self._graph = graph
        self._copies: dict[int, tuple[Any, list[Any]]] = {}  # by identity of the operation
        self._own: set[int] = set()

    def of(self, x: Any, depth: int = 0) -> Any:
        """A tensor with the elements of x: x itself, if it has other readers than one."""
        op = x.op
        readers = [r for r in x.consumers() if id(r) not in self._own]
        if len(readers) != 1 or depth > DEEPEST or not _repeatable(op):
            return x
        if id(op) not in self._copies:
            inputs = [self.of(i, depth + 1) for i in op.inputs]
            attrs = dict(op.node_def.attr)
            attrs[ATTRIBUTE] = attributes.AttrValue(b=True)
            with tf.control_dependencies(None), self._graph.as_default():
                copy = self._graph.create_op(
                    op.type, inputs, [o.dtype for o in op.outputs], attrs=attrs, name="recorded"
                )
            self._own.add(id(copy))
            self._copies[id(op)] = copy, list(copy.outputs)
        found = self._copies[id(op)][1][x.value_index]
        found.set_shape(x.shape)
        return found


def _repeatable(op: Any) -> bool:
    """Whether an operation makes the same of the same, wherever it stands."""
    stateful = op.op_def is None or op.op_def.is_stateful
    held = any(t.dtype in (tf.resource, tf.variant) for t in (*op.inputs, *op.outputs))
    calls = any(attr.HasField("func") for attr in op.node_def.attr.values())
    return not (stateful or held or calls or op.control_inputs) and bool(op.inputs)
