"""Recording PyTorch: what modules hand on, gradients, parameters, buffers, slots, and how made.

Modules are seen by hooks, what lies between them by a mode that sees every call of the API
(torch.overrides.TorchFunctionMode). Both change no number. A compiled function is run as if
nobody watched: its inputs, outputs and gradients are seen, and nothing inside of it.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from harness.capture.adapter import Adapter, Array, Tensors
from harness.capture.pytorch_calls import NORM, Calls
from harness.capture.pytorch_compiled import Hooks, compiled_regions
from harness.capture.pytorch_optim import SLOTS, hyperparameters, update_of
from harness.capture.pytorch_tensors import copied, kept
from harness.capture.pytorch_trainer import recorded_trainer
from harness.capture.step import Step, line
from harness.errors import HarnessError
from harness.models.entries import Made
from harness.trace.accept import accept
from harness.trace.schema import TensorEntry
from harness.trace.statistics import digest

MOST_COUNTED = 250  # gradients of a norm: an entry has no more operands
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")  # DDP, torch.compile, FSDP


def adapter(objects: Sequence[Any]) -> Adapter:
    """The adapter of a script in PyTorch."""
    return PyTorch(objects)


class PyTorch(Adapter):
    """Recording of PyTorch modules and optimizers."""

    def __init__(self, objects: Sequence[Any]) -> None:
        """`objects`: modules, optimizers, gradient scalers. Raises HarnessError for all else."""
        self.models = [x for x in objects if isinstance(x, nn.Module)]
        self.optimizers = [x for x in objects if isinstance(x, torch.optim.Optimizer)]
        self.scalers = [x for x in objects if hasattr(x, "unscale_") and hasattr(x, "get_scale")]
        known = {id(x) for x in (*self.models, *self.optimizers, *self.scalers)}
        for thing in objects:
            if id(thing) not in known:
                raise HarnessError(
                    f"record: a {type(thing).__name__} is neither a module nor an optimizer: give "
                    "the model, and the optimizer itself"
                )
        self._calls: Calls | None = None
        self._undo: list[Callable[[], None]] = []
        self._inputs: dict[str, Any] = {}
        self._wrappers: dict[int, nn.Module] = {}
        self._before: Any = WeakIdKeyDictionary()  # parameter: its name in an earlier step

    # What the model is.

    def params(self) -> dict[str, Tensor]:
        """The parameters by name; those that only an optimizer knows by their place in it.

        One that the model had in an earlier step, and has no more, keeps its name.
        """
        found = dict(self._named("named_parameters"))
        known = {id(p) for p in found.values()}
        for k, optimizer in enumerate(self.optimizers):
            rest = [p for g in optimizer.param_groups for p in g["params"] if id(p) not in known]
            head = f"optimizer{k}" if len(self.optimizers) > 1 else "optimizer"
            for i, p in enumerate(rest):
                before = self._before.get(p)
                found[before if before and before not in found else f"{head}/{i}"] = p
            known |= {id(p) for p in rest}
        self._before.update({p: name for name, p in found.items()})
        return found

    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name, but for counters."""
        return {n: b for n, b in self._named("named_buffers") if b.is_floating_point()}

    def _named(self, kind: str) -> Iterator[tuple[str, Any]]:
        for k, model in enumerate(self.models):
            head = f"model{k}." if len(self.models) > 1 else ""
            for name, thing in getattr(model, kind)():
                path = head + name if name else head.rstrip(".") or "model"
                parts = [part for part in path.split(".") if part not in WRAPPERS]
                yield "/".join(parts) or "model", thing

    # The recorder's calls.

    def begin(self, dtype: str | None) -> None:
        """Bring the model to `dtype`, in place: the optimizer keeps its parameters."""
        self._wrappers = _compiled(self.models)
        if dtype:
            for model in self.models:
                model.to(getattr(torch, dtype))

    def end(self) -> None:
        """Take every hook away."""
        while self._undo:
            self._undo.pop()()

    def versions(self) -> dict[str, str]:
        """PyTorch's."""
        return {"torch": str(torch.__version__)}

    def dtype(self) -> str:
        """That of most parameters."""
        kinds = [str(p.dtype).removeprefix("torch.") for p in self.params().values()]
        return max(set(kinds), key=kinds.count) if kinds else "float32"

    def settings(self) -> dict[str, Any]:
        """The numbers of the optimizers, by the field's names."""
        found: dict[str, Any] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                found = {**hyperparameters(optimizer, group), **found}
        return found

    def state(self) -> Tensors:
        """Parameters, buffers and slots, copied."""
        return {name: copied(tensor) for name, tensor in self._state()}

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters, buffers and slots, as they are."""
        params = self.params()
        yield from ((f"params/{n}", p) for n, p in params.items())
        yield from ((f"buffers/{n}", b) for n, b in self.buffers().items())
        for name, slot, value in self._slots(params):
            yield f"optimizer/{name}/{slot}", value

    def _slots(self, params: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        names = {id(p): name for name, p in params.items()}
        for optimizer in self.optimizers:
            for p, state in optimizer.state.items():
                for slot, value in state.items():
                    if isinstance(value, Tensor) and slot != "step" and id(p) in names:
                        yield names[id(p)], SLOTS.get(slot, slot), value

    def load(self, tensors: Mapping[str, Array], step: int) -> None:
        """Put weights, buffers and slots in place; an optimizer is made to have done `step`."""
        if not tensors:
            return
        with torch.no_grad():
            params = self.params()
            for prefix, own in (("params/", params), ("buffers/", self.buffers())):
                for name, tensor in own.items():
                    if prefix + name in tensors:
                        _put(tensor, tensors[prefix + name], prefix + name)
            for name, slot, value in self._slots(params):
                if f"optimizer/{name}/{slot}" in tensors:
                    _put(value, tensors[f"optimizer/{name}/{slot}"], f"optimizer/{name}/{slot}")

    def given(self, name: str, value: Any, instead: Array | None, dtype: str | None) -> Any:
        """An input, in the run's dtype where it is of floats."""
        if instead is not None:
            value = torch.as_tensor(instead).to(value) if isinstance(value, Tensor) else instead
        if dtype and isinstance(value, Tensor) and value.is_floating_point():
            value = value.to(getattr(torch, dtype))
        elif dtype and getattr(getattr(value, "dtype", None), "kind", "") == "f":
            value = value.astype(dtype)
        self._inputs[name] = value
        if self._calls is not None:  # a batch more of the step that runs
            self._calls.handed(self._inputs)
        return value

    def owned(self, value: Any) -> Any:
        """A copy of a tensor that the script may go on to change."""
        return copied(value) if isinstance(value, Tensor) else value

    def made(self, value: Any) -> Made | str | None:
        """How a tensor, or the number that was taken from it, was made."""
        return self._calls.origin(value) if self._calls else None

    def call(self, value: Any, name: str) -> None:
        """A logged tensor is known by this name to what is made of it."""
        if self._calls:
            self._calls.call(value, name)

    def callback(self, recorder: Any) -> Any:
        """One for the Trainer of a LightningModule."""
        if len(self.models) != 1:
            raise HarnessError(f"callback: {len(self.models)} models; give the LightningModule")
        return recorded_trainer(recorder, self.models[0], self.optimizers)

    def tap(self, step: Step | None, name: str, value: Any) -> Any:
        """A tensor inside of the model, which may be fed."""
        if step is None or self._calls is None or not isinstance(value, Tensor):
            return value
        return self._calls.point(name, value)

    @contextmanager
    def watch(self, step: Step) -> Iterator[None]:
        """Hooks on modules, gradients and optimizers, and the mode, for one step."""
        params = self.params()
        names = {id(p): f"params/{n}" for n, p in params.items()}
        names |= {id(b): f"buffers/{n}" for n, b in self.buffers().items()}
        calls = self._calls = Calls(step, names, params)
        calls.handed(self._inputs)
        modules = self._module_hooks(calls)
        undo = [modules.remove, self._watch_optimizers(calls, step, params)]
        modules.add()
        self._undo += undo
        try:
            with calls, compiled_regions(modules):
                yield
        finally:
            calls.close()
            for one in undo:
                self._undo.remove(one)
                one()

    def _module_hooks(self, calls: Calls) -> Hooks:
        """Those of every module of the models, which make points of what it hands on."""
        paths = {id(m): (name, m) for name, m in self._named("named_modules")}

        def before(module: nn.Module, args: Any) -> None:
            calls.scope.append(paths[id(module)][0])

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            path = paths[id(module)][0]
            if calls.scope and calls.scope[-1] == path:
                calls.scope.pop()
            changed, found = _each(output, f"forward/{path}", calls.point)
            return found if changed else None

        for inner, wrapper in self._wrappers.items():
            if inner in paths:
                paths[id(wrapper)] = paths[inner][0], wrapper
        return Hooks([module for _, module in paths.values()], before, after)

    def _watch_optimizers(
        self, calls: Calls, step: Step, params: Mapping[str, Tensor]
    ) -> Callable[[], None]:
        names = {id(p): n for n, p in params.items()}

        def prepare(optimizer: torch.optim.Optimizer) -> None:
            calls.collect(feed=True)
            calls.asleep(True)
            calls.updated_in = line()
            _see_clipped(calls, step, params)
            for k, group in enumerate(optimizer.param_groups):
                rate = "update/learning_rate" + (f"/{k}" if k else "")
                step.see(rate, float(group["lr"]))
                for p in group["params"]:
                    if id(p) in names and p.grad is not None:
                        calls.moved.add(f"params/{names[id(p)]}")
                        clipped = f"update/clipped/{names[id(p)]}"
                        source = clipped if clipped in step.points else f"grads/{names[id(p)]}"
                        moved = update_of(optimizer, group, names[id(p)], source, rate)
                        calls.made_later.update(moved)

        def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
            """The gradients are there now, or when the closure that makes them has run."""
            own = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if own is None:
                prepare(optimizer)
                return None

            def closure() -> Any:
                calls.asleep(False)
                result = own()
                prepare(optimizer)
                return result

            return args[:1], {**kwargs, "closure": closure}

        def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            calls.asleep(False)

        hooks = [o.register_step_pre_hook(before) for o in self.optimizers]
        hooks += [o.register_step_post_hook(after) for o in self.optimizers]
        for p in params.values():
            if p.requires_grad and p.is_leaf:
                hook: Any = p.register_post_accumulate_grad_hook
                hooks.append(hook(calls.accumulated))
        return partial(_remove, hooks)

    def finish(self, step: Step) -> None:
        """What the step left: slots, parameters and buffers, with how each was made."""
        later = self._calls.made_later if self._calls else {}
        if self._calls:
            for n, p in self.params().items():  # what the script did to it by itself
                own = self._calls.origin(p)
                if isinstance(own, Made):
                    later[f"params/{n}"] = (
                        Made("unknown", (), {}) if f"params/{n}" in later else own
                    )
        for name, tensor in self._state():
            updated = name in later and not name.startswith("buffers/")
            at = self._calls.updated_in if self._calls and updated else None
            step.see(name, kept(step, name, tensor), later.get(name), at)
        for scaler in self.scalers:
            step.see("update/scale", float(scaler.get_scale()))
        self._calls = None


