"""Softmax cross-entropy over a window."""

import torch


def log_softmax(logits):
    """Log-probabilities along the last axis, the largest logit subtracted first: never overflows.

    log p_k = z_k - max - log sum_j exp(z_j - max)

    Args:
        logits: [..., V].

    Returns:
        Log-probabilities [..., V].

    """
    # The maximum cancels out of the result, so no gradient flows through it.
    shifted = logits - torch.amax(logits, dim=-1, keepdim=True).detach()  # [..., V]
    return shifted - torch.log(torch.sum(torch.exp(shifted), dim=-1, keepdim=True))  # [..., V]


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
    picked = torch.gather(log_softmax(logits), 2, y.long()[:, :, None])[:, :, 0]  # [B, T]
    total = -torch.sum(picked) / B
    return total if loss == "sum" else total / T
