"""What tests ask of a twin, run inside a process that holds only that twin's framework.

Arrays go in and come out as NumPy; specs and scalars go in as they are.
"""

from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np

from harness.side.points import Points, to_array
from harness.trace import Rows


class Torch:
    def __init__(self):
        import torch

        self.torch = torch
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)

    def tensor(self, array):
        return self.torch.tensor(array)

    def array(self, tensor):
        return tensor.detach().cpu().numpy()

    def is_tensor(self, value):
        return isinstance(value, self.torch.Tensor)

    def detached(self, tensor):
        return tensor.detach()

    def vjp(self, module, function, inputs, cotangents):
        inputs = [x.requires_grad_() for x in inputs]
        outputs = _flat(getattr(module, function)(*inputs))
        return self.torch.autograd.grad(outputs, inputs, cotangents)


class TensorFlow:
    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.experimental.enable_op_determinism()

    def tensor(self, array):
        return self.tf.constant(array)

    def array(self, tensor):
        return self.tf.convert_to_tensor(tensor).numpy()

    def is_tensor(self, value):
        return isinstance(value, self.tf.Tensor | self.tf.IndexedSlices)

    def detached(self, tensor):
        return self.tf.stop_gradient(tensor)

    def vjp(self, module, function, inputs, cotangents):
        with self.tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = _flat(getattr(module, function)(*inputs))
        return tape.gradient(outputs, inputs, cotangents)


class NumPy:
    def tensor(self, array):
        return array.copy()

    def array(self, tensor):
        return np.asarray(tensor)

    def is_tensor(self, value):
        return isinstance(value, np.ndarray | np.generic)


_FRAMEWORKS = {}


def framework(twin):
    if twin not in _FRAMEWORKS:
        _FRAMEWORKS[twin] = {"pt": Torch, "tf": TensorFlow, "np": NumPy}[twin]()
    return _FRAMEWORKS[twin]


def _convert(value, leaf, is_leaf):
    if is_leaf(value):
        return leaf(value)
    if isinstance(value, dict):
        return {name: _convert(item, leaf, is_leaf) for name, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_convert(item, leaf, is_leaf) for item in value]
    return value


def _rows(value):
    return isinstance(value, Rows)


def call(twin, where, *args):
    """`where` is "module.function" of the twin; returns what it returns, tensors as arrays."""
    of = framework(twin)
    module, function = where.rsplit(".", 1)
    found = getattr(import_module(f"{twin}_impl.{module}"), function)
    tensors = _convert(list(args), of.tensor, lambda x: isinstance(x, np.ndarray))
    return _convert(found(*tensors), of.array, of.is_tensor)


def _flat(outputs):
    """One list of tensors from a tensor, or from nested lists of them."""
    if not isinstance(outputs, list | tuple):
        return [outputs]
    return [tensor for item in outputs for tensor in _flat(item)]


def vjp(twin, where, arrays, cotangents):
    """Gradients of sum(outputs * cotangents) by each of `arrays`, by the framework's own autograd.

    Outputs may be nested lists.
    """
    of = framework(twin)
    module, function = where.rsplit(".", 1)
    tensors = [[of.tensor(array) for array in given] for given in (arrays, cotangents)]
    grads = of.vjp(import_module(f"{twin}_impl.{module}"), function, *tensors)
    return [of.array(grad) for grad in grads]


def loss_by_autograd(twin, logits, y, loss):
    """The gradient of the logits through cross_entropy, by the framework's own autograd."""
    of, losses = framework(twin), import_module(f"{twin}_impl.losses")
    alone = SimpleNamespace(f=lambda z: losses.cross_entropy(z, of.tensor(y), loss))
    cotangent = of.tensor(np.ones((), logits.dtype))
    return of.array(of.vjp(alone, "f", [of.tensor(logits)], [cotangent])[0])


def cell_by_hand(twin, z, c, dh, dc):
    """Gradients of z and c through lstm_cell, by the factors of lstm_cell_backward."""
    _, new_c = call(twin, "cells.lstm_cell", z, c)
    factors = call(twin, "cells.lstm_cell_backward", z[None], c[None], new_c[None])
    of_dh, kept, of_dz = (factor[0] for factor in factors)
    dc = dc + dh * of_dh
    return np.concatenate([dc, dc, dc, dh], axis=1) * of_dz, dc * kept


