"""What a model is made of: each block of a row (harness.models.blocks) and its derivative.

A block is given what the one before it made, its parameters, the state that it carries, its masks
(None: nothing is dropped), and `see`, which is shown every timestep of its stages; it returns what
the next block reads and its state after the last timestep. A derivative is given the gradient of
what the block made, all that the block was given, the stages that went on, and `see` for their
gradients; it returns the gradient of what the block read, and those of its parameters.
"""

import torch

from harness.trace import Rows
from pt_impl.cells import lstm_layer, lstm_layer_backward, over_time, project, project_backward


def dropout(x, mask, rate):
    """Zero what the mask drops and scale what it keeps by 1 / (1 - rate).

    Args:
        x: activations [B, T, width].
        mask: boolean [B, T, width], True where kept; None leaves x as it is.
        rate: the probability of dropping that the mask was drawn with.

    Returns:
        [B, T, width].

    """
    if mask is None:
        return x
    return x * mask.to(x.dtype) / (1 - rate)


def dropout_backward(dy, mask, rate):
    """The derivative of `dropout`, which is linear: the same mask and scale on the gradient.

    Args:
        dy: gradient of the result [B, T, width].
        mask: boolean [B, T, width]; None leaves dy as it is.
        rate: the probability of dropping.

    Returns:
        Gradient of the activations [B, T, width].

    """
    if mask is None:
        return dy
    return dy * mask.to(dy.dtype) / (1 - rate)


def embed(table, x):
    """The rows of `table` [V, E] that tokens x [B, T] name: [B, T, E]."""
    return table[x]


def embed_backward(table, x, dy):
    """The derivative of `embed`: row v of it is the sum of dy [B, T, E] wherever x [B, T] is v.

    Every other row is zero, so only those of the tokens read are made: as many rows as tokens, the
    sum at a token's first occurrence and zeros at the others.

    Args:
        table: [V, E].
        x: tokens, integers [B, T].
        dy: gradient of the embedded tokens [B, T, E].

    Returns:
        Rows (harness.trace) of the gradient [V, E].

    """
    tokens, flat = torch.reshape(x, [-1]), torch.reshape(dy, [-1, table.shape[1]])  # [B T, E]
    places = torch.arange(tokens.shape[0], device=tokens.device)
    same = tokens[:, None] == tokens[None, :]
    first = torch.amin(torch.where(same, places, tokens.shape[0]), dim=1)  # [B T]
    values = torch.index_add(torch.zeros_like(flat), 0, first, flat)
    return Rows(tokens, values, tuple(table.shape))


def embed_block(x, params, state, masks, see, rate=0):
    """The embedded tokens; a mask [V, 1] drops whole rows of the table."""
    return dropout(embed(*params, x), of_rows(masks, x), rate), []


def embed_block_backward(gradient, x, params, state, masks, seen, see, rate=0):
    """The derivative of `embed_block`; tokens have none."""
    gradient = dropout_backward(gradient, of_rows(masks, x), rate)
    return None, [embed_backward(*params, x, gradient)]


def of_rows(masks, x):
    """The mask of the rows that tokens x [B, T] name: [B, T, 1]; None where none is dropped."""
    mask = sole(masks)
    return None if mask is None else mask[x]


def sole(masks):
    """The mask of a block that has at most one."""
    return masks[0] if masks else None


def dropout_block(x, params, state, masks, see, rate):
    """Activations with what the mask of the site drops set to zero."""
    return dropout(x, *masks, rate), []


def dropout_block_backward(gradient, x, params, state, masks, seen, see, rate):
    """The derivative of `dropout_block`."""
    return dropout_backward(gradient, *masks, rate), []


def rnn_cell(a, h, w_h, see, t):
    """One timestep of a tanh RNN: tanh(a + h w_h), a being x w_i + b_i + b_h; all [B, H]."""
    return see("h", torch.tanh(see("a", a + h @ w_h, t)), t)


def rnn_block(x, params, state, masks, see):
    """A tanh RNN layer: a_t = x_t w_i + b_i + h_(t-1) w_h + b_h, h_t = tanh(a_t)."""
    (w_i, w_h, b_i, b_h), (h,), hidden = params, state, []
    for t, a in enumerate(torch.unbind(project(x, w_i, b_i + b_h), dim=1)):
        h = rnn_cell(a, h, w_h, see, t)
        hidden.append(h)
    return torch.stack(hidden, dim=1), [h]


