"""The language model: embedding, LSTM layers, softmax."""

import torch

from pt_impl.cells import lstm_layer


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


def forward(params, x, state, masks, model):
    """The model over one window, keeping what a trace wants to see.

    Args:
        params: tensors by canonical name (harness.spec.parameters).
        x: tokens, integers [B, T].
        state: h and c of each layer [B, H], by name "layer0/h".
        masks: dropout masks by site (harness.randomness.dropout_masks); empty without dropout.
        model: the ModelSpec.

    Returns:
        Logits [B, T, V]; the state after the last timestep; and the points in execution order by
        name, each a tensor or, for what the loop over time makes, a list of T tensors.

    """
    embedded = params["embedding"][x]  # [B, T, E]
    points, new_state = {"embedding": embedded}, {}
    inputs = dropout(embedded, masks.get("embedding"), model.dropout)  # [B, T, E]
    for k in range(model.num_layers):
        layer = f"layer{k}"
        weights = [params[f"{layer}/{name}"] for name in ("w_i", "w_h", "b_i", "b_h")]
        gates, h, c = lstm_layer(inputs, state[f"{layer}/h"], state[f"{layer}/c"], *weights)
        points |= {f"{layer}/gates": gates, f"{layer}/c": c, f"{layer}/h": h}
        new_state |= {f"{layer}/h": h[-1], f"{layer}/c": c[-1]}
        inputs = dropout(torch.stack(h, dim=1), masks.get(layer), model.dropout)  # [B, T, H]
    B, T, H = inputs.shape
    flat = torch.reshape(inputs, [B * T, H]) @ params["softmax_w"] + params["softmax_b"]
    logits = torch.reshape(flat, [B, T, -1])  # [B, T, V]
    return logits, new_state, points | {"logits": logits}
