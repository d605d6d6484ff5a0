"""What is put around Keras and TensorFlow while a step is recorded, and taken away after it.

Layers, losses, tapes, functions and optimizers are wrapped at their classes. None of the wrappers
puts anything into the computation but where a step is fed, or where a function is traced: there one
call at the end of its graph hands tensors out. A function is traced anew for recording, so that the
script's own has nothing of ours in it when the recording is over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from harness.capture.keras_apply import applied
from harness.capture.keras_feed import CURRENT, watching
from harness.capture.keras_functions import Clones, functions
from harness.capture.keras_gradients import gradient
from harness.capture.keras_layers import RULES, LayerCall, attention, loss_rule
from harness.capture.keras_tensors import is_tensor
from harness.capture.keras_watch import HIDDEN, Watch
from harness.models.entries import Made

tf: Any = import_module("tensorflow")
keras: Any = import_module("keras")
callbacks: Any = import_module("tensorflow.python.framework.op_callbacks")
custom_gradients: Any = import_module("tensorflow.python.ops.custom_gradient")
states: Any = import_module("keras.src.backend.common.global_state")

Wrapper = Callable[[Watch, Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def replaced(owner: Any, name: str, wrapper: Wrapper) -> Iterator[None]:
    """While this lasts, a method of a class goes through a wrapper while a step is recorded."""
    own = name in vars(owner)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = watching()
        if watch is None:
            return original(self, *args, **kwargs)
        return wrapper(watch, original, self, args, kwargs)

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@contextmanager
def hooked(
    watch: Watch,
    paths: Callable[[Any], str | None],
    clones: Clones,
    optimizers: Sequence[Any],
) -> Iterator[None]:
    """Everything, for one step. `paths` gives the path of a layer."""
    with ExitStack() as stack:
        calls = functools.partial(_layer, paths)
        for kind in _kinds(keras.layers.Layer, "__call__"):
            stack.enter_context(replaced(kind, "__call__", calls))
        stack.enter_context(replaced(keras.losses.Loss, "__call__", _loss))
        stack.enter_context(replaced(tf.GradientTape, "gradient", gradient))
        stack.enter_context(replaced(functions.Function, "__call__", clones.call))
        for kind in {k for o in optimizers for k in type(o).__mro__ if "apply" in vars(k)}:
            wrapper = functools.partial(applied, optimizers)
            stack.enter_context(replaced(kind, "apply", wrapper))
        for name in ("_eager_mode_decorator", "_graph_mode_decorator"):
            stack.enter_context(replaced(custom_gradients, name, _custom))
        callbacks.add_op_callback(watch.saw)
        stack.callback(callbacks.remove_op_callback, watch.saw)
        CURRENT.append(watch)
        stack.callback(CURRENT.remove, watch)
        yield


def _kinds(base: Any, method: str) -> list[Any]:
    """A class and those of its children that have a method of their own."""
    found, todo = [], [base]
    while todo:
        kind = todo.pop()
        if method in vars(kind) and kind not in found:
            found.append(kind)
        todo += kind.__subclasses__()
    return found


# Layers and losses.


def _layer(
    paths: Callable[[Any], str | None],
    watch: Watch,
    original: Any,
    layer: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A layer is called: what it returns are points."""
    if any(isinstance(x, keras.KerasTensor) for x in tf.nest.flatten((args, kwargs))):
        return original(layer, *args, **kwargs)
    path = paths(layer)
    if path is not None and watch.scope and watch.scope[-1] == path:
        return original(layer, *args, **kwargs)  # the call of a parent class
    rule = RULES.get(type(layer))
    whole = type(layer) is keras.layers.MultiHeadAttention
    outer = _attention_of(watch, layer)
    if outer is not None:
        _mixed(watch, outer, args)
    mode = training(layer, kwargs)
    watch.scope.append(path or (watch.scope[-1] if watch.scope else "model"))
    watch.inside += bool(rule or whole)
    watch.chosen = None
    if whole:
        watch.attentions.append((layer, args, kwargs, []))
    try:
        result = original(layer, *args, **kwargs)
        if rule:
            call = LayerCall(layer, args, kwargs, result, watch, mode)
            _ruled(call, rule)
    finally:
        watch.inside -= bool(rule or whole)
        watch.scope.pop()
        if whole:
            watch.attentions.pop()
    if path is not None:
        result = _each(result, f"forward/{path}", watch.point)
    if outer is not None:
        outer[3].append(result)
    return result