def rnn_block_backward(gradient, x, params, state, masks, seen, see):
    """The derivative of `rnn_block`: da_t = dh_t (1 - tanh(a_t)^2), dh_(t-1) = da_t w_h^T.

    (Goodfellow et al. 2016, Deep Learning, section 10.2.2.)
    """
    (w_i, w_h, _, _), (h,), (before, hidden) = params, state, seen
    from_above, dh, da = torch.unbind(gradient, dim=1), torch.zeros_like(h), []
    for t in reversed(range(len(hidden))):
        tanh_a = torch.tanh(before[t])
        dh = see("h", from_above[t] + dh, t)  # [B, H]
        da.insert(0, see("a", dh * (1 - tanh_a * tanh_a), t))  # [B, H]
        dh = da[0] @ w_h.T
    da = torch.stack(da, dim=1)  # [B, T, H]
    dx, dw_i, db = project_backward(x, w_i, da)
    return dx, [dw_i, over_time(torch.stack([h, *hidden[:-1]], dim=1), da), db, db]


def gru_kept(r, h, w_n, b_n, reset):
    """What a GRU's candidate takes of the hidden state, reset after the product or before it."""
    kept = torch.sigmoid(r)  # [B, H]
    return kept * (h @ w_n + b_n) if reset == "after" else (kept * h) @ w_n + b_n


def gru_mixed(z, n, h):
    """A GRU's new hidden state, (1 - s(z)) tanh(n) + s(z) h: all [B, H]."""
    return (1 - torch.sigmoid(z)) * torch.tanh(n) + torch.sigmoid(z) * h


def gru_block(x, params, state, masks, see, reset):
    """A GRU layer: h_t = (1 - s(z_t)) tanh(n_t) + s(z_t) h_(t-1), s being the sigmoid.

    With a = x w_i + b_i and u = h_(t-1) w_h + b_h in blocks r, z, n: r = a_r + u_r, z = a_z + u_z
    and n = a_n + s(r) u_n, or, reset before the product, n = a_n + (s(r) h_(t-1)) w_hn + b_hn.
    """
    (w_i, w_h, b_i, b_h), (h,), hidden = params, state, []
    H = h.shape[1]
    w_rz, w_n, b_rz, b_n = w_h[:, : 2 * H], w_h[:, 2 * H :], b_h[: 2 * H], b_h[2 * H :]
    for t, a in enumerate(torch.unbind(project(x, w_i, b_i), dim=1)):
        rz = a[:, : 2 * H] + (h @ w_rz + b_rz)  # [B, 2H]
        r, z = (part.contiguous() for part in torch.split(rz, H, dim=1))  # [B, H] each
        r, z = see("r", r, t), see("z", z, t)
        n = see("n", a[:, 2 * H :] + gru_kept(r, h, w_n, b_n, reset), t)  # [B, H]
        h = see("h", gru_mixed(z, n, h), t)  # [B, H]
        hidden.append(h)
    return torch.stack(hidden, dim=1), [h]


def gru_block_backward(gradient, x, params, state, masks, seen, see, reset):
    """The derivative of `gru_block`: the chain rule through h_t, n_t, z_t and r_t in turn.

    With s' = s (1 - s): dn = dh (1 - s(z)) (1 - tanh(n)^2) and dz = dh (h_(t-1) - tanh(n)) s'(z).
    Reset after the product, du_n = dn s(r) and dr = dn u_n s'(r); before it, s(r) h_(t-1) has the
    gradient q = dn w_hn^T, and dr = q h_(t-1) s'(r). h_(t-1) gets dh s(z), what r and z send
    through w_h, and du_n w_hn^T or q s(r).
    """
    (w_i, w_h, _, b_h), (h,), (r, z, n, hidden) = params, state, seen
    H, after = h.shape[1], reset == "after"
    w_rz, w_n = w_h[:, : 2 * H], w_h[:, 2 * H :]
    before = torch.stack([h, *hidden[:-1]], dim=1)  # [B, T, H]
    r, z, n = (torch.stack(part, dim=1) for part in (r, z, n))  # each [B, T, H]
    r, z, n = torch.sigmoid(r), torch.sigmoid(z), torch.tanh(n)
    of_n, of_z = (1 - z) * (1 - n * n), (before - n) * z * (1 - z)
    of_r = r * (1 - r) * (project(before, w_n, b_h[2 * H :]) if after else before)
    from_above, dh, da = torch.unbind(gradient, dim=1), torch.zeros_like(h), []
    for t in reversed(range(len(hidden))):
        dh = see("h", from_above[t] + dh, t)  # [B, H]
        dn = see("n", dh * of_n[:, t], t)  # [B, H]
        dz = see("z", dh * of_z[:, t], t)  # [B, H]
        q = dn if after else dn @ w_n.T  # [B, H]
        dr = see("r", q * of_r[:, t], t)  # [B, H]
        through = q * r[:, t]  # [B, H]
        through = through @ w_n.T if after else through
        da.insert(0, torch.cat([dr, dz, dn], dim=1))  # [B, 3H]
        dh = dh * z[:, t] + through + da[0][:, : 2 * H] @ w_rz.T
    da = torch.stack(da, dim=1)  # [B, T, 3H]
    dx, dw_i, db_i = project_backward(x, w_i, da)
    du = da[:, :, 2 * H :] * r if after else da[:, :, 2 * H :]  # [B, T, H]
    du, read = torch.cat([da[:, :, : 2 * H], du], dim=2), before if after else r * before
    dw_h = [over_time(before, du[:, :, : 2 * H]), over_time(read, du[:, :, 2 * H :])]
    return dx, [dw_i, torch.cat(dw_h, dim=1), db_i, torch.sum(du, dim=[0, 1])]