def _compiled(models: Sequence[nn.Module]) -> dict[int, nn.Module]:
    """What torch.compile made of modules of these models, by the identity of the module.

    Nothing leads from a module to what was made of it; the script calls that, and it has hooks.
    """
    frames = sys.modules.get("torch._dynamo.eval_frame")
    kind = getattr(frames, "OptimizedModule", None)
    if kind is None:
        return {}
    known = {id(module) for model in models for module in model.modules()}
    made = [x for x in gc.get_objects() if type(x) is kind]
    return {id(x._orig_mod): x for x in made if id(x._orig_mod) in known and id(x) not in known}


def _remove(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()


def _see_norm(calls: Calls, step: Step) -> None:
    """The norm of all gradients before clipping, where the script made none itself."""
    names = [n for n in step.points if n.startswith("grads/")]
    if NORM in step.points or not names or len(names) > MOST_COUNTED:
        return
    each = [calls.norms.get(n, step.points[n].array) for n in names]
    each = [torch.linalg.vector_norm(x) for x in each]  # of a norm, the norm itself
    norm = torch.linalg.vector_norm(torch.stack([x.to(each[0].dtype) for x in each]))
    step.see(NORM, norm, Made("global_norm", tuple(names), {}))


def _see_clipped(calls: Calls, step: Step, params: Mapping[str, Tensor]) -> None:
    """The gradients that the optimizer gets, where they are no longer those that were made."""
    with torch.no_grad():
        _see_norm(calls, step)
        now = {n: p.grad for n, p in params.items() if p.grad is not None}
        # Clipping that found nothing to clip is clipping, too: a step has the points of all steps.
        changed = any(isinstance(calls.origin(g), Made) for g in now.values()) or any(
            f"grads/{n}" in step.points and not _same(step.points[f"grads/{n}"].array, g)
            for n, g in now.items()
        )
        for name, g in now.items() if changed or step.fed else ():
            point = f"update/clipped/{name}"
            made = calls.origin(g)
            if isinstance(made, Made) and made.op == "clip_elements":
                made = Made(made.op, (f"grads/{name}", NORM, made.operands[2]), {})
            if changed:
                step.see(point, kept(step, point, g), made if isinstance(made, Made) else None)
            fed = step.onward(point, tuple(g.shape))
            if fed is not None:
                g.copy_(torch.as_tensor(fed).to(g))


def _same(a: Any, b: Tensor) -> bool:
    """Whether what was kept of a gradient, its elements or their digest, is what it is now."""
    if isinstance(a, TensorEntry):
        now = accept(b, a.dtype)
        return isinstance(now, np.ndarray) and (now.dtype.name, digest(now)) == (a.dtype, a.hash)
    if not isinstance(a, Tensor) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    b = (b if b.layout == torch.strided else b.to_dense()).detach().to(a.device)
    return bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is what it was


def _put(tensor: Tensor, array: Array, name: str) -> None:
    """Write an array into a tensor. Raises HarnessError for another shape."""
    if tuple(tensor.shape) != array.shape:
        raise HarnessError(
            f"{name}: handed over as {list(array.shape)}, and the script has "
            f"{list(tensor.shape)}: the two models differ"
        )
    tensor.copy_(torch.as_tensor(array).to(tensor))


def _each(tree: Any, name: str, point: Callable[[str, Tensor], Tensor]) -> tuple[bool, Any]:
    """The tensors of what a module returns, each as a point; whether any was replaced."""
    if isinstance(tree, Tensor):
        onward = point(name, tree)
        return onward is not tree, onward
    if isinstance(tree, Mapping):
        found = {k: _each(v, f"{name}/{k}", point) for k, v in tree.items()}
        if not any(changed for changed, _ in found.values()):
            return False, tree
        return True, type(tree)(**{k: v for k, (_, v) in found.items()})
    if isinstance(tree, tuple | list):
        items = [_each(v, f"{name}/{i}", point) for i, v in enumerate(tree)]
        if not any(changed for changed, _ in items):
            return False, tree
        values = [v for _, v in items]
        return True, type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
        found = {k: _each(v, f"{name}/{k}", point) for k, v in fields.items()}
        if not any(changed for changed, _ in found.values()):
            return False, tree
        return True, dataclasses.replace(tree, **{k: v for k, (_, v) in found.items()})
    return False, tree