def training(layer: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the layer ran as in training."""
    if kwargs.get("training") is not None:
        return bool(kwargs["training"])
    context = states.get_global_attribute("current_call_ctx")
    found = context.get_value("training") if context is not None else None
    if found is None:
        parameter = layer._call_signature.parameters.get("training")
        found = parameter.default if parameter is not None else None
    return found is True


def _ruled(call: LayerCall, rule: Any) -> None:
    result = call.result
    if not is_tensor(result) or any(result is x for x in call.args):
        return
    known = call.watch.known.get(id(result), (None, None))[1]
    if known not in (None, HIDDEN):
        return  # handed on as it was
    try:
        with call.watch.unseen():
            made = rule(call)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        made = None  # called in a way that the rule does not know
    name = f"keras_{type(call.layer).__name__}"
    call.watch.know(result, made if made is not None else Made(name, (), {}))


def _attention_of(watch: Watch, layer: Any) -> Any:
    """The attention that a layer is a part of, while that is called."""
    if not watch.attentions:
        return None
    outer = watch.attentions[-1]
    own = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")
    return outer if any(getattr(outer[0], name, None) is layer for name in own) else None


def _mixed(watch: Watch, outer: Any, args: tuple[Any, ...]) -> None:
    """Before the last product of an attention: how what goes into it was made."""
    layer, given, kwargs, parts = outer
    if len(parts) != 3 or not args or not is_tensor(args[0]):
        return
    call = LayerCall(layer, given, kwargs, None, watch, training(layer, kwargs))
    made = attention(call, parts)
    watch.know(args[0], made if made is not None else Made("keras_attention", (), {}))


def _loss(
    watch: Watch, original: Any, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A loss object is called."""
    result = original(loss, *args, **kwargs)
    given = dict(zip(("y_true", "y_pred", "sample_weight"), args, strict=False)) | kwargs
    y, x = given.get("y_true"), given.get("y_pred")
    if is_tensor(result) and not watch.off and not watch.inside:
        made = loss_rule(loss, y, x, given.get("sample_weight"), watch)
        if made is not None:
            watch.know(result, made)
    return result


def _custom(
    watch: Watch, original: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A function with a gradient of its own (tf.custom_gradient): no gradient follows from it."""
    if watch.off or watch.inside:
        return original(function, *args, **kwargs)
    watch.inside += 1
    try:
        result = original(function, *args, **kwargs)
    finally:
        watch.inside -= 1
    given: Any = args[0] if args else ()
    silu = getattr(function, "__name__", "") == "swish_impl" and watch.of(given[1]) == 1
    made = Made("silu", (watch.of(given[0]),), {}) if silu else Made("tf_custom_gradient", (), {})
    for x in tf.nest.flatten(result):
        if is_tensor(x):
            watch.know(x, made)
            if watch.operations:
                watch.operations.saw(made, x)
    return result


def _each(tree: Any, name: str, point: Callable[[str, Any], Any]) -> Any:
    """The tensors of what a layer returns, each as a point; the tree itself if none is replaced."""
    if is_tensor(tree):
        return point(name, tree)
    if isinstance(tree, Mapping):
        found = {k: _each(v, f"{name}/{k}", point) for k, v in tree.items()}
        if all(found[k] is tree[k] for k in tree):
            return tree
        return type(tree)(found)  # type: ignore[call-arg]
    if isinstance(tree, tuple | list):
        items = [_each(v, f"{name}/{i}", point) for i, v in enumerate(tree)]
        if all(new is old for new, old in zip(items, tree, strict=True)):
            return tree
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree
