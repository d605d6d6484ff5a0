"""The LSTM cell and a layer of it over time."""

import numpy as np


def unseen(name, value, t):
    """What a stage shows its result to where nobody watches: goes on with `value` itself."""
    return value


def sigmoid(x):
    """1 / (1 + exp(-x)) of any shape, from exp(-|x|) alone: it never overflows."""
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, np.ones_like(small)) / (1 + small)


def lstm_cell(z, c, see=unseen, t=None):
    """One timestep of an LSTM from its gate pre-activations.

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
    (Zaremba et al. 2014, arXiv 1409.2329, section 3.1, whose j is g here; no forget-bias offset).

    Args:
        z: pre-activations [B, 4H], blocks in the order i, f, g, o.
        c: cell state [B, H].
        see: shown each result; returns what goes on (np_impl.points).
        t: the timestep.

    Returns:
        The new hidden state and cell state, each [B, H].

    """
    i, f, g, o = np.split(z, 4, axis=1)  # each [B, H]
    c = see("c", sigmoid(f) * c + sigmoid(i) * np.tanh(g), t)  # [B, H]
    h = see("h", sigmoid(o) * np.tanh(c), t)  # [B, H]
    return h, c


def lstm_cell_backward(z, c, new_c, dh, dc, see=unseen, t=None):
    """The derivatives of `lstm_cell`, where dx stands for dLoss/dx.

    With s = sigmoid, s' = s (1 - s) and tanh' = 1 - tanh^2:
    dc' = dc + dh s(o) tanh'(c'), and from it di = dc' tanh(g) s'(i), df = dc' c s'(f),
    dg = dc' s(i) tanh'(g), do = dh tanh(c') s'(o), and s(f) dc' for the cell state before
    (Graves 2012, Supervised Sequence Labelling with Recurrent Neural Networks, section 4.6.2,
    without its peepholes).

    Args:
        z: pre-activations [B, 4H] that went on.
        c: cell state before the timestep [B, H].
        new_c: cell state that went on from it [B, H].
        dh: all that arrives at the new hidden state, from above and from the timestep after [B, H].
        dc: what arrives at the new cell state from the timestep after [B, H].
        see: shown each result; returns what goes on.
        t: the timestep.

    Returns:
        Gradients of z [B, 4H] and of c [B, H].

    """
    i, f, g, o = np.split(z, 4, axis=1)  # each [B, H]
    i, f, g, o, tanh_c = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o), np.tanh(new_c)
    dh = see("h", dh, t)  # [B, H]
    dc = see("c", dc + dh * o * (1 - tanh_c * tanh_c), t)  # [B, H]
    blocks = [
        dc * g * i * (1 - i),
        dc * c * f * (1 - f),
        dc * i * (1 - g * g),
        dh * tanh_c * o * (1 - o),
    ]
    return np.concatenate(blocks, axis=1), dc * f  # [B, 4H], [B, H]


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
    return np.reshape(np.reshape(x, [B * T, width]) @ w + b, [B, T, -1])


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
    B, T, width = x.shape
    flat = np.reshape(dy, [B * T, -1])  # [B T, out]
    dw = np.reshape(x, [B * T, width]).T @ flat  # [in, out]
    return np.reshape(flat @ w.T, x.shape), dw, np.sum(flat, axis=0)


def lstm_layer(x, h, c, w_i, w_h, b_i, b_h, see=unseen):
    """A layer over time: z_t = x_t w_i + b_i + h_(t-1) w_h + b_h, then the cell.

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
    for t, z in enumerate(np.moveaxis(project(x, w_i, b_i), 1, 0)):
        z = see("gates", z + h @ w_h + b_h, t)  # [B, 4H]
        h, c = lstm_cell(z, c, see, t)
        hidden.append(h)
        cell.append(c)
    return hidden, cell


def lstm_layer_backward(x, h, c, w_i, w_h, gates, hidden, cell, d_hidden, d_cell, see=unseen):
    """The derivatives of `lstm_layer`: back-propagation through time, last timestep first.

    dh_t is what comes from above and dz_(t+1) w_h^T; dw_h = sum over t of h_(t-1)^T dz_t; both
    biases have the sum of dz (Werbos 1990, Backpropagation through time; nothing is cut off within
    the window, as in Graves and Schmidhuber 2005 and unlike Hochreiter and Schmidhuber 1997).

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
        d_cell: gradients of the cell states from outside the layer [B, T, H].
        see: shown the gradients "h", "c" and "gates" of every timestep; returns what goes on.

    Returns:
        Gradients of x, h, c, w_i, w_h, b_i and b_h.

    """
    h_before, c_before = [h, *hidden[:-1]], [c, *cell[:-1]]
    dh, dc, dz = np.zeros_like(h), np.zeros_like(c), []
    for t in reversed(range(len(gates))):
        dh, dc = d_hidden[:, t] + dh, d_cell[:, t] + dc  # [B, H]
        dz_t, dc = lstm_cell_backward(gates[t], c_before[t], cell[t], dh, dc, see, t)
        dz.insert(0, see("gates", dz_t, t))  # [B, 4H]
        dh = dz[0] @ w_h.T  # [B, H]
    dz = np.stack(dz, axis=1)  # [B, T, 4H]
    dx, dw_i, db = project_backward(x, w_i, dz)
    dw_h = np.tensordot(np.stack(h_before, axis=1), dz, axes=([0, 1], [0, 1]))  # [H, 4H]
    return dx, dh, dc, dw_i, dw_h, db, db
