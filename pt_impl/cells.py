"""The LSTM cell and a layer of it over time."""

import torch


def unseen(name, value, t):
    """What a stage shows its result to where nobody watches: goes on with `value` itself."""
    return value


def lstm_cell(z, c, see=unseen, t=None):
    """One timestep of an LSTM from its gate pre-activations.

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
    (Zaremba et al. 2014, arXiv 1409.2329, section 3.1, whose j is g here; no forget-bias offset).

    Args:
        z: pre-activations [B, 4H], blocks in the order i, f, g, o.
        c: cell state [B, H].
        see: shown each result; returns what goes on (harness.side.points).
        t: the timestep.

    Returns:
        The new hidden state and cell state, each [B, H].

    """
    i, f, g, o = torch.split(z, z.shape[1] // 4, dim=1)  # each [B, H]
    c = see("c", torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g), t)  # [B, H]
    h = see("h", torch.sigmoid(o) * torch.tanh(c), t)  # [B, H]
    return h, c


def lstm_cell_backward(z, c, new_c):
    """What the derivatives of `lstm_cell` are multiplied with, where dx stands for dLoss/dx.

    With s = sigmoid, s' = s (1 - s) and tanh' = 1 - tanh^2, the gradient of the new cell state
    becomes dc' = dc + dh s(o) tanh'(c'), and from it di = dc' tanh(g) s'(i), df = dc' c s'(f),
    dg = dc' s(i) tanh'(g), do = dh tanh(c') s'(o), and s(f) dc' for the cell state before
    (Graves 2012, Supervised Sequence Labelling with Recurrent Neural Networks, section 4.6.2,
    without its peepholes). None of these factors depends on a gradient, so they are made for all
    timesteps at once.

    Args:
        z: pre-activations [T, B, 4H] that went on.
        c: cell states before each timestep [T, B, H].
        new_c: cell states that went on from it [T, B, H].

    Returns:
        Factors of dh in dc' [T, B, H], of dc' in the cell state before [T, B, H], and of
        (dc', dc', dc', dh) in dz [T, B, 4H].

    """
    i, f, g, o = torch.split(z, z.shape[2] // 4, dim=2)  # each [T, B, H]
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    tanh_c = torch.tanh(new_c)  # [T, B, H]
    blocks = [g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)]
    return o * (1 - tanh_c * tanh_c), f, torch.cat(blocks, dim=2)


def over_time(x, dy):
    """x^T dy summed over batch and time, as one product: the gradient of w where y = x w.

    Args:
        x: [B, T, in].
        dy: gradient of y [B, T, out].

    Returns:
        [in, out].

    """
    B, T, width = x.shape
    return torch.reshape(x, [B * T, width]).T @ torch.reshape(dy, [B * T, -1])


def project(x, w, b):
    """An affine map of the last axis: x w + b.

    Args:
        x: [B, T, in].
        w: [in, out].
        b: [out].

    Returns:
        [B, T, out].

    """
    B, T, width = x.shape
    return torch.reshape(torch.addmm(b, torch.reshape(x, [B * T, width]), w), [B, T, -1])


def project_backward(x, w, dy):
    """The derivatives of y = `project`: dx = dy w^T, dw = x^T dy, db = sum dy over B and T.

    (Goodfellow et al. 2016, Deep Learning, section 6.5.6: back-propagation of a matrix product.)

    Args:
        x: [B, T, in].
        w: [in, out].
        dy: gradient of the result [B, T, out].

    Returns:
        Gradients of x [B, T, in], of w [in, out] and of b [out].

    """
    dx = torch.reshape(torch.reshape(dy, [-1, dy.shape[2]]) @ w.T, x.shape)
    return dx, over_time(x, dy), torch.sum(dy, dim=[0, 1])


def lstm_layer(x, h, c, w_i, w_h, b_i, b_h, see=unseen):
    """A layer over time: z_t = x_t w_i + b_i + h_(t-1) w_h + b_h, then the cell.

    What does not wait for the timestep before, x_t w_i and the biases, is made for all at once.

    Args:
        x: inputs [B, T, E].
        h: hidden state before the first timestep [B, H].
        c: cell state before the first timestep [B, H].
        w_i: input weights [E, 4H].
        w_h: recurrent weights [H, 4H].
        b_i: bias of the input product [4H].
        b_h: bias of the recurrent product [4H].
        see: shown "gates", "c" and "h" of every timestep; returns what goes on.

    Returns:
        Two lists of T tensors: hidden and cell states [B, H].

    """
    hidden, cell = [], []
    for t, z in enumerate(torch.unbind(project(x, w_i, b_i + b_h), dim=1)):
        z = see("gates", torch.addmm(z, h, w_h), t)  # [B, 4H]
        h, c = lstm_cell(z, c, see, t)
        hidden.append(h)
        cell.append(c)
    return hidden, cell


def lstm_layer_backward(x, h, c, w_i, w_h, gates, hidden, cell, d_hidden, see=unseen):
    """The derivatives of `lstm_layer`: back-propagation through time, last timestep first.

    dh_t is what comes from above and dz_(t+1) w_h^T; the weights' gradients are one product over
    all timesteps, dw_h = sum over t of h_(t-1)^T dz_t; both biases have the sum of dz (Werbos 1990,
    Backpropagation through time; nothing is cut off within the window, as in Graves and Schmidhuber
    2005 and unlike Hochreiter and Schmidhuber 1997).

    Args:
        x: inputs [B, T, E].
        h: hidden state before the first timestep [B, H].
        c: cell state before the first timestep [B, H].
        w_i: input weights [E, 4H].
        w_h: recurrent weights [H, 4H].
        gates: the pre-activations that went on, T of [B, 4H].
        hidden: the hidden states that went on, T of [B, H].
        cell: the cell states that went on, T of [B, H].
        d_hidden: gradients of the hidden states from outside the layer [B, T, H].
        see: shown the gradients "h", "c" and "gates" of every timestep; returns what goes on.

    Returns:
        Gradients of x, w_i, w_h, b_i and b_h.

    """
    new_c, c_before = torch.stack(cell, dim=0), torch.stack([c, *cell[:-1]], dim=0)  # [T, B, H]
    of_dh, kept, of_dz = lstm_cell_backward(torch.stack(gates, dim=0), c_before, new_c)
    from_above = torch.unbind(d_hidden, dim=1)  # T of [B, H]
    dh, dc, dz = torch.zeros_like(h), torch.zeros_like(c), []
    for t in reversed(range(len(gates))):
        dh = see("h", from_above[t] + dh, t)  # [B, H]
        dc = see("c", dc + dh * of_dh[t], t)  # [B, H]
        dz.insert(0, see("gates", torch.cat([dc, dc, dc, dh], dim=1) * of_dz[t], t))  # [B, 4H]
        dh, dc = dz[0] @ w_h.T, dc * kept[t]  # [B, H] each
    dz = torch.stack(dz, dim=1)  # [B, T, 4H]
    dx, dw_i, db = project_backward(x, w_i, dz)
    dw_h = over_time(torch.stack([h, *hidden[:-1]], dim=1), dz)  # [H, 4H]
    return dx, dw_i, dw_h, db, db
