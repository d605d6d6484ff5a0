"""What tests ask of a twin, run inside a process that holds only that twin's framework.

Arrays go in and come out as NumPy; specs and scalars go in as they are.
"""

from importlib import import_module

import numpy as np


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

    def vjp(self, function, inputs, cotangents):
        inputs = [x.requires_grad_() for x in inputs]
        outputs = function(*inputs)
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

    def vjp(self, function, inputs, cotangents):
        with self.tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(*inputs)
        return tape.gradient(outputs, inputs, cotangents)


_FRAMEWORKS = {}


def framework(twin):
    if twin not in _FRAMEWORKS:
        _FRAMEWORKS[twin] = {"pt": Torch, "tf": TensorFlow}[twin]()
    return _FRAMEWORKS[twin]


def _convert(value, leaf, is_leaf):
    if is_leaf(value):
        return leaf(value)
    if isinstance(value, dict):
        return {name: _convert(item, leaf, is_leaf) for name, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_convert(item, leaf, is_leaf) for item in value]
    return value


def call(twin, where, *args):
    """`where` is "module.function" of the twin; returns what it returns, tensors as arrays."""
    of = framework(twin)
    module, function = where.rsplit(".", 1)
    found = getattr(import_module(f"{twin}_impl.{module}"), function)
    tensors = _convert(list(args), of.tensor, lambda x: isinstance(x, np.ndarray))
    return _convert(found(*tensors), of.array, of.is_tensor)


def vjp(twin, where, arrays, cotangents):
    """Gradients of sum(outputs * cotangents) by each of `arrays`; outputs may be nested lists."""
    of = framework(twin)
    module, function = where.rsplit(".", 1)
    found = getattr(import_module(f"{twin}_impl.{module}"), function)

    def flat(*inputs):
        outputs = []
        for item in found(*inputs):
            outputs += item if isinstance(item, list) else [item]
        return outputs

    inputs = [of.tensor(array) for array in arrays]
    grads = of.vjp(flat, inputs, [of.tensor(array) for array in cotangents])
    return [of.array(grad) for grad in grads]


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
            self.rnn = torch.nn.LSTM(*sizes, batch_first=True, dtype=kind)
            self.decoder = torch.nn.Linear(model.hidden_size, model.vocab_size, dtype=kind)

    net = Model()
    net.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    h, c = (
        torch.stack([torch.tensor(state[f"layer{k}/{part}"]) for k in range(model.num_layers)])
        for part in "hc"
    )
    out, (h, c) = net.rnn(net.encoder(torch.tensor(x)), (h, c))
    logits = net.decoder(out)
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(y).long().flatten(), reduction="sum"
    )
    loss = flat / x.shape[0]
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in net.named_parameters()}
    last = {f"layer{k}/h": h[k].detach().numpy() for k in range(model.num_layers)}
    last |= {f"layer{k}/c": c[k].detach().numpy() for k in range(model.num_layers)}
    return logits.detach().numpy(), loss.item(), grads, last


def _keras_step(weights, x, y, state, model, dtype):
    import keras
    import tensorflow as tf

    embedding = keras.layers.Embedding(model.vocab_size, model.embed_size, dtype=dtype)
    lstms = [
        keras.layers.LSTM(model.hidden_size, return_sequences=True, return_state=True, dtype=dtype)
        for _ in range(model.num_layers)
    ]
    dense = keras.layers.Dense(model.vocab_size, dtype=dtype)
    embedding.build((None, None))
    for k, lstm in enumerate(lstms):
        lstm.build((None, None, model.embed_size if k == 0 else model.hidden_size))
    dense.build((None, None, model.hidden_size))
    variables = {"embedding/embeddings": embedding.embeddings}
    for k, lstm in enumerate(lstms):
        cell = lstm.cell
        variables[f"lstm_{k}/kernel"] = cell.kernel
        variables[f"lstm_{k}/recurrent_kernel"] = cell.recurrent_kernel
        variables[f"lstm_{k}/bias"] = cell.bias
    variables |= {"dense/kernel": dense.kernel, "dense/bias": dense.bias}
    for name, variable in variables.items():
        variable.assign(weights[name])
    last = {}
    with tf.GradientTape() as tape:
        out = embedding(x)
        for k, lstm in enumerate(lstms):
            start = [tf.constant(state[f"layer{k}/{part}"]) for part in "hc"]
            out, h, c = lstm(out, initial_state=start)
            last |= {f"layer{k}/h": h.numpy(), f"layer{k}/c": c.numpy()}
        logits = dense(out)
        each = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        loss = tf.reduce_sum(each) / x.shape[0]
    values = [variable.value for variable in variables.values()]
    grads = tape.gradient(loss, values)
    found = {n: tf.convert_to_tensor(g).numpy() for n, g in zip(variables, grads, strict=True)}
    return logits.numpy(), float(loss), found, last
