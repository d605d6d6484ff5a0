"""Softmax cross-entropy over a window."""

import tensorflow as tf


def log_softmax(logits):
    """Log-probabilities along the last axis, the largest logit subtracted first: never overflows.

    log p_k = z_k - max - log sum_j exp(z_j - max)

    Args:
        logits: [..., V].

    Returns:
        Log-probabilities [..., V].

    """
    # The maximum cancels out of the result, so no gradient flows through it.
    shifted = logits - tf.stop_gradient(tf.reduce_max(logits, axis=-1, keepdims=True))  # [..., V]
    return shifted - tf.math.log(tf.reduce_sum(tf.exp(shifted), axis=-1, keepdims=True))  # [..., V]


def cross_entropy(logits, y, loss):
    """Negative log-likelihood of the targets, averaged over the batch.

    Args:
        logits: [B, T, V].
        y: targets, integers [B, T].
        loss: "sum" or "mean" over time (Zaremba et al. 2014 sum; a mean shrinks lr by T).

    Returns:
        A scalar.

    """
    B, T = y.shape
    picked = tf.gather(log_softmax(logits), y, axis=2, batch_dims=2)  # [B, T]
    total = -tf.reduce_sum(picked) / B
    return total if loss == "sum" else total / T