def lstm_block(x, params, state, masks, see, rate=0):
    """An LSTM layer; a mask [H, 4H] drops elements of w_h, the same at all timesteps."""
    w_i, w_h, *biases = params
    w_h = dropout(w_h, sole(masks), rate)
    hidden, cell = lstm_layer(x, *state, w_i, w_h, *biases, see)
    return torch.stack(hidden, dim=1), [hidden[-1], cell[-1]]


def lstm_block_backward(gradient, x, params, state, masks, seen, see, rate=0):
    """The derivative of `lstm_block`."""
    (w_i, w_h, _, _), (gates, cell, hidden), mask = params, seen, sole(masks)
    given = [w_i, dropout(w_h, mask, rate), gates, hidden, cell]
    dx, dw_i, dw_h, *biases = lstm_layer_backward(x, *state, *given, gradient, see)
    return dx, [dw_i, dropout_backward(dw_h, mask, rate), *biases]


def project_block(x, params, state, masks, see, tied):
    """The logits; where `tied`, the weights are the transposed embedding."""
    w, b = params
    return project(x, w.T if tied else w, b), []


def project_block_backward(gradient, x, params, state, masks, seen, see, tied):
    """The derivative of `project_block`."""
    w, _ = params
    dx, dw, db = project_backward(x, w.T if tied else w, gradient)
    return dx, [dw.T.contiguous() if tied else dw, db]


def added(a, b):
    """The sum of two gradients of one parameter; `b` may be Rows (harness.trace)."""
    return a.index_add(0, b.rows, b.values) if isinstance(b, Rows) else a + b


def mean_square(x, factor):
    """factor mean(x^2), a scalar."""
    return factor * torch.mean(x * x)


def mean_square_backward(x, factor):
    """The derivative of `mean_square`: 2 factor x / N for the N elements of x."""
    return x * (2 * factor / x.numel())


def temporal(x, factor):
    """The same of what x [B, T, H] changes in time: factor mean((x_(t+1) - x_t)^2)."""
    return mean_square(x[:, 1:] - x[:, :-1], factor)


def temporal_backward(x, factor):
    """The derivative of `temporal`: each difference's goes to x_(t+1), and negated to x_t."""
    d = mean_square_backward(x[:, 1:] - x[:, :-1], factor)  # [B, T - 1, H]
    none = torch.zeros_like(x[:, :1])  # [B, 1, H]
    return torch.cat([none, d], dim=1) - torch.cat([d, none], dim=1)


def activation_block(x, params, state, masks, see, factor):
    """What the penalty `mean_square` is of, as it is."""
    return x, []


def activation_block_backward(gradient, x, params, state, masks, seen, see, factor):
    """The gradient, and that of the penalty."""
    return gradient + mean_square_backward(x, factor), []


def temporal_block(x, params, state, masks, see, factor):
    """What the penalty `temporal` is of, as it is."""
    return x, []


def temporal_block_backward(gradient, x, params, state, masks, seen, see, factor):
    """The gradient, and that of the penalty."""
    return gradient + temporal_backward(x, factor), []


# What a block adds to the loss: AR and TAR of Merity et al. 2017 (arXiv 1708.02182, section 4.6).
PENALTIES = {"activation": mean_square, "temporal": temporal}
KINDS = {
    "activation": (activation_block, activation_block_backward),
    "temporal": (temporal_block, temporal_block_backward),
    "embed": (embed_block, embed_block_backward),
    "dropout": (dropout_block, dropout_block_backward),
    "rnn": (rnn_block, rnn_block_backward),
    "gru": (gru_block, gru_block_backward),
    "lstm": (lstm_block, lstm_block_backward),
    "project": (project_block, project_block_backward),
}
