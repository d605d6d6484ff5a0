"""The ops of the table as the frameworks have them: by name, and by the layout that each is for.

Each function takes the framework's tensors, numbers, and the op's arguments. Nothing is imported
before one is called.
"""


def _torch():
    import torch

    return torch


def _f():
    import torch.nn.functional as f

    return f


def _torch_conv(x, w, stride=1, padding=0, dilation=1, layout="first"):
    f = _f()
    conv = f.conv1d if x.ndim == 3 else f.conv2d
    return conv(x, w, None, stride, padding, dilation)


def _torch_norm(old, x, momentum, which):
    torch = _torch()
    kept = [torch.ones_like(old), torch.ones_like(old)]
    kept[which] = old.clone()
    _f().batch_norm(x, kept[0], kept[1], training=True, momentum=momentum)
    return kept[which]


def _torch_attention(q, k, v, heads, causal):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    made = _f().scaled_dot_product_attention(q, k, v, is_causal=causal)
    return made.transpose(1, 2).flatten(2)


def _torch_loss(name):
    def loss(x, y, reduce):
        made = getattr(_f(), name)(x, y, reduction="sum" if reduce == "batch" else reduce)
        return made / len(x) if reduce == "batch" else made

    return loss


def _torch_nll(p, y, reduce="mean"):
    made = _f().nll_loss(p.flatten(0, -2), y.flatten(), reduction=reduce.replace("batch", "sum"))
    return made / len(p) if reduce == "batch" else made


def _torch_entropy(z, y, time):
    made = _f().cross_entropy(z.flatten(0, 1), y.flatten(), reduction="mean")
    return made * z.shape[1] if time == "sum" else made


def _torch_clipped(g, norm, limit):
    torch = _torch()
    weight = torch.zeros_like(g)
    weight.grad = g.clone()
    torch.nn.utils.clip_grads_with_norm_([weight], limit, norm)
    return weight.grad


TORCH = {
    "embed": lambda table, x: _f().embedding(x, table),
    "embed_padded": lambda table, x, padding: _f().embedding(x, table, padding_idx=padding),
    "linear": lambda x, w: _f().linear(x, w.T),
    "bias": lambda x, b: _f().linear(x, _torch().eye(len(b), dtype=x.dtype), b),
    "sigmoid": lambda x: _torch().sigmoid(x),
    "tanh": lambda x: _torch().tanh(x),
    "relu": lambda x: _f().relu(x),
    "leaky_relu": lambda x, slope: _f().leaky_relu(x, slope),
    "elu": lambda x, alpha: _f().elu(x, alpha),
    "silu": lambda x: _f().silu(x),
    "gelu": lambda x: _f().gelu(x),
    "gelu_tanh": lambda x: _f().gelu(x, approximate="tanh"),
    "softmax": lambda x, axis=-1: _f().softmax(x, axis),
    "log_softmax": lambda x, axis=-1: _f().log_softmax(x, axis),
    "attention": _torch_attention,
    "conv": _torch_conv,
    "max_pool": lambda x, size, stride=None, padding=0: _f().max_pool2d(x, size, stride, padding),
    "average_pool": lambda x, size, stride=None, padding=0, padded=True: _f().avg_pool2d(
        x, size, stride, padding, count_include_pad=padded
    ),
    "layer_norm": lambda x, g, b, e: _f().layer_norm(x, g.shape, g, b, e),
    "rms_norm": lambda x, g, e: _f().rms_norm(x, g.shape, g, e),
    "batch_norm": lambda x, g, b, e: _f().batch_norm(x, None, None, g, b, True, 0.1, e),
    "running_mean": lambda old, x, m: _torch_norm(old, x, m, 0),
    "running_variance": lambda old, x, m: _torch_norm(old, x, m, 1),
    "l2_normalize": lambda x, e, axis=-1: _f().normalize(x, 2.0, axis, e),
    "flatten": lambda x, start=1: _torch().flatten(x, start),
    "permute": lambda x, axes: x.permute(axes),
    "concat": lambda *x, axis=-1: _torch().cat(x, axis),
    "mean_over": lambda x, axis: x.mean(axis),
    "squared_error": _torch_loss("mse_loss"),
    "absolute_error": _torch_loss("l1_loss"),
    "logistic_loss": _torch_loss("binary_cross_entropy_with_logits"),
    "nll_loss": _torch_nll,
    "cross_entropy": _torch_entropy,
    "matmul": lambda x, y: x @ y,
    "softplus": lambda x: _f().softplus(x),
    "global_norm": lambda *g: _torch().nn.utils.get_total_norm(g),
    "clip_torch": _torch_clipped,
}


def _tf():
    import tensorflow as tf

    return tf


def _keras():
    import keras

    return keras


def _layer(kind, weights, x, **args):
    """What a layer of Keras with these weights makes of x in training, and its weights after it."""
    layer = getattr(_keras().layers, kind)(dtype="float64", **args)
    layer.build(x.shape)
    layer.set_weights(weights)
    return layer(x, training=True), layer.get_weights()


def _keras_running(old, x, momentum, which):
    ones = _tf().ones_like(old)
    kept = [ones, ones]
    kept[which] = old
    _, weights = _layer("BatchNormalization", [ones, ones, *kept], x, momentum=momentum)
    return weights[2 + which]


def _keras_conv(x, w, stride=1, padding=0, dilation=1, layout="last"):
    return _keras().ops.conv(x, w, stride, padding, "channels_last", dilation)


