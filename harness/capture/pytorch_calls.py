"""The calls of PyTorch's API in one step: which tensor was made of which, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from harness.capture.pytorch_call import Call, Operand, of_constants, size_of
from harness.capture.pytorch_ops import RULES, function_name, in_place, lowered
from harness.capture.pytorch_tensors import copied, has_numbers, is_stand_in, kept
from harness.capture.step import Step, called, line
from harness.models.entries import Made

NORM = "update/global_norm"
SMALL = 1 << 20  # elements of a constant that is kept
MOST_OPS, DEEPEST = 64, 10  # ops of an expression, and how deep they nest, before it gets a name
ALIASES = ("data", "detach")  # what shows a tensor's numbers, and may change them
COEFFICIENT = "clip_coefficient"  # min(1, limit / (norm + 1e-6)), of which the limit is kept
UNSCALE = "_amp_foreach_non_finite_check_and_unscale"  # what a gradient scaler calls
CLAMPS = ("_foreach_clamp_min", "_foreach_clamp_max")  # what clip_grad_value_ calls
UNKNOWN = Made("unknown", (), {})


class Swap(torch.autograd.Function):
    """Another tensor in a tensor's place; gradients pass as if it had been that."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, onward: Tensor) -> Tensor:
        """The other one, as a tensor of its own: what comes next may work on it in place."""
        return onward.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient, to what was there."""
        return gradients[0], None


class Calls(TorchFunctionMode):
    """Watches one step: points, how they were made, gradients and what is put in place."""

    def __init__(self, step: Step, names: Mapping[int, str], params: Mapping[str, Tensor]) -> None:
        """`names` are those of parameters and buffers by identity; `params` the former by name."""
        super().__init__()
        self.step, self.busy = step, 0
        self.scope: list[str] = []  # paths of the modules that are running
        self.updated_in: str | None = None  # the line that called the optimizer
        self.moved: set[str] = set()  # parameters that an optimizer has changed in this step
        self.made_later: dict[str, Made] = {}  # by name: what the end of the step makes
        self._names, self._params = names, params
        self._known: Any = WeakIdKeyDictionary()  # tensor: its name, or how it was made
        self._same_numbers: Any = WeakIdKeyDictionary()  # tensor: the one whose numbers it shows
        self._clamped_from_below: Any = WeakIdKeyDictionary()  # what it was, and the limit
        self._numbers: dict[float, Any] = {}  # taken out of tensors with item()
        self._inputs: dict[str, Any] = {}
        self._roots = 0
        self._nameless: set[str] = set()  # points of operations: named by no module nor script
        self._read: set[str] = set()  # points that something was made of
        self._hooked: set[str] = set()  # points whose gradients are seen
        self._called: dict[str, str] = {}  # points that have got another name
        self.norms: dict[str, Tensor] = {}  # of gradients whose elements are not kept
        self._dirty = False
        self._slept = False
        self._handed_mask: Tensor | None = None
        self._drawn: Tensor | None = None  # the state of the generator before the last dropout

    def asleep(self, asleep: bool) -> None:
        """Be off the stack of modes, or on it again: an optimizer makes thousands of calls."""
        if asleep and _top() is self:
            torch.overrides._pop_mode()  # type: ignore[no-untyped-call]
            self._slept = True
        elif not asleep and self._slept:
            torch.overrides._push_mode(self)  # type: ignore[no-untyped-call]
            self._slept = False

    def __exit__(self, *error: Any) -> None:
        """Leave the stack of modes, also where an optimizer failed."""
        self.asleep(False)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def handed(self, inputs: Mapping[str, Any]) -> None:
        """What the step was given, by name."""
        self._inputs = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                self._known[value] = f"inputs/{name}"

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Let the call be made, and keep how its result was."""
        kwargs = kwargs or {}
        if self.busy:
            return func(*args, **kwargs)
        name = function_name(func)
        self.busy += 1
        try:
            if name == "backward":
                return self._backward(func, args, kwargs)
            if self._dirty and name == "grad":
                self._collect(feed=True)
            before = _version(args)
            result: Any = None
            if name == "dropout":
                result = self._dropped(args, kwargs)
                self._drawn = torch.get_rng_state()
            if result is None:
                result = func(*args, **kwargs)
            if name == "item":
                self._numbers[result] = self._known.get(args[0])
            elif name == "setitem":
                self._note(name, func, args, kwargs, args[0])
                self._operation(args[0], name, args) if self.step.deep else None
            elif name != "grad" and not _same(result, args, before):
                self._note(name, func, args, kwargs, result)
                return self._deep(result, name, args) if self.step.deep else result
            return result
        finally:
            self.busy -= 1

    def _dropped(self, args: Any, kwargs: Any) -> Tensor | None:
        """Dropout by a mask that is handed over; None where the script draws its own."""
        self._handed_mask = None
        found = Call(args, kwargs, None, self._operand, lambda *_: "")
        x, rate = found.arg(0, "input"), found.arg(1, "p", 0.5)
        if not found.arg(2, "training", True) or not 0 < rate < 1 or found.arg(3, "inplace"):
            return None
        mask = self.step.mask(self._site("dropout"), tuple(x.shape), rate)
        if mask is None:
            return None
        self._handed_mask = torch.as_tensor(mask)
        return x * self._handed_mask.to(x) / (1 - rate)  # type: ignore[no-any-return]

    def _kept(self, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        """What a dropout has kept: where its operand is zero, drawn once more to be known."""
        x, zeros = args[0], args[0] == 0
        if self._handed_mask is not None:
            return self._handed_mask
        kept = result != 0
        if not bool(zeros.any()) or self._drawn is None or x.device.type != "cpu":
            return torch.logical_or(kept, zeros)
        own = torch.get_rng_state()
        try:
            torch.set_rng_state(self._drawn)
            rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            again = torch.nn.functional.dropout(torch.ones_like(x), rate, training=True)
            return torch.ne(again, 0)
        finally:
            torch.set_rng_state(own)

    def _site(self, function: str) -> str:
        """What the mask of a dropout is called that runs now."""
        return f"inputs/mask/{self.scope[-1] if self.scope else function}"

    def origin(self, value: Any) -> Made | str | None:
        """How a tensor, or a number taken from one, was made; its name where it has one."""
        if isinstance(value, Tensor):
            found = self._known.get(value)
            found = self._names.get(id(value)) if found is None else found
            if isinstance(found, str):
                self._read.add(found)
            return found
        return self._numbers.get(value) if isinstance(value, float) else None

    def call(self, value: Any, name: str) -> None:
        """From now on a tensor goes by this name."""
        if isinstance(value, Tensor):
            self._known[value] = name

    def point(self, name: str, value: Tensor) -> Tensor:
        """A tensor that is traced under a name of its own; what the step goes on with."""
        known = self._known.get(value)
        if self.busy or (isinstance(known, str) and known not in self._nameless):
            return value  # handed on by a module that contains the one which made it
        if torch._C._current_graph_task_id() != -1:
            return value  # made once more on the way back (activation checkpointing)
        self.busy += 1
        try:
            with torch._C.DisableTorchFunction():  # its own calls are none of the script's
                return self._point(name, value)
        finally:
            self.busy -= 1

    def _point(self, wanted: str, value: Tensor, in_place: bool = False) -> Tensor:
        name, known = self.step.name(wanted), self._known.get(value)
        if isinstance(known, str):
            self._rename(known, name)
        else:
            self.step.see(name, kept(self.step, name, value), known, self._line())
        fed = self.step.onward(name, tuple(value.shape))
        if fed is not None:
            other = torch.as_tensor(fed).to(value)
            if in_place:
                value.data.copy_(other)
            else:
                swap: Any = Swap.apply
                value = swap(value, other) if value.requires_grad else other
        self._known[value] = name
        if value.requires_grad and not (isinstance(known, str) and known in self._hooked):
            self._hooked.add(name)
            value.register_hook(partial(self._gradient, name))  # type: ignore[no-untyped-call]
        return value

    def _rename(self, old: str, new: str) -> None:
        """The point of an operation gets the name that a module or the script gives it."""
        self._nameless.discard(old)
        self._called[old] = new
        if old not in self._read:
            self.step.rename(old, new)
            return
        self._read.add(new)
        self.step.call(old, new)
        for held in (self._known, self._numbers, self.made_later):
            for key, made in list(held.items()):
                held[key] = called(made, old, new)

    def _deep(self, result: Any, name: str, args: Any) -> Any:
        """What a call makes, as points of its own; what the step goes on with."""
        if isinstance(result, Tensor):
            return self._operation(result, name, args)
        if not isinstance(result, tuple | list):
            return result
        found = [self._operation(x, name, args) for x in result]
        if all(new is old for new, old in zip(found, result, strict=True)):
            return result
        return type(result)(found)

    def _operation(self, value: Any, name: str, args: Any) -> Any:
        """What a call makes as a point, where it belongs to the forward pass."""
        made = self._known.get(value) if isinstance(value, Tensor) else None
        if not isinstance(made, Made) or not has_numbers(value) or id(value) in self._names:
            return value
        back = torch._C._current_graph_task_id() != -1 or (self._roots and not value.requires_grad)
        if back or of_constants(made) or made.op == "causal_mask":  # its fill is no number
            return value
        op = name if made is UNKNOWN else made.op.removeprefix("torch_")
        where = self.scope[-1] if self.scope else "model"
        value = self._point(f"forward/{where}/{op}", value, any(value is x for x in args))
        self._nameless.add(str(self._known[value]))
        return value

    def _line(self) -> str | None:
        """The line of the script that is running, in the steps of which a trace says how."""
        return line() if self.step.said else None

    def _gradient(self, point: str, gradient: Tensor) -> Tensor | None:
        name = self._called.get(point, point).replace("forward/", "backward/", 1)
        if name in ("backward/loss", "backward/objective"):
            return None
        self.busy += 1
        try:
            self.step.see(name, kept(self.step, name, gradient))
            fed = self.step.onward(name, tuple(gradient.shape))
            return None if fed is None else torch.as_tensor(fed).to(gradient)
        finally:
            self.busy -= 1

    # How tensors are made.

    def _note(self, name: str, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Keep how the tensors of a result were made."""
        if name == "_foreach_mul" and in_place(func):
            self._scaled(args[0], args[1])
        elif name in CLAMPS and in_place(func):
            self._clamped(name, *args[:2])
        elif name == UNSCALE:
            self._scaled(args[0], args[2].item())
        elif self._of_nothing(args, kwargs, RULES.get(name) is None):
            return  # made of numbers, or by no rule of what is: what reads it keeps it as it is
        elif isinstance(result, Tensor):
            made = self._bounded(self._rule(name, args, kwargs, result), result)
            self._known[result] = made
            if name in ALIASES:
                self._same_numbers[result] = args[0]
            elif result in self._same_numbers and in_place(func):
                self._known[self._same_numbers[result]] = made
            if result._base is not None and (in_place(func) or name == "setitem"):
                self._known[result._base] = UNKNOWN  # a part of it was written
        elif isinstance(result, tuple | list) and result and isinstance(result[0], Tensor):
            found = self._rule(name, args, kwargs, result)
            several = found if isinstance(found, list) else [found, *[UNKNOWN] * len(result)]
            for tensor, made in zip(result, several, strict=False):
                if isinstance(tensor, Tensor):
                    self._known[tensor] = made or UNKNOWN

    def _of_nothing(self, args: Any, kwargs: Any, all_of_them: bool) -> bool:
        """Whether no operand was seen: there is none, or (`all_of_them`) none that is known."""
        flat = [*args, *kwargs.values()]
        flat += [x for some in flat if isinstance(some, tuple | list) for x in some]
        tensors = [x for x in flat if isinstance(x, Tensor)]
        if not all_of_them:
            return not tensors
        return all(
            x not in self._known and id(x) not in self._names and x.grad_fn is None for x in tensors
        )

    def _rule(self, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        """How the result of a call is made; an op of the call's name where none is known."""
        special = _norm_of(self, name, args, result)
        if special is not None:
            return special
        rule = RULES.get(name)
        if rule is not None:
            of = partial(self._operand, low=lowered(name, args))
            try:
                mask = partial(self._kept, args, kwargs, result)
                made = rule(Call(args, kwargs, result, of, partial(self._keep, name), mask))
            except (IndexError, TypeError, ValueError, AttributeError):
                made = None  # called in a way that the rule does not know
            if made is not None:
                return made
        return Made(f"torch_{name}" if name.isidentifier() else "unknown", (), {})

    def _operand(self, value: Any, low: str | None = None) -> Operand:
        if not isinstance(value, Tensor):
            return value if isinstance(value, int | float) else UNKNOWN
        found = self._known.get(value)
        if found is None:
            name = self._names.get(id(value))
            if name in self.moved:
                return UNKNOWN  # it is what the end of the step has, which comes later
            found = f"{name}@step-1|inputs/{name}" if name else self._constant(value)
        if isinstance(found, str):
            self._read.add(found)
        if low and value.dtype == torch.float32:
            return Made("rounded", (found,), {"to": low})
        return found  # type: ignore[no-any-return]

    def _constant(self, value: Tensor) -> Operand:
        """A tensor that the script made of nothing that was seen: an input of the step."""
        if value.grad_fn is not None or value.numel() > SMALL or is_stand_in(value):
            return UNKNOWN
        if value.numel() == 1 and value.dim() == 0 and not value.requires_grad:
            return value.item()
        for name, given in self._inputs.items():
            if not isinstance(given, Tensor) and hasattr(given, "shape"):
                array = torch.as_tensor(given)
                if array.shape == value.shape and torch.equal(array.to(value), value):
                    self._known[value] = f"inputs/{name}"
                    return f"inputs/{name}"
        name = self.step.name("inputs/constant")
        self.step.see(name, copied(value))
        self._known[value] = name
        return name

    def _keep(self, function: str, kind: str, tensor: Tensor, made: Made | None) -> str:
        """What a rule keeps beside its result: a mask, or how a buffer is made."""
        if kind == "buffer":
            name = self._names.get(id(tensor), "")
            # Another batch of the step starts from what the first has left, which is no point.
            self.made_later[name] = UNKNOWN if name in self.made_later else made or UNKNOWN
            return ""
        name = self.step.name(self._site(function))
        self.step.see(name, copied(tensor))
        self._known[tensor] = name
        return name

    def _bounded(self, made: Made, value: Tensor) -> Made | str:
        """The same, or the name of a point of its own where it has become long."""
        count, depth = size_of(made)
        if count <= MOST_OPS and depth <= DEEPEST:
            return made
        where = self.scope[-1] if self.scope else "model"
        name = self.step.name(f"forward/{where}/{made.op}")
        self.step.see(name, copied(value), made, self._line())
        self._nameless.add(name)
        return name

    def _clamped(self, name: str, tensors: Any, by: Any) -> None:
        """Tensors that are clamped in place, first from below: clip_grad_value_."""
        for tensor in tensors:
            old = self._known.get(tensor, UNKNOWN)
            self._known[tensor] = UNKNOWN
            if name == CLAMPS[0]:
                self._clamped_from_below[tensor] = old, by
                continue
            old, low = self._clamped_from_below.pop(tensor, (UNKNOWN, None))
            if isinstance(by, int | float) and low == -by:
                self._known[tensor] = Made("clip_elements", (old, 0.0, float(by)), {})

    def _scaled(self, tensors: Any, by: Any) -> None:
        """Tensors that are multiplied in place, all by one number: clipping, a gradient scaler."""
        factor = self._known.get(by, UNKNOWN) if isinstance(by, Tensor) else by
        for tensor in tensors:
            old = self._known.get(tensor, UNKNOWN)
            if isinstance(factor, Made) and factor.op == COEFFICIENT:
                self._known[tensor] = Made("clip_torch", (old, NORM, *factor.operands), {})
            else:
                self._known[tensor] = Made("scale", (old, factor), {})

    # Gradients.

    def _backward(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of backward: what it is called on is what is minimised."""
        root = args[0]
        self._roots += 1
        known = self._known.get(root)
        if not isinstance(known, str) or known in self._nameless:
            name = self.step.name("forward/objective")
            if isinstance(known, str) and known not in self._read and self._roots == 1:
                self._rename(known, name)
            else:
                made = Made("add", (known,), {}) if isinstance(known, str) else known
                made = made if self._roots == 1 else None
                self.step.see(name, copied(root), made, self._line())
            self._known[root] = name
        return func(*args, **kwargs)

    def accumulated(self, parameter: Tensor) -> None:
        """A parameter has got a gradient; perhaps not its last."""
        self._dirty = True

    def collect(self, feed: bool = False) -> None:
        """Keep the gradients that there are."""
        if self._dirty:
            self.busy += 1
            try:
                with torch._C.DisableTorchFunction():
                    self._collect(feed)
            finally:
                self.busy -= 1

    def _collect(self, feed: bool) -> None:
        self._dirty = False
        for name, p in self._params.items():
            if p.grad is None:
                continue
            point = f"grads/{name}"
            seen = kept(self.step, point, p.grad)
            self.step.see(point, seen)
            if not isinstance(seen, Tensor):  # its elements are not kept
                self.norms[point] = torch.linalg.vector_norm(p.grad.detach())
            fed = self.step.onward(point, tuple(p.shape)) if feed else None
            if fed is not None:
                with torch.no_grad():
                    p.grad.copy_(torch.as_tensor(fed).to(p.grad))
            self._known[p.grad] = point

    def close(self) -> None:
        """The step is over: what was not collected is."""
        self.collect()


def _top() -> Any:
    """The mode that sees calls first, if there is one."""
    count = torch._C._len_torch_function_stack()
    return torch._C._get_function_stack_at(count - 1) if count else None


def _version(args: Any) -> int | None:
    """How often the first operand was changed in place; None where nothing counts that."""
    x = args[0] if args else None
    try:
        return x._version if isinstance(x, Tensor) else None
    except RuntimeError:  # of inference mode
        return None


def _same(result: Any, args: Any, before: int | None) -> bool:
    """Whether a call handed its first operand back as it was."""
    first = args[0] if args else None
    return isinstance(result, Tensor) and result is first and _version(args) == before


def _norm_of(calls: Calls, name: str, args: Any, result: Any) -> Any:
    """The calls of torch.nn.utils.clip_grad_norm_, which makes a norm of norms."""
    of = calls._known.get
    if name == "_foreach_norm" and isinstance(args[0], list | tuple):
        return [Made("norm_of_one", (of(g, UNKNOWN),), {}) for g in args[0]]
    if name == "stack" and isinstance(args[0], list | tuple):
        parts = [of(x) for x in args[0] if isinstance(x, Tensor)]
        if parts and all(isinstance(p, Made) and p.op == "norm_of_one" for p in parts):
            return Made("norms", tuple(p.operands[0] for p in parts), {})
    if name == "vector_norm" and isinstance(args[0], Tensor):
        inner = of(args[0])
        if isinstance(inner, Made) and inner.op == "norms":
            made = Made("global_norm", inner.operands, {})
            calls.step.see(NORM, copied(result), made)
            return NORM
    if name == "clamp" and isinstance(args[0], Tensor):
        match of(args[0]):
            case Made("divide", (float() | int() as limit, Made(_, (norm, _), _)), _) if (
                norm == NORM
            ):
                return Made(COEFFICIENT, (float(limit),), {})
    return None
