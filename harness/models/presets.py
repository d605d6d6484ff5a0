"""The models that `--model` names: fields of the ModelSpec and of the TrainSpec."""

from __future__ import annotations

from typing import Any

# How long the sources train them.
EPOCHS = {"zaremba-small": 13, "zaremba-medium": 39, "zaremba-large": 55, "awd-lstm": 500}
USUAL_EPOCHS = 10

PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Zaremba et al. 2014 (arXiv 1409.2329), section 4.1; clip and schedule as stated there.
    "zaremba-small": (
        dict(embed_size=200, hidden_size=200, num_layers=2, init_scale=0.1, dropout=0.0),
        dict(batch_size=20, bptt=20, lr=1.0, flat_epochs=4, lr_decay=2.0, clip_limit=5.0),
    ),
    "zaremba-medium": (
        dict(embed_size=650, hidden_size=650, num_layers=2, init_scale=0.05, dropout=0.5),
        dict(batch_size=20, bptt=35, lr=1.0, flat_epochs=6, lr_decay=1.2, clip_limit=5.0),
    ),
    "zaremba-large": (
        dict(embed_size=1500, hidden_size=1500, num_layers=2, init_scale=0.04, dropout=0.65),
        dict(batch_size=20, bptt=35, lr=1.0, flat_epochs=14, lr_decay=1.15, clip_limit=10.0),
    ),
    # A tanh RNN of the size of zaremba-small; its gradients need the smaller rate.
    "rnn": (
        dict(network="rnn", embed_size=200, hidden_size=200, num_layers=2, init_scale=0.1),
        dict(batch_size=20, bptt=20, lr=0.1, flat_epochs=4, lr_decay=2.0, clip_limit=5.0),
    ),
    # A GRU of the size of zaremba-small; at the rate of the LSTM its loss rises.
    "gru": (
        dict(network="gru", embed_size=200, hidden_size=200, num_layers=2, init_scale=0.1),
        dict(batch_size=20, bptt=20, lr=0.3, flat_epochs=4, lr_decay=2.0, clip_limit=5.0),
    ),
    # Characters (--tokens char): windows of four, one recurrent layer or two LSTMs. (With Adam a
    # gradient that is zero but for rounding moves its weight by a whole step, and none is close.)
    "char-rnn": (
        dict(network="rnn", embed_size=42, hidden_size=128, num_layers=1),
        dict(batch_size=512, bptt=4, lr=1.0, flat_epochs=4, lr_decay=2.0, loss="mean"),
    ),
    "char-gru": (
        dict(network="gru", embed_size=42, hidden_size=128, num_layers=1),
        dict(batch_size=512, bptt=4, lr=1.0, flat_epochs=4, lr_decay=2.0, loss="mean"),
    ),
    "char-lstm": (
        dict(embed_size=42, hidden_size=128, num_layers=2, dropout=0.5),
        dict(batch_size=512, bptt=4, lr=1.0, flat_epochs=4, lr_decay=2.0, loss="mean"),
    ),
    # Merity et al. 2017 (arXiv 1708.02182), section 5, Penn Treebank, without what its training
    # does besides (averaged weights, windows of varying length); the loss is a mean over time.
    "awd-lstm": (
        dict(
            **dict(network="awd-lstm", embed_size=400, hidden_size=1150, num_layers=3, tied=True),
            **dict(init_scale=0.1, dropout=0.4, embedding_dropout=0.1, input_dropout=0.4),
            **dict(layer_dropout=0.25, weight_dropout=0.5),
            **dict(activation_penalty=2.0, temporal_penalty=1.0),
        ),
        dict(
            **dict(batch_size=20, bptt=70, lr=30.0, lr_decay=1.0, loss="mean", clip_limit=0.25),
            weight_decay=1.2e-6,
        ),
    ),
}
