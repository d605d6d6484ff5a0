"""One step of a TensorFlow script while it is watched: which tensor was made of which, and how.

Operations are seen by a callback of TensorFlow's (op_callbacks), eager and while a function is
traced; it puts nothing into the computation. What is kept of a tf.function goes out of it by one
call at the end of its graph (`Taps`), so a point there has a key, not yet a name: which name it
gets, and what its operands are called, is known when the function runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.capture.keras_apart import Apart
from harness.capture.keras_calls import OpCall, Pending
from harness.capture.keras_deep import Operations
from harness.capture.keras_feed import CURRENT, fed
from harness.capture.keras_ops import RULES
from harness.capture.keras_tensors import (
    MARK,
    Given,
    Tap,
    Taps,
    as_array,
    is_eager,
    is_tensor,
    kept,
    number_of,
)
from harness.capture.step import Step
from harness.models.entries import Made, why_not

tf: Any = import_module("tensorflow")
keras: Any = import_module("keras")

Array = NDArray[Any]
UNKNOWN = Made("unknown", (), {})
HIDDEN = Made("hidden", (), {})  # made inside of a layer
OBJECTIVE, LOSS = "forward/objective", "forward/loss"
SMALL = 1 << 20  # elements of a constant that is kept
MOST_OPS, DEEPEST = 64, 10  # ops of an expression, and how deep they nest, before it gets a name
TRIES = 3  # to find a variable in the model that is no part of it, or not yet
_numbers = itertools.count()


class Watch:
    """Watches one step: points, how they were made, and what is put in place."""

    def __init__(
        self,
        step: Step,
        names: Mapping[int, str],
        inputs: Mapping[str, Any],
        more: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """`names` are those of parameters and buffers by the identity of their handles.

        `more` gives all variables by name once more, where some may be made in this step.
        """
        self.step = step
        self.names: dict[int, str | None] = dict(names)
        self._more = more
        self._strange: list[Any] = []  # handles of no variable of the model
        self._fresh: dict[str, Any] = {}  # variables that were made in this step
        self.busy = 0  # nothing is looked at
        self.off = 0  # operations are not
        self.inside = 0  # layers that have a rule: what their operations make is not known
        self.scope: list[str] = []
        self.known: dict[int, tuple[Any, Any]] = {}  # by identity: a tensor, its name or how made
        self.points: list[tuple[Any, str]] = []
        self.later: dict[str, Made] = {}
        self.given: dict[str, Given] = {}
        self.now = Taps(None)  # what is known of the eager part of the step
        self.graphs: dict[int, Taps] = {}
        self.arguments: list[list[Any]] = []  # of the functions that are being called
        self.before: list[set[str]] = []  # variables that had moved before these calls
        self.ran: Taps | None = None
        self.source: Callable[[int, str], Array | None] | None = None  # of inputs handed over
        self.attentions: list[Any] = []  # that are being called: layer, arguments, products
        self.rates: dict[int, float] = {}  # of optimizers, by their place
        self.applied: set[int] = set()  # optimizers whose rate was read as they were called
        self.chosen: Any = None  # the condition by which a layer chose last: dropout's mask
        self.roots = 0
        self.objective: float | None = None
        self._actual: dict[str, Any] = {}  # key: name, or how made
        self.operations = Operations(self) if step.deep else None
        self._inputs = {name: value for name, value in inputs.items() if hasattr(value, "shape")}
        for name, value in self._inputs.items():
            if is_tensor(value):
                self.know(value, f"inputs/{name}")

    # What is known of tensors.

    def know(self, tensor: Any, what: Any) -> None:
        """From now on a tensor goes by this name, or was made so."""
        self.known[id(tensor)] = (tensor, what)

    def of(self, value: Any) -> Any:
        """A tensor, variable or number as an operand."""
        if isinstance(value, bool | int | float | np.number):
            return value.item() if isinstance(value, np.number) else value
        if id(value) in self.known:
            return self.known[id(value)][1]
        if isinstance(value, keras.Variable):
            value = value._value
        if isinstance(value, tf.Variable):
            return self.variable(value.handle)
        if is_tensor(value) or isinstance(value, np.ndarray):
            number = number_of(value)
            return Pending(value) if number is None else number
        return UNKNOWN

    def variable(self, handle: Any) -> Any:
        """The operand for the value of a variable; it was read in this step before any update."""
        name = self.name_of(handle)
        if name is None or name in self.moved:
            return UNKNOWN
        return f"{name}@step-1|inputs/{name}"

    def name_of(self, handle: Any, made: bool = False) -> str | None:
        """The name of the variable of this handle, inside a function too; it may just be made."""
        while hasattr(handle, "graph") and not is_eager(handle):
            outer = getattr(handle.graph, "captures", ())
            found = next((out for out, inner in outer if inner is handle), None)
            if found is None:
                return None
            handle = found
        if self.names.get(id(handle)) is None and self._more is not None and not made:
            self._look_again(handle)
        name = self.names.get(id(handle))
        if name in self._fresh and not made and self.in_sight():
            self._begun(name)
        return name

    def _begun(self, name: str) -> None:
        """What the variables that were made in this step are before any update."""
        place = self.now if tf.executing_eagerly() else self._taps(())
        if place is None or name in place.begun:
            return
        for other, variable in self._fresh.items():
            if other not in place.begun and other not in self.moved:
                place.begun.add(other)
                with self.unseen():
                    self.keep(f"inputs/{other}", (variable.read_value(),), kind="fixed")

    def _look_again(self, handle: Any) -> None:
        """A variable that was made in this step: what it is before any update is kept."""
        assert self._more is not None
        if sum(handle is one for one in self._strange) > TRIES:
            return
        self._strange.append(handle)
        for name, variable in self._more().items():
            if self.names.get(id(variable.handle)) is None:
                self.names[id(variable.handle)] = name
                self._fresh[name] = variable

    @property
    def moved(self) -> set[str]:
        """The variables that have been given another value in this step, until now."""
        if tf.executing_eagerly():
            return self.now.moved
        graph = tf.compat.v1.get_default_graph()
        while graph is not None and id(graph) not in self.graphs:
            graph = getattr(graph, "outer_graph", None)
        return self.graphs[id(graph)].moved if graph is not None else self.now.moved

    def in_sight(self) -> bool:
        """Whether what is computed now can be kept: not inside of a loop or branch of a graph."""
        if tf.executing_eagerly():
            return True
        return id(tf.compat.v1.get_default_graph()) in self.graphs

    def saw(
        self,
        op_type: Any,
        inputs: Any,
        attrs: Any,
        outputs: Any,
        op_name: Any = None,
        graph: Any = None,
    ) -> None:
        """An operation has been made or run: keep how its results were made."""
        if self.off or self.busy or self.inside:
            if op_type in ("SelectV2", b"SelectV2"):
                self.chosen = inputs[0]
            for x in outputs if self.inside and not (self.off or self.busy) else ():
                if x.dtype.is_floating:
                    self.know(x, HIDDEN)
            if self._more is not None and not self.busy and op_type == "ReadVariableOp":
                self.name_of(inputs[0])
            return
        name = op_type.decode() if isinstance(op_type, bytes) else str(op_type)
        call = OpCall(name, inputs, attrs, outputs, self.of)
        if name.startswith("__") or name.endswith("PartitionedCall"):
            for x in outputs:
                self.know(x, UNKNOWN)
            return
        try:
            self._note(call)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError):
            for x in outputs:
                self._unknown(call, x)

    def _note(self, call: OpCall) -> None:
        if call.name == "ReadVariableOp":
            self.know(call.outputs[0], self.variable(call.inputs[0]))
            return
        if call.name.startswith("Assign") and call.name.endswith("VariableOp"):
            self._assigned(call)
            return
        if call.name == "ResourceGather":
            table = self.variable(call.inputs[0])
            self.know(call.outputs[0], Made("embed", (table, self.of(call.inputs[1])), {}))
            return
        rule = RULES.get(call.name)
        found = rule(call) if rule else None
        if isinstance(found, Made) and found.op == "global_norm" and self.in_sight():
            found = self.keep("update/global_norm", (call.outputs[0],), found, "fixed")
        several = found if isinstance(found, list) else [found]
        for x, made in itertools.zip_longest(call.outputs, several[: len(call.outputs)]):
            if made is None:
                self._unknown(call, x, found is None)
            else:
                made = self._bounded(made, x) if isinstance(made, Made) else made
                if self.operations:
                    self.operations.saw(made, x)
                if not isinstance(made, Pending):
                    self.know(x, made)

    def _unknown(self, call: OpCall, x: Any, whole: bool = True) -> None:
        """What no rule makes: a constant where nothing on the way to it has a gradient.

        `whole`: no other result of the call is known either.
        """
        if not (is_tensor(x) and x.dtype.is_floating):
            return
        floats = [i for i in call.inputs if is_tensor(i) and i.dtype.is_floating]
        holders = [i for i in call.inputs if i.dtype in (tf.resource, tf.variant)]
        made = holders and not call.name.startswith(("Iterator", "Stateful", "Random"))
        if self.operations and whole and self.operations.unknown(call.name, floats, x):
            return
        if made or any(id(i) in self.known for i in floats):
            self.know(x, Made(f"tf_{call.name}" if call.name.isidentifier() else "unknown", (), {}))

    def _assigned(self, call: OpCall) -> None:
        """A variable gets another value by the script itself."""
        name = self.name_of(call.inputs[0], made=True)
        if name is None:
            return
        value, old = self.of(call.inputs[1]), self.variable(call.inputs[0])
        made: Any = value if isinstance(value, Made) else Made("add", (value,), {})
        if call.name != "AssignVariableOp":
            more = value if call.name == "AssignAddVariableOp" else Made("negate", (value,), {})
            made = Made("add", (old, more), {})
        if name in self.moved:
            made = UNKNOWN
        self.moved.add(name)
        self.keep(name, (), made, kind="later")

    def _bounded(self, made: Made, x: Any) -> Any:
        """The same, or the name of a point of its own where it has become long."""
        count, depth = _size(made)
        if (count <= MOST_OPS and depth <= DEEPEST) or not is_tensor(x):
            return made
        if not x.dtype.is_floating:
            return Pending(x)
        if not is_eager(x) and id(x.graph) not in self.graphs:
            return UNKNOWN
        where = self.scope[-1] if self.scope else "model"
        key = self.keep(f"forward/{where}/{made.op}", (x,), made)
        if self.operations:
            self.points.append((x, key))
        return key

    # Points.

    def point(self, wanted: str, value: Any) -> Any:
        """A tensor that is traced under a name of its own; what the step goes on with."""
        known = self.known.get(id(value), (None, None))[1]
        if self.busy or isinstance(known, str) or not is_tensor(value) or not kept(value):
            return value  # handed on by a layer that contains the one which made it
        if not is_eager(value) and id(value.graph) not in self.graphs:
            return value  # inside a loop or a branch
        key = self.keep(wanted, (value,), known)
        self.know(value, key)
        if self.step.fed:
            value = fed(self, value, key)
            self.know(value, key)
        if value.dtype.is_floating:
            self.points.append((value, key))
        return value

    def keep(
        self,
        wanted: str,
        tensors: Sequence[Any],
        made: Any = None,
        kind: str = "",
        how: Callable[[list[Array]], Array | None] | None = None,
        like: str = "",
    ) -> str:
        """Keep something under a name, now or when the function has run: its name, or its key."""
        taps = self._taps(tensors)
        if self.operations and isinstance(made, Made) and wanted.startswith("forward/"):
            made = self.operations.spelled(made)
        made = self.resolved(made, taps) if isinstance(made, Made) else made
        if taps is None:
            return self.arrive(
                Tap(wanted, (), made, kind, how, like), [as_array(x) for x in tensors]
            )
        count = taps.counts[wanted] = taps.counts.get(wanted, 0) + 1
        numbered = wanted if count == 1 or kind == "fixed" else f"{wanted}:{count}"
        key = f"{numbered}{MARK}{next(_numbers)}"
        taps.queue.append(Tap(key, tuple(tensors), made, kind, how, like))
        return key

    def _taps(self, tensors: Sequence[Any]) -> Taps | None:
        """The function that is being traced, if any."""
        if tf.executing_eagerly():
            return None
        graph = tensors[0].graph if tensors else tf.compat.v1.get_default_graph()
        return self.graphs.get(id(graph)) or Taps(graph)  # in a loop: kept of nothing

    def resolved(self, made: Any, taps: Taps | None) -> Any:
        """An expression whose constants have been kept."""
        if isinstance(made, Made):
            return Made(made.op, tuple(self.resolved(x, taps) for x in made.operands), made.args)
        if not isinstance(made, Pending):
            return made
        tensor = made.tensor
        if id(tensor) in self.known:
            return self.known[id(tensor)][1]
        if not is_tensor(tensor) or is_eager(tensor):
            found = self.constant(as_array(tensor))
        elif taps is None or tensor.graph is not taps.graph or taps.graph is None:
            found = UNKNOWN
        else:
            found = self.keep("inputs/constant", (tensor,), kind="constant")
        self.know(tensor, found)
        return found

    def constant(self, array: Array) -> Any:
        """What the script made of nothing that was seen: an input of the step, or a number."""
        for name, given in self._inputs.items():
            other = as_array(given)
            if other.shape == array.shape and np.array_equal(other.astype(array.dtype), array):
                return f"inputs/{name}"
        if array.ndim == 0:
            number = array.item()
            return number if isinstance(number, int | float) and math.isfinite(number) else UNKNOWN
        if array.size > SMALL or array.dtype.kind not in "fiubV":
            return UNKNOWN
        name = self._free("inputs/constant")
        self.step.see(name, array)
        return name

    def fitted(self) -> None:
        """What model.fit minimises is the loss."""
        if OBJECTIVE in self.step.points and LOSS not in self.step.points:
            self.step.rename(OBJECTIVE, LOSS)
            self.renamed(OBJECTIVE, LOSS)

    def renamed(self, old: str, new: str) -> None:
        """A point goes by another name: what it was made of keeps it."""
        for key, (tensor, what) in self.known.items():
            if what == old:
                self.known[key] = (tensor, new)

    def _free(self, wanted: str) -> str:
        """A name that this step has not yet."""
        plain, _, number = wanted.rpartition(":")
        plain, count = (plain, int(number)) if plain and number.isdigit() else (wanted, 1)
        while wanted in self.step.points:
            count += 1
            wanted = f"{plain}:{count}"
        return wanted

    # What goes out of functions.

    def arrive(self, tap: Tap, arrays: list[Array]) -> str:
        """Keep what a tap brings."""
        wanted = tap.key.partition(MARK)[0]
        made = self.named(tap.made)
        if isinstance(made, Made) and not _writable(made):
            made = None
        if tap.kind == "root":
            self.roots += 1
            return wanted
        if tap.kind == "later":
            self.now.moved.add(wanted)
            self.later[wanted] = made
            return wanted
        array = tap.how(arrays) if tap.how else np.array(arrays[0])
        if array is None:
            return wanted
        if tap.kind == "constant":
            self._actual[tap.key] = self.constant(array)
            return wanted
        if wanted.startswith(("inputs/params/", "inputs/buffers/")) and self.step.number != 1:
            return wanted
        if tap.kind == "given":
            self.now.moved.add(f"params/{wanted.partition('/')[2]}")
            rows = len(arrays) == 3 and len(np.unique(arrays[1])) < len(arrays[1])
            made = made if isinstance(made, str) or not rows else None  # clipped row by row
            self.given[wanted] = Given(array, made, rows)
            return wanted
        if tap.like:
            wanted = str(self.named(tap.like)).replace("forward/", "backward/", 1)
        name = wanted if tap.kind == "fixed" or tap.like else self._free(wanted)
        self._actual[tap.key] = name
        if name.startswith(OBJECTIVE) and array.ndim == 0:
            self.objective = float(array)
        self.step.see(name, array, made if isinstance(made, Made) else None)
        return name

    def named(self, made: Any) -> Any:
        """An expression with the names that its keys have got."""
        if isinstance(made, Made):
            return Made(made.op, tuple(self.named(x) for x in made.operands), made.args)
        if isinstance(made, str) and MARK in made:
            found = self._actual.get(made, made.partition(MARK)[0])
            if isinstance(found, str) or not hasattr(found, "shape"):
                return found
            return self.resolved(self.of(found), None)
        return made

    def ended(self, taps: Taps) -> None:
        """A function has been traced: let go out of it what is to be kept."""
        queue = list(taps.queue)
        apart = Apart(taps.graph)

        def out(*arrays: Any) -> Any:
            watch = CURRENT[-1] if CURRENT else None
            if watch is not None and not watch.busy:
                watch.left(taps, queue, list(arrays))
            return np.int32(0)

        self.busy += 1
        try:
            with taps.graph.as_default():
                tensors = [apart.of(x) for tap in queue for x in tap.tensors]
                tf.numpy_function(out, tensors, tf.int32)
        finally:
            self.busy -= 1

    def left(self, taps: Taps, queue: Sequence[Tap], arrays: list[Array]) -> None:
        """A function has run."""
        given = self.arguments[0] if self.arguments else []
        for key, place in taps.arguments.items():
            if place < len(given):
                self._actual[key] = given[place]
        for tap in queue:
            mine, arrays = arrays[: len(tap.tensors)], arrays[len(tap.tensors) :]
            self.arrive(tap, mine)
        self.ran = taps

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """While this lasts, operations are not looked at."""
        self.off += 1
        try:
            yield
        finally:
            self.off -= 1


def _writable(made: Made) -> bool:
    """Whether a trace can have this expression."""
    plain = made.written()
    return why_not(plain["op"], plain.get("from", []), plain.get("args", {})) is None


def _size(made: Any) -> tuple[int, int]:
    """How many ops an expression has, and how deep they nest."""
    if not isinstance(made, Made):
        return 0, 0
    inner = [_size(x) for x in made.operands]
    return 1 + sum(n for n, _ in inner), 1 + max((d for _, d in inner), default=0)