def layer_by_hand(twin, x, h, c, w_i, w_h, b_i, b_h, d_hidden):
    """Gradients of x, w_i, w_h, b_i and b_h through lstm_layer, by lstm_layer_backward."""
    of, cells = framework(twin), import_module(f"{twin}_impl.cells")
    x, h, c, w_i, w_h, b_i, b_h, d_hidden = (
        of.tensor(a) for a in (x, h, c, w_i, w_h, b_i, b_h, d_hidden)
    )
    gates = []

    def see(name, value, t):
        if name == "gates":
            gates.append(value)
        return value

    hidden, cell = cells.lstm_layer(x, h, c, w_i, w_h, b_i, b_h, see)
    grads = cells.lstm_layer_backward(x, h, c, w_i, w_h, gates, hidden, cell, d_hidden)
    return [of.array(grad) for grad in grads]


def watched(twin, where, *args, watch=True):
    """`call` of a function whose last argument is a Points; returns what it returns and the points.

    The points are arrays by name, in execution order.
    """
    of = framework(twin)
    module, function = where.rsplit(".", 1)
    found = getattr(import_module(f"{twin}_impl.{module}"), function)
    backend = import_module(f"{twin}_impl.backend")
    points, array = Points(backend, watch=watch), partial(to_array, backend)
    tensors = _convert(list(args), of.tensor, lambda x: isinstance(x, np.ndarray))
    outputs = _convert(found(*tensors, points), array, lambda x: of.is_tensor(x) or _rows(x))
    return *outputs, {name: array(point) for name, point in points.seen.items()}


def optimize(twin, params, grads, lr, train):
    """The twin's optimizer from zero slots, a step for each of `grads`.

    Returns a list with the parameters and slots after each step, all in one dictionary.
    """
    found, slots = [], call(twin, "optim.zero_slots", params, train)
    lr = np.asarray(lr, train.dtype)
    for step, g in enumerate(grads, start=1):
        params, slots, _ = watched(twin, "optim.update", params, g, slots, lr, train, step)
        found.append({**params, **slots})
    return found


def watched_with_detached_embedding(twin, *args):
    """`watched`, with an embedding that is cut off from the gradient."""
    of, blocks = framework(twin), import_module(f"{twin}_impl.blocks")
    original = blocks.embed
    blocks.embed = lambda table, x: of.detached(original(table, x))
    try:
        return watched(twin, *args)
    finally:
        blocks.embed = original


def train_reports(twin, run):
    """A whole run of the twin's training loop; returns what it reported after every step."""
    framework(twin)
    reports = []
    import_module(f"{twin}_impl.train").train(run, lambda **seen: reports.append(seen))
    return reports


def train(twin, run):
    """The same; returns the losses."""
    return [seen["loss"] for seen in train_reports(twin, run)]


def stock_step(twin, weights, x, y, state, model, dtype):
    """The stock layers of the framework on the same step: logits, loss, gradients by their names.

    `weights` are in the layout of the framework ("torch" or "keras"), `state` as the twins have it.
    """
    framework(twin)
    return {"pt": _torch_step, "tf": _keras_step}[twin](weights, x, y, state, model, dtype)


def _torch_step(weights, x, y, state, model, dtype):
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            kind = getattr(torch, dtype)
            self.encoder = torch.nn.Embedding(model.vocab_size, model.embed_size, dtype=kind)
            sizes = (model.embed_size, model.hidden_size, model.num_layers)
            layers = {"lstm": torch.nn.LSTM, "rnn": torch.nn.RNN, "gru": torch.nn.GRU}[
                model.network
            ]
            self.rnn = layers(*sizes, batch_first=True, dtype=kind)
            self.decoder = torch.nn.Linear(model.hidden_size, model.vocab_size, dtype=kind)

    net = Model()
    net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    parts = list(dict.fromkeys(name.rsplit("/", 1)[1] for name in state))
    given = [
        torch.stack([torch.tensor(state[f"layer{k}/{part}"]) for k in range(model.num_layers)])
        for part in parts
    ]
    out, after = net.rnn(net.encoder(torch.tensor(x)), given[0] if len(given) == 1 else given)
    logits = net.decoder(out)
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(y).long().flatten(), reduction="sum"
    )
    loss = flat / x.shape[0]
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in net.named_parameters()}
    after = [after] if len(given) == 1 else after
    last = {
        f"layer{k}/{part}": value[k].detach().numpy()
        for k in range(model.num_layers)
        for part, value in zip(parts, after, strict=True)
    }
    return logits.detach().numpy(), loss.item(), grads, last


