"""The tiny models that faults are planted in: settings by name."""

from __future__ import annotations

from collections.abc import Mapping

# What all have, on the built-in corpus: no two sizes are equal, and in a run of the LSTM the norm
# of the gradients first passes the limit at step 3.
BASE: Mapping[str, str] = {
    "embed_size": "7",
    "hidden_size": "11",
    "batch_size": "3",
    "bptt": "5",
    "lr": "2.0",
    "init_scale": "0.4",
    "clip_limit": "1.84",
}
# Of characters: one recurrent layer (or two LSTMs), and a mean over time for the loss.
CHARACTERS = {"hidden_size": "13", "loss": "mean"}
# Limits of clipping are such that the norm passes them within four steps, and not at the first.
MODELS: Mapping[str, Mapping[str, str]] = {
    "lstm": {},
    "rnn": {"network": "rnn", "lr": "0.5", "clip_limit": "4"},
    "gru": {"network": "gru", "clip_limit": "3"},
    "gru-before": {"network": "gru", "reset": "before", "clip_limit": "3"},
    # Tied, the two sizes are one; AWD-LSTM's last layer is as wide as the embedding instead.
    "tied": {"tied": "true", "embed_size": "11", "clip_limit": "1.9"},
    "awd-lstm": {
        "network": "awd-lstm",
        "tied": "true",
        "loss": "mean",
        "lr": "50",
        "clip_limit": "0.6",
        "dropout": "0.4",
        "embedding_dropout": "0.15",
        "input_dropout": "0.3",
        "layer_dropout": "0.25",
        "weight_dropout": "0.35",
        "activation_penalty": "3.0",
        "temporal_penalty": "1.0",
    },
    "char-rnn": {**CHARACTERS, "network": "rnn", "num_layers": "1", "clip_limit": "0.78"},
    "char-gru": {**CHARACTERS, "network": "gru", "num_layers": "1", "clip_limit": "0.45"},
    "char-lstm": {**CHARACTERS, "dropout": "0.4", "clip_limit": "0.4"},
}
