"""Faults of the gradients, of their norm and of clipping."""

import torch

from pt_impl.faults_tools import Changed, cast_and_back, kept, remembered, with_gradient

PADDING = 0  # the token whose embedding is not trained


def gradient_of(params, name, change):
    """The parameters, one of which gets change(gradient) for its gradient."""
    return {**params, name: with_gradient(params[name], change)}


def gradient_zero(original, params, x, state, masks, model, points):
    """No gradient reaches the input weights of the first layer."""
    params = gradient_of(params, "layer0/w_i", torch.zeros_like)
    return original(params, x, state, masks, model, points)


def gradient_sign(original, params, x, state, masks, model, points):
    """The gradient of one bias has the wrong sign."""
    params = gradient_of(params, "layer0/b_h", lambda g: -g)
    return original(params, x, state, masks, model, points)


def gradient_scaled(original, params, x, state, masks, model, points):
    """The gradient of the softmax weights is too large by a relative 1e-5."""
    params = gradient_of(params, "softmax_w", lambda g: g * (1 + 1e-5))
    return original(params, x, state, masks, model, points)


def gradient_raised(original, params, x, state, masks, model, points):
    """1e-9 is added to the gradient of the softmax weights."""
    params = gradient_of(params, "softmax_w", lambda g: g + 1e-9)
    return original(params, x, state, masks, model, points)


def gradient_transposed(original, params, x, state, masks, model, points):
    """The gradient of the softmax weights is laid out as that of their transpose."""

    def transposed(g):
        return torch.reshape(torch.transpose(g, 0, 1), g.shape)

    return original(gradient_of(params, "softmax_w", transposed), x, state, masks, model, points)


def gradient_of_padding_zero(original, table, x):
    """The embedding of one token is padding: it gets no gradient."""
    padding = torch.arange(table.shape[0])[:, None] == PADDING
    return original(with_gradient(table, lambda g: torch.where(padding, 0 * g, g)), x)


def gradient_rows_averaged(original, table, x):
    """The gradients of a token that occurs more than once are averaged."""
    flat = torch.reshape(x, [-1])
    counts = torch.sum(flat[:, None] == flat[None, :], dim=1)
    counts = torch.reshape(counts, [*x.shape, 1])
    return with_gradient(original(table, x), lambda g: g / counts.to(g.dtype))


def seen_gradients(change):
    """What Changed wants: change(name, value) of the gradients of parameters."""
    return lambda name, value: change(name, value) if name.startswith("grads/") else value


def gradients_accumulated(original, params, state, x, y, masks, model, train, points):
    """Gradients are added to those of the steps before."""

    def add(name, value):
        kept[name] = value + kept.get(name, 0)
        return kept[name]

    points = Changed(points, seen_gradients(add))
    return original(params, state, x, y, masks, model, train, points)


def gradients_stale(original, params, state, x, y, masks, model, train, points):
    """Each step has the gradients of the step before."""

    def late(name, value):
        before = remembered(name, value)
        return value if before is None else before

    points = Changed(points, seen_gradients(late))
    return original(params, state, x, y, masks, model, train, points)


def gradients_bfloat16(original, params, state, x, y, masks, model, train, points):
    """Float32 gradients are cast to bfloat16 and back."""

    def cast(name, value):
        return value if value.dtype == torch.float64 else cast_and_back(value, "bfloat16")

    points = Changed(points, seen_gradients(cast))
    return original(params, state, x, y, masks, model, train, points)


def embedding_watched(original, table, x):
    """Remembers the gradient of every embedded token."""

    def watch(g):
        kept["rows"] = g
        return g

    return with_gradient(original(table, x), watch)


def norm_of_rows(original, grads):
    """The norm counts the rows of a token that occurs more than once before they are added up."""
    return original({**grads, "embedding": kept["rows"]})


def norm_without_embedding(original, grads):
    """The norm leaves out the embedding."""
    return original({name: g for name, g in grads.items() if name != "embedding"})


def norm_without_biases(original, grads):
    """The norm leaves out the biases."""
    return original({name: g for name, g in grads.items() if len(g.shape) > 1})


def norm_largest(original, grads):
    """The norm is the largest absolute element."""
    return torch.amax(torch.stack([torch.amax(torch.abs(g)) for g in grads.values()]))


def clip_elementwise(original, grads, norm, mode, limit):
    """Clamps each element of the gradients."""
    return original(grads, norm, "elementwise", limit)


def clip_per_tensor(original, grads, norm, mode, limit):
    """Scales each gradient by its own norm."""
    norms = {name: torch.sqrt(torch.sum(g * g)) for name, g in grads.items()}
    return {name: original({name: g}, norms[name], mode, limit)[name] for name, g in grads.items()}


def clip_never(original, grads, norm, mode, limit):
    """Leaves the gradients as they are."""
    return original(grads, norm, "none", limit)


def clip_always(original, grads, norm, mode, limit):
    """Scales the gradients to the limit, also where they are under it."""
    return {name: g * (limit / norm) for name, g in grads.items()}


def clip_epsilon(original, grads, norm, mode, limit):
    """Adds 1e-6 to the norm before it divides by it."""
    coefficient = torch.clamp(limit / (norm + 1e-6), max=1)
    return {name: g * coefficient for name, g in grads.items()}


FAULTS = {
    "gradient-zero": {"forward": gradient_zero},
    "gradient-sign": {"forward": gradient_sign},
    "gradient-scaled": {"forward": gradient_scaled},
    "gradient-raised": {"forward": gradient_raised},
    "gradient-transposed": {"forward": gradient_transposed},
    "gradient-of-padding-zero": {"embed": gradient_of_padding_zero},
    "gradient-rows-averaged": {"embed": gradient_rows_averaged},
    "gradients-accumulated": {"gradients": gradients_accumulated},
    "gradients-stale": {"gradients": gradients_stale},
    "gradients-bfloat16": {"gradients": gradients_bfloat16},
    "norm-duplicates": {"embed": embedding_watched, "global_norm": norm_of_rows},
    "norm-without-embedding": {"global_norm": norm_without_embedding},
    "norm-without-biases": {"global_norm": norm_without_biases},
    "norm-largest": {"global_norm": norm_largest},
    "clip-elementwise": {"clip": clip_elementwise},
    "clip-per-tensor": {"clip": clip_per_tensor},
    "clip-never": {"clip": clip_never},
    "clip-always": {"clip": clip_always},
    "clip-epsilon": {"clip": clip_epsilon},
}