def _keras_step(weights, x, y, state, model, dtype):
    import keras
    import tensorflow as tf

    embedding = keras.layers.Embedding(model.vocab_size, model.embed_size, dtype=dtype)
    kind, name = {
        "lstm": (keras.layers.LSTM, "lstm"),
        "rnn": (keras.layers.SimpleRNN, "simple_rnn"),
        "gru": (partial(keras.layers.GRU, reset_after=model.reset == "after"), "gru"),
    }[model.network]
    layers = [
        kind(model.hidden_size, return_sequences=True, return_state=True, dtype=dtype)
        for _ in range(model.num_layers)
    ]
    dense = keras.layers.Dense(model.vocab_size, dtype=dtype)
    embedding.build((None, None))
    for k, layer in enumerate(layers):
        layer.build((None, None, model.embed_size if k == 0 else model.hidden_size))
    dense.build((None, None, model.hidden_size))
    variables = {"embedding/embeddings": embedding.embeddings}
    for k, layer in enumerate(layers):
        cell = layer.cell
        variables[f"{name}_{k}/kernel"] = cell.kernel
        variables[f"{name}_{k}/recurrent_kernel"] = cell.recurrent_kernel
        variables[f"{name}_{k}/bias"] = cell.bias
    variables |= {"dense/kernel": dense.kernel, "dense/bias": dense.bias}
    for array, variable in variables.items():
        variable.assign(weights[array])
    parts, last = list(dict.fromkeys(name.rsplit("/", 1)[1] for name in state)), {}
    with tf.GradientTape() as tape:
        out = embedding(x)
        for k, layer in enumerate(layers):
            start = [tf.constant(state[f"layer{k}/{part}"]) for part in parts]
            out, *after = layer(out, initial_state=start)
            last |= {f"layer{k}/{p}": s.numpy() for p, s in zip(parts, after, strict=True)}
        logits = dense(out)
        each = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        loss = tf.reduce_sum(each) / x.shape[0]
    values = [variable.value for variable in variables.values()]
    grads = tape.gradient(loss, values)
    found = {n: tf.convert_to_tensor(g).numpy() for n, g in zip(variables, grads, strict=True)}
    return logits.numpy(), float(loss), found, last


def stock_optimize(twin, params, grads, lr, train):
    """The same by the optimizers of torch.optim; returns the parameters after each step."""
    import torch

    tensors = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in params.items()}
    kind, settings = {
        "sgd": (torch.optim.SGD, {}),
        "momentum": (torch.optim.SGD, {"momentum": train.momentum}),
        "adam": (torch.optim.AdamW if train.decoupled else torch.optim.Adam, {}),
        "rmsprop": (torch.optim.RMSprop, {"alpha": train.rho, "eps": train.epsilon}),
        "adagrad": (torch.optim.Adagrad, {"eps": train.epsilon}),
    }[train.optimizer]
    if train.optimizer == "adam":
        settings = {"betas": (train.beta1, train.beta2), "eps": train.epsilon}
    stock = kind(tensors.values(), lr=lr, weight_decay=train.weight_decay, **settings)
    found = []
    for g in grads:
        for name, p in tensors.items():
            p.grad = torch.tensor(g[name])
        stock.step()
        found.append({name: p.detach().numpy().copy() for name, p in tensors.items()})
    return found


def stock_awd_lstm(twin, params, masks, state, x, y, model):
    """The network of AWD-LSTM by the stock layers of the framework and its autograd.

    Takes and returns canonical arrays; the loss is a mean. Returns loss, gradients and the state.
    """
    framework(twin)
    return {"pt": _torch_awd_lstm, "tf": _keras_awd_lstm}[twin](params, masks, state, x, y, model)


