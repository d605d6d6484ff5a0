"""The matrix products of one training step: the shapes, and nothing else of the model."""

from __future__ import annotations

from harness.spec import ModelSpec, TrainSpec


def shapes(model: ModelSpec, train: TrainSpec) -> list[tuple[int, int, int, int]]:
    """The products [m, k] x [k, n] of a step, forwards and backwards, as (count, m, k, n).

    A layer's input product covers all timesteps at once, its recurrent product one; backwards each
    has one product for its input's gradient and one for its weights', that of the recurrent weights
    over all timesteps at once. Nothing is computed twice, and nothing else is computed.
    """
    B, T = train.batch_size, train.bptt
    E, H, V = model.embed_size, model.hidden_size, model.vocab_size
    products = []
    for k in range(model.num_layers):
        inputs = E if k == 0 else H
        products += [
            (1, B * T, inputs, 4 * H),  # x w_i
            (T, B, H, 4 * H),  # h w_h
            (1, B * T, 4 * H, inputs),  # dz w_i^T
            (1, inputs, B * T, 4 * H),  # x^T dz
            (T, B, 4 * H, H),  # dz w_h^T
            (1, H, B * T, 4 * H),  # h^T dz
        ]
    return [
        *products,
        (1, B * T, H, V),  # h softmax_w
        (1, B * T, V, H),  # dlogits softmax_w^T
        (1, H, B * T, V),  # h^T dlogits
    ]
