"""Softmax cross-entropy over a window."""

import torch


def log_sum_exp(logits):
    """log sum_j exp(z_j) along the last axis, the largest subtracted first: never overflows.

    log sum_j exp(z_j) = max + log sum_j exp(z_j - max)

    Args:
        logits: [..., V].

    Returns:
        [..., 1].

    """
    # The maximum cancels out of the result, so no gradient flows through it.
    largest = torch.amax(logits, dim=-1, keepdim=True).detach()  # [..., 1]
    return largest + torch.log(torch.sum(torch.exp(logits - largest), dim=-1, keepdim=True))


def cross_entropy(logits, y, loss):
    """Negative log-likelihood of the targets, -log p = log sum_j exp(z_j) - z_y, averaged over B.

    Args:
        logits: [B, T, V].
        y: targets, integers [B, T].
        loss: "sum" or "mean" over time (Zaremba et al. 2014 sum; a mean shrinks lr by T).

    Returns:
        A scalar.

    """
    B, T = y.shape
    picked = torch.gather(logits, 2, y.long()[:, :, None]) - log_sum_exp(logits)  # [B, T, 1]
    total = -torch.sum(picked) / B
    return total if loss == "sum" else total / T


def cross_entropy_backward(logits, y, loss):
    """The derivative of `cross_entropy`: (p - onehot(y)) / B, p the softmax of the logits.

    Divided by T as well where the loss is a mean over time. (Bridle 1990, Probabilistic
    interpretation of feedforward classification network outputs.) The softmax and its logarithm are
    differentiated as one, so nothing is divided by a probability.

    Args:
        logits: [B, T, V].
        y: targets, integers [B, T].
        loss: "sum" or "mean" over time.

    Returns:
        Gradient of the logits [B, T, V].

    """
    B, T = y.shape
    count = B if loss == "sum" else B * T
    # In place on what was made here: the largest tensors of a step, of V for each token.
    p = (logits - torch.amax(logits, dim=-1, keepdim=True)).exp_()  # [B, T, V]
    p.mul_(1 / (torch.sum(p, dim=-1, keepdim=True) * count))
    target = torch.full([B, T, 1], -1 / count, dtype=p.dtype, device=p.device)
    return p.scatter_add_(2, y.long()[:, :, None], target)