def _torch_awd_lstm(params, masks, state, x, y, model):
    import torch
    from torch.nn import functional

    kind = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    kept = {site: torch.tensor(mask) for site, mask in masks.items()}

    def drop(value, site, rate):
        return value * kept[site] / (1 - rate)

    table, last = kind["embedding"], {}
    out = functional.embedding(torch.tensor(x), drop(table, "rows", model.embedding_dropout))
    out = drop(out, "embedding", model.input_dropout)
    for k in range(model.num_layers):
        w_i, w_h, b_i, b_h = (kind[f"layer{k}/{part}"] for part in ("w_i", "w_h", "b_i", "b_h"))
        layer = torch.nn.LSTM(*w_i.shape[:1], w_h.shape[0], batch_first=True, dtype=table.dtype)
        w_h = drop(w_h, f"layer{k}/w_h", model.weight_dropout)
        weights = {"weight_ih_l0": w_i.T, "weight_hh_l0": w_h.T}
        weights |= {"bias_ih_l0": b_i, "bias_hh_l0": b_h}
        start = tuple(torch.tensor(state[f"layer{k}/{part}"])[None] for part in "hc")
        raw, (h, c) = torch.func.functional_call(layer, weights, (out, start))
        last |= {f"layer{k}/h": h[0].detach().numpy(), f"layer{k}/c": c[0].detach().numpy()}
        is_last = k == model.num_layers - 1
        out = drop(raw, f"layer{k}", model.dropout if is_last else model.layer_dropout)
    decoder = table if model.tied else kind["softmax_w"].T
    logits = functional.linear(out, decoder, kind["softmax_b"])
    loss = functional.cross_entropy(logits.flatten(0, 1), torch.tensor(y).long().flatten())
    loss = loss + model.activation_penalty * out.pow(2).mean()
    loss = loss + model.temporal_penalty * (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in kind.items()}, last


def _keras_awd_lstm(params, masks, state, x, y, model):
    import keras
    import tensorflow as tf

    kind = {name: tf.constant(array) for name, array in params.items()}
    dtype, last = params["embedding"].dtype, {}

    def drop(value, site, rate):
        return value * tf.cast(tf.constant(masks[site]), value.dtype) / (1 - rate)

    with tf.GradientTape() as tape:
        tape.watch(list(kind.values()))
        out = tf.gather(drop(kind["embedding"], "rows", model.embedding_dropout), x)
        out = drop(out, "embedding", model.input_dropout)
        for k in range(model.num_layers):
            w_i, w_h, b_i, b_h = (kind[f"layer{k}/{part}"] for part in ("w_i", "w_h", "b_i", "b_h"))
            layer = keras.layers.LSTM(
                w_h.shape[0], return_sequences=True, return_state=True, dtype=str(dtype)
            )
            layer.build(out.shape)
            w_h = drop(w_h, f"layer{k}/w_h", model.weight_dropout)
            start = [tf.constant(state[f"layer{k}/{part}"]) for part in "hc"]
            rest = [variable.value for variable in layer.non_trainable_variables]
            (raw, h, c), _ = layer.stateless_call(
                [w_i, w_h, b_i + b_h], rest, out, initial_state=start
            )
            last |= {f"layer{k}/h": h.numpy(), f"layer{k}/c": c.numpy()}
            is_last = k == model.num_layers - 1
            out = drop(raw, f"layer{k}", model.dropout if is_last else model.layer_dropout)
        decoder = tf.transpose(kind["embedding"]) if model.tied else kind["softmax_w"]
        logits = tf.tensordot(out, decoder, 1) + kind["softmax_b"]
        each = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        loss = tf.reduce_mean(each) + model.activation_penalty * tf.reduce_mean(tf.square(out))
        change = tf.square(raw[:, 1:] - raw[:, :-1])
        loss += model.temporal_penalty * tf.reduce_mean(change)
    grads = tape.gradient(loss, kind)
    return float(loss), {n: tf.convert_to_tensor(g).numpy() for n, g in grads.items()}, last


def stock_op(twin, name, operands, args):
    """An op of the table as the twin's framework has it, in the precision of the operands."""
    import stock_ops

    made = framework(twin)
    function = (stock_ops.TORCH if twin == "pt" else stock_ops.KERAS)[name]
    given = [made.tensor(x) if isinstance(x, np.ndarray) else x for x in operands]
    return np.asarray(made.array(function(*given, **args)))


def stock_rule(twin, kind, args, p, gradients):
    """The weights after each step of an optimizer that the twin's framework has."""
    import stock_ops

    framework(twin)
    run = stock_ops.run_torch_optimizer if twin == "pt" else stock_ops.run_keras_optimizer
    return run(kind, args, p, gradients)
