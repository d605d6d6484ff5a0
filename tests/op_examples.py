"""For every op of the table: operands to try it on.

Lengths differ from axis to axis, nothing is zero, and numbers that decide (an epsilon, a limit) are
large enough to be seen.
"""

from typing import Any, NamedTuple

import numpy as np

DRAW = np.random.default_rng(5)


class Example(NamedTuple):
    """Operands (arrays, or plain numbers), arguments, and the operands that get no gradient."""

    operands: tuple
    args: dict[str, Any]
    fixed: tuple[int, ...] = ()


def ex(*operands, fixed=(), **args):
    """An example in the table."""
    return Example(operands, args, fixed)


def a(*shape, size=1.0):
    """Numbers about 0."""
    return DRAW.normal(size=shape) * size


def positive(*shape):
    """Numbers over 0."""
    return DRAW.uniform(0.2, 2.0, size=shape)


def tokens(*shape, of):
    """Integers from 0 to `of` - 1, of which the first ones are there more than once."""
    return np.asarray(DRAW.permutation(np.arange(int(np.prod(shape))) % of).reshape(shape))


X = a(3, 4, 5)  # [B, T, E]
Y = tokens(3, 4, of=5)
TABLE, TOKENS = a(6, 5), tokens(3, 4, of=6)
IMAGE, IMAGES = a(2, 3, 7, 6), a(2, 7, 6, 3)  # channels first, and last
KERNEL, KERNELS = a(4, 3, 3, 3), a(3, 3, 3, 4)
# A batch of which every channel has a mean of its own.
BATCH = a(4, 3, 5) + np.array([[[1.0], [-2.0], [0.5]]])
BATCH_LAST = np.moveaxis(BATCH, 1, -1)
GAIN, OFFSET, EPSILON = positive(3), a(3), 1e-2
Q, K, V = a(2, 5, 6), a(2, 5, 6), a(2, 5, 6)
LONG_K, LONG_V = a(2, 7, 6), a(2, 7, 6)
G = a(4, 3, size=2.0)
G[0] = -2.7, 2.9, 0.4
NORM, SMALL_NORM = np.asarray(7.0), np.asarray(1.5)
P, RATE = a(4, 3), np.asarray(0.3)
LOG_P = np.log(np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.4, 0.4, 0.2]]))

PIXELS = (IMAGE, KERNEL)
CONVOLUTIONS = (
    (PIXELS, dict(stride=2, padding=1)),
    (PIXELS, dict(stride=(1, 2), padding=(2, 0), dilation=(2, 1))),
    ((IMAGES, KERNELS), dict(padding="same", stride=2, layout="last")),
    ((a(2, 3, 9), a(4, 3, 2)), dict(stride=2)),
    ((a(2, 9, 3), a(2, 3, 4)), dict(padding="valid", layout="last")),
)
POOLS = (
    (IMAGE, dict(size=2)),
    (IMAGE, dict(size=(3, 2), stride=(2, 1), padding=1)),
    (IMAGES, dict(size=2, stride=2, padding="same", layout="last")),
    (IMAGES, dict(size=3, stride=2, padding="same", layout="last")),
)


def _with_gradient(name, cases):
    """Examples of an op's gradient: the operands of the op's own, and dy of its result's shape."""
    from harness.models.ops import find

    for operands, args in cases:
        dy = a(*find(name).formula(*operands, **args).shape)
        yield Example((*operands, dy), args)


def _each(names, *examples):
    return dict.fromkeys(names.split(), examples)


ATTENTIONS = (
    ((Q, K, V), dict(heads=2, causal=True)),
    ((Q, K, V), dict(heads=3, causal=False)),
    ((Q, LONG_K, LONG_V), dict(heads=1, causal=False)),
)
POOLED = [((x,), args) for x, args in POOLS]
COUNTED = [((x,), dict(args, padded=padded)) for x, args in POOLS for padded in (True, False)]