def _keras_attention(q, k, v, heads, causal):
    tf = _tf()
    q, k, v = (tf.reshape(x, (*x.shape[:2], heads, -1)) for x in (q, k, v))
    made = _keras().ops.dot_product_attention(q, k, v, is_causal=causal, flash_attention=False)
    return tf.reshape(made, (*q.shape[:2], -1))


def _keras_loss(name, **args):
    def loss(x, y, reduce):
        each = getattr(_keras().losses, name)(y, x, **args)  # the mean over the last axis
        width = x.shape[-1]
        return {
            "mean": _tf().reduce_mean(each),
            "sum": _tf().reduce_sum(each) * width,
            "batch": _tf().reduce_sum(each) * width / len(x),
        }[reduce]

    return loss


def _keras_entropy(z, y, time):
    each = _keras().losses.sparse_categorical_crossentropy(y, z, from_logits=True)
    return _tf().reduce_sum(each) / (z.shape[0] * (z.shape[1] if time == "mean" else 1))


KERAS = {
    "embed": lambda table, x: _tf().gather(table, x),
    "linear": lambda x, w: _tf().matmul(x, w),
    "bias": lambda x, b: _tf().nn.bias_add(x, b),
    "sigmoid": lambda x: _tf().sigmoid(x),
    "tanh": lambda x: _tf().tanh(x),
    "relu": lambda x: _tf().nn.relu(x),
    "leaky_relu": lambda x, slope: _keras().activations.leaky_relu(x, slope),
    "elu": lambda x, alpha: _keras().activations.elu(x, alpha),
    "silu": lambda x: _keras().activations.silu(x),
    "gelu": lambda x: _keras().activations.gelu(x),
    "gelu_tanh": lambda x: _keras().activations.gelu(x, approximate=True),
    "softmax": lambda x, axis=-1: _tf().nn.softmax(x, axis),
    "log_softmax": lambda x, axis=-1: _tf().nn.log_softmax(x, axis),
    "attention": _keras_attention,
    "conv": _keras_conv,
    "max_pool": lambda x, size, stride, padding, layout: _keras().ops.max_pool(
        x, size, stride, padding, "channels_last"
    ),
    "average_pool": lambda x, size, stride, padding, layout, padded: _keras().ops.average_pool(
        x, size, stride, padding, "channels_last"
    ),
    "layer_norm": lambda x, g, b, e: _layer("LayerNormalization", [g, b], x, epsilon=e)[0],
    "rms_norm": lambda x, g, e: _layer("RMSNormalization", [g], x, epsilon=e)[0],
    "batch_norm": lambda x, g, b, e, axis: _layer(
        "BatchNormalization", [g, b, b, g], x, epsilon=e, axis=axis
    )[0],
    "running_mean_keras": lambda old, x, m: _keras_running(old, x, m, 0),
    "running_variance_keras": lambda old, x, m: _keras_running(old, x, m, 1),
    "l2_normalize_keras": lambda x, e, axis=-1: _tf().math.l2_normalize(x, axis, e),
    "permute": lambda x, axes: _tf().transpose(x, axes),
    "concat": lambda *x, axis=-1: _tf().concat(x, axis),
    "mean_over": lambda x, axis: _tf().reduce_mean(x, axis),
    "squared_error": _keras_loss("mean_squared_error"),
    "absolute_error": _keras_loss("mean_absolute_error"),
    "logistic_loss": _keras_loss("binary_crossentropy", from_logits=True),
    "cross_entropy": _keras_entropy,
    "matmul": lambda x, y: _tf().matmul(x, y),
    "softplus": lambda x: _tf().nn.softplus(x),
    "global_norm": lambda *g: _tf().linalg.global_norm(g),
    "clip_by_norm": lambda g, norm, limit: _tf().clip_by_global_norm([g], limit, norm)[0][0],
    "clip_elements": lambda g, norm, limit: _tf().clip_by_value(g, -limit, limit),
    "clip_tensor": lambda g, norm, limit: _tf().clip_by_norm(g, limit),
}


def fits(twin, name, args):
    """Whether a framework has this op with these arguments: each has one layout of its own."""
    if name not in (TORCH if twin == "pt" else KERAS):
        return False
    last = args.get("layout") == "last" or (args.get("axis") == -1 and name == "batch_norm")
    if name in ("conv", "max_pool", "average_pool", "batch_norm"):
        if last != (twin == "tf"):
            return False
        if twin == "tf" and args.get("padded"):  # TensorFlow never counts its padding
            return False
    return True


def run_torch_optimizer(kind, args, p, gradients):
    """The weights after each step of an optimizer of torch.optim."""
    torch = _torch()
    weight = torch.nn.Parameter(torch.tensor(p))
    optimizer = getattr(torch.optim, kind)([weight], **args)
    made = []
    for g in gradients:
        weight.grad = torch.tensor(g)
        optimizer.step()
        made.append(weight.detach().numpy().copy())
    return made


def run_keras_optimizer(kind, args, p, gradients):
    """The same of keras.optimizers."""
    keras = _keras()
    before = keras.config.floatx()
    keras.config.set_floatx("float64")  # also of the learning rate
    try:
        weight = keras.Variable(p, dtype="float64")
        optimizer = getattr(keras.optimizers, kind)(**args)
        optimizer.build([weight])
        made = []
        for g in gradients:
            optimizer.apply([_tf().constant(g)])
            made.append(weight.numpy().copy())
        return made
    finally:
        keras.config.set_floatx(before)
