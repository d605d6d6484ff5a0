"""Ops that are gradients of others: of which, and by which operand."""

from __future__ import annotations

from typing import NamedTuple


class Slope(NamedTuple):
    """The gradient of op `of` by its operand `by`, times dy; or, `of_one`, each element's alone."""

    of: str
    by: str
    of_one: bool = False


_ELEMENTS = "relu leaky_relu elu silu gelu gelu_tanh sigmoid tanh"
_LOSSES = {
    "cross_entropy": "z",
    "logistic_loss": "x",
    "squared_error": "x",
    "absolute_error": "x",
    "nll_loss": "x",
    "mean_square": "x",
}

SLOPES = {
    **{f"{name}_slope": Slope(name, "x", True) for name in _ELEMENTS.split()},
    "embed_backward": Slope("embed", "table"),
    "embed_padded_backward": Slope("embed_padded", "table"),
    "conv_backward": Slope("conv", "x"),
    "conv_kernel": Slope("conv", "w"),
    "max_pool_backward": Slope("max_pool", "x"),
    "average_pool_backward": Slope("average_pool", "x"),
    "layer_norm_backward": Slope("layer_norm", "x"),
    "layer_norm_gain_backward": Slope("layer_norm", "gain"),
    "rms_norm_backward": Slope("rms_norm", "x"),
    "rms_norm_gain_backward": Slope("rms_norm", "gain"),
    "batch_norm_backward": Slope("batch_norm", "x"),
    "batch_norm_gain_backward": Slope("batch_norm", "gain"),
    "l2_normalize_backward": Slope("l2_normalize", "x"),
    "softmax_backward": Slope("softmax", "x"),
    "log_softmax_backward": Slope("log_softmax", "x"),
    "attention_queries": Slope("attention", "q"),
    "attention_keys": Slope("attention", "k"),
    "attention_values": Slope("attention", "v"),
    "spread_mean": Slope("mean_over", "x"),
    "spread_sum": Slope("sum_over", "x"),
    "cut_backward": Slope("cut", "x"),
    "part_backward": Slope("part", "x"),
    "last_backward": Slope("last", "x"),
    **{f"{name}_slope": Slope(name, by) for name, by in _LOSSES.items()},
}