EXAMPLES = {
    "embed": (ex(TABLE, TOKENS),),
    "embed_backward": (ex(TABLE, TOKENS, X),),
    "embed_padded": (ex(TABLE, TOKENS, padding=2),),
    "embed_padded_backward": (ex(TABLE, TOKENS, X, padding=2),),
    "linear": (ex(X, a(5, 2)),),
    "outer": (ex(X, a(3, 4, 2)),),
    "transpose": (ex(a(5, 2)),),
    "bias": (ex(X, a(5)),),
    "bias_channels": (ex(IMAGE, a(3)), ex(IMAGES, a(3), axis=-1)),
    "sum_rows": (ex(X),),
    "sum_channels": (ex(IMAGE), ex(IMAGES, axis=-1)),
    "add": (ex(X, a(3, 4, 5), a(3, 4, 5)),),
    "multiply": (ex(X, a(3, 4, 5), a(3, 4, 5)),),
    "scale": (ex(X, np.asarray(0.7), fixed=(1,)),),
    "complement": (ex(X),),
    "negate": (ex(X),),
    "block": (ex(a(3, 6), index=1, of=3),),
    "place_block": (ex(a(3, 2), index=1, of=3),),
    "dropout": (ex(X, DRAW.random((3, 4, 5)) < 0.7, 0.3),),
    "part": (ex(X, start=1, stop=-1),),
    "part_backward": (ex(X, a(3, 2, 5), start=1, stop=-1),),
    "last": (ex(X),),
    **_each("mean_square mean_square_slope", ex(X)),
    **_each("sigmoid sigmoid_slope tanh tanh_slope", ex(X * 2)),
    **_each("relu relu_slope silu silu_slope gelu gelu_slope gelu_tanh gelu_tanh_slope", ex(X * 2)),
    **_each("leaky_relu leaky_relu_slope elu elu_slope", ex(X * 2, 0.25)),
    **_each("softmax log_softmax", ex(X), ex(X, axis=1)),
    **_each("softmax_backward log_softmax_backward", ex(X, a(3, 4, 5)), ex(X, a(3, 4, 5), axis=1)),
    "attention": tuple(Example(*case) for case in ATTENTIONS),
    **{
        f"attention_{part}": tuple(_with_gradient("attention", ATTENTIONS))
        for part in ("queries", "keys", "values")
    },
    "conv": tuple(Example(*case) for case in CONVOLUTIONS),
    "conv_backward": tuple(_with_gradient("conv", CONVOLUTIONS)),
    "conv_kernel": tuple(_with_gradient("conv", CONVOLUTIONS)),
    "max_pool": tuple(Example(*case) for case in POOLED),
    "max_pool_backward": tuple(_with_gradient("max_pool", POOLED)),
    "average_pool": tuple(Example(*case) for case in COUNTED),
    "average_pool_backward": tuple(_with_gradient("average_pool", COUNTED)),
    **_each("cross_entropy cross_entropy_slope", ex(X, Y, time="sum"), ex(X, Y, time="mean")),
    "nll_loss": (ex(LOG_P, np.array([2, 0, 1, 0])), ex(X, Y), ex(X, Y, reduce="batch")),
    "nll_loss_slope": (ex(LOG_P, np.array([2, 0, 1, 0])), ex(X, Y), ex(X, Y, reduce="batch")),
    **_each(
        "squared_error squared_error_slope absolute_error absolute_error_slope",
        *(ex(X, a(3, 4, 5), fixed=(1,), reduce=how) for how in ("mean", "sum", "batch")),
    ),
    **_each(
        "logistic_loss logistic_loss_slope",
        *(
            ex(X, DRAW.random((3, 4, 5)).round(), fixed=(1,), reduce=how)
            for how in ("mean", "sum", "batch")
        ),
    ),
    "layer_norm": (ex(X + 0.5, positive(5), a(5), EPSILON),),
    "layer_norm_backward": (ex(X + 0.5, positive(5), EPSILON, a(3, 4, 5)),),
    "layer_norm_gain_backward": (ex(X + 0.5, EPSILON, a(3, 4, 5)),),
    "rms_norm": (ex(X + 0.5, positive(5), EPSILON),),
    "rms_norm_backward": (ex(X + 0.5, positive(5), EPSILON, a(3, 4, 5)),),
    "rms_norm_gain_backward": (ex(X + 0.5, EPSILON, a(3, 4, 5)),),
    "batch_norm": (
        ex(BATCH, GAIN, OFFSET, EPSILON),
        ex(BATCH_LAST, GAIN, OFFSET, EPSILON, axis=-1),
    ),
    "batch_norm_backward": (
        ex(BATCH, GAIN, EPSILON, a(4, 3, 5)),
        ex(BATCH_LAST, GAIN, EPSILON, a(4, 5, 3), axis=-1),
    ),
    "batch_norm_gain_backward": (
        ex(BATCH, EPSILON, a(4, 3, 5)),
        ex(BATCH_LAST, EPSILON, a(4, 5, 3), axis=-1),
    ),
    **_each("running_mean running_variance", ex(positive(3), BATCH, 0.1)),
    **_each("running_mean_keras running_variance_keras", ex(positive(3), BATCH_LAST, 0.9)),
    **_each("l2_normalize l2_normalize_keras", ex(X, 1.5), ex(X * 3, 0.01, axis=1)),
    "l2_normalize_backward": (ex(X, 1.5, a(3, 4, 5)), ex(X * 3, 0.01, a(3, 4, 5), axis=1)),
    "last_backward": (ex(X, a(3, 5)),),
    **_each("broadcast_add broadcast_multiply", ex(X, a(4, 5)), ex(X, a(3, 1, 5)), ex(X, a(1, 1))),
    "sum_to": (ex(a(4, 5), X), ex(a(3, 1, 5), X)),
    "matmul": (ex(a(2, 3, 4, 5), a(2, 3, 5, 6)),),
    "swap_last": (ex(X),),
    "causal_mask": (ex(a(2, 4, 4), fill=-10.0), ex(a(2, 3, 5), fill=-10.0)),
    **_each("exp softplus", ex(X)),
    "log": (ex(positive(3, 4)),),
    "divide": (ex(X, positive(3, 4, 5)),),
    "stop_gradient": (ex(X, fixed=(0,)),),
    **_each("root no_root", ex(positive(3, 4))),
    **_each("squares absolutes mean_of_squares norm_of_one", ex(G)),
    "carried": (ex(X),),
    "reshape": (ex(X, shape=(4, -1)),),
    "reshape_like": (ex(X, a(12, 5)),),
    "flatten": (ex(IMAGE), ex(IMAGE, start=2)),
    "permute": (ex(X, axes=(1, 2, 0)),),
    "cut": (ex(X, axis=1, start=1, stop=2), ex(a(3, 6), axis=-1, start=2, stop=4)),
    "cut_backward": (ex(X, a(*X.shape[:1], 1, *X.shape[2:]), axis=1, start=1, stop=2),),
    "concat": (ex(X, a(3, 4, 2), a(3, 4, 3)), ex(X, a(3, 1, 5), axis=1)),
    "concat_part": (ex(a(3, 4, 7), X, a(3, 4, 2), index=1),),
    "mean_over": (ex(X, axis=1), ex(IMAGE, axis=(2, 3))),
    "sum_over": (ex(X, axis=1), ex(IMAGE, axis=(2, 3))),
    **_each("spread_mean spread_sum", ex(X, a(3, 5), axis=1), ex(IMAGE, a(2, 3), axis=(2, 3))),
    **_each(
        "global_norm global_norm_squared absolute_norm largest_norm sum_of_norms"
        " largest_of_norms root_mean_square",
        ex(G, a(5)),
    ),
    **_each(
        "clip_by_norm clip_elements clip_tensor unclipped clip_torch scale_to_norm"
        " clip_from_above clip_twice clip_by_root clip_by_sum clip_by_power",
        ex(G, NORM, 2.0),
        ex(G, SMALL_NORM, 2.0),
        ex(G, np.asarray(0.05), 0.02),  # where 1e-6 beside the norm is seen
    ),
    **_each("square absolute identity", ex(G)),
    **_each(
        "average undamped average_swapped added_up kept replaced forgotten", ex(a(4, 3), G, 0.8)
    ),
    **_each(
        "velocity velocity_keras velocity_inside velocity_dampened velocity_kept"
        " velocity_forgotten",
        ex(a(4, 3), G, 0.8, RATE),
    ),
    **_each(
        "along_velocity along_velocity_keras along_velocity_inside nesterov nesterov_keras"
        " along_gradient unmoved",
        ex(P, a(4, 3), G, RATE, 0.8),
    ),
    **_each("descend ascend stay", ex(P, G, RATE)),
    **_each(
        "adam adam_keras adam_inside adam_keras_inside adam_largest adam_uncorrected"
        " adam_v_corrected adam_m_corrected adam_m_later adam_v_later adam_no_root adam_unmoved",
        ex(P, a(4, 3), positive(4, 3), RATE, 0.8, 0.95, 0.5, 3),
    ),
    **_each(
        "over_root over_root_inside over_root_largest over_no_root over_nothing over_root_unmoved",
        ex(P, G, positive(4, 3), RATE, 0.5),
    ),
    **_each("decay_gradient undecayed_gradient decay_gradient_negated", ex(G, P, 0.1)),
    **_each(
        "decay_weights undecayed_weights decay_weights_alone decay_weights_after",
        ex(a(4, 3), P, RATE, 0.1),
    ),
}
