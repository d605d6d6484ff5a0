"""The LSTM cell and a layer of it over time."""

import torch


def lstm_cell(z, c):
    """One timestep of an LSTM from its gate pre-activations.

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
    (Zaremba et al. 2014, arXiv 1409.2329, section 3.1, whose j is g here; no forget-bias offset).

    Args:
        z: pre-activations [B, 4H], blocks in the order i, f, g, o.
        c: cell state [B, H].

    Returns:
        The new hidden state and cell state, each [B, H].

    """
    i, f, g, o = torch.split(z, z.shape[1] // 4, dim=1)  # each [B, H]
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)  # [B, H]
    h = torch.sigmoid(o) * torch.tanh(c)  # [B, H]
    return h, c


def lstm_layer(x, h, c, w_i, w_h, b_i, b_h):
    """A layer over time: z_t = x_t w_i + b_i + h_(t-1) w_h + b_h, then the cell.

    Args:
        x: inputs [B, T, E].
        h: hidden state before the first timestep [B, H].
        c: cell state before the first timestep [B, H].
        w_i: input weights [E, 4H].
        w_h: recurrent weights [H, 4H].
        b_i: bias of the input product [4H].
        b_h: bias of the recurrent product [4H].

    Returns:
        Three lists of T tensors: pre-activations [B, 4H], hidden and cell states [B, H].

    """
    B, T, E = x.shape
    projected = torch.reshape(torch.reshape(x, [B * T, E]) @ w_i + b_i, [B, T, -1])  # [B, T, 4H]
    gates, hidden, cell = [], [], []
    for z in torch.unbind(projected, dim=1):
        z = z + h @ w_h + b_h  # [B, 4H]
        h, c = lstm_cell(z, c)
        gates.append(z)
        hidden.append(h)
        cell.append(c)
    return gates, hidden, cell
