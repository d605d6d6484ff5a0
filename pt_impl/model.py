"""The language model: embedding, LSTM layers, softmax."""

import torch

from pt_impl.cells import lstm_layer, project


def zero_state(model, batch_size, dtype):
    """The state at the start of an epoch: h and c of each layer, zeros [B, H]."""
    shape = [batch_size, model.hidden_size]
    return {
        f"layer{k}/{part}": torch.zeros(shape, dtype=dtype)
        for k in range(model.num_layers)
        for part in ("h", "c")
    }


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


def embed(table, x):
    """The rows of `table` [V, E] that tokens x [B, T] name: [B, T, E]."""
    return table[x]


def carry(state, first, model, train):
    """The state that a window starts from: the last one's, or zeros at the start of an epoch.

    Args:
        state: h and c of each layer [B, H] after the last window; None before the first.
        first: whether an epoch begins.
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        The state by name.

    """
    return zero_state(model, train.batch_size, getattr(torch, train.dtype)) if first else state


def forward(params, x, state, masks, model, points):
    """The model over one window.

    Args:
        params: tensors by canonical name (harness.spec.parameters).
        x: tokens, integers [B, T].
        state: h and c of each layer [B, H], by name "layer0/h".
        masks: dropout masks by site (harness.randomness.dropout_masks); empty without dropout.
        model: the ModelSpec.
        points: shown every stage (pt_impl.points).

    Returns:
        Logits [B, T, V] and the state after the last timestep.

    """
    embedded = points.see("forward/embedding", embed(params["embedding"], x))  # [B, T, E]
    inputs = dropout(embedded, masks.get("embedding"), model.dropout)  # [B, T, E]
    new_state = {}
    for k in range(model.num_layers):
        layer = f"layer{k}"
        weights = [params[f"{layer}/{name}"] for name in ("w_i", "w_h", "b_i", "b_h")]
        see = points.within(f"forward/{layer}")
        h, c = lstm_layer(inputs, state[f"{layer}/h"], state[f"{layer}/c"], *weights, see)
        new_state |= {f"{layer}/h": h[-1], f"{layer}/c": c[-1]}
        inputs = dropout(torch.stack(h, dim=1), masks.get(layer), model.dropout)  # [B, T, H]
    logits = project(inputs, params["softmax_w"], params["softmax_b"])  # [B, T, V]
    return points.see("forward/logits", logits), new_state
