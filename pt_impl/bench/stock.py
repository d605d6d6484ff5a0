"""The stock language model in PyTorch: what its own layers and optimizer make of the same run."""

import sys

import torch
from torch import nn
from torch.nn import functional

from harness.bench.stock import check, windows
from harness.data import weights
from harness.data.layouts import to_layout
from harness.models.layouts import LAYOUTS
from harness.side.serving import main


class Model(nn.Module):
    """nn.Embedding, nn.LSTM, nn.Linear, and the loss; tokens are time-major, as nn.LSTM works."""

    def __init__(self, model, train):
        """All layers, their weights not yet those of the run."""
        super().__init__()
        self.train_spec = train
        self.encoder = nn.Embedding(model.vocab_size, model.embed_size)
        self.rnn = nn.LSTM(
            model.embed_size, model.hidden_size, model.num_layers, dropout=model.dropout
        )
        self.decoder = nn.Linear(model.hidden_size, model.vocab_size)
        self.drop = nn.Dropout(model.dropout)

    def forward(self, x, y, state):
        """The loss of one window, and the state after it.

        Args:
            x: input tokens [T, B].
            y: target tokens [T * B].
            state: h and c, each [L, B, H].

        """
        hidden, state = self.rnn(self.drop(self.encoder(x)), state)  # [T, B, H]
        logits = self.decoder(self.drop(hidden)).flatten(0, 1)  # [T * B, V]
        mean = functional.cross_entropy(logits, y)
        return mean if self.train_spec.loss == "mean" else mean * self.train_spec.bptt, state


def train(run, report):
    """Run the steps of `run`; a line a step, and no trace."""
    check(run)
    torch.set_num_threads(run.threads)
    torch.set_flush_denormal(True)  # as the twin does
    torch.manual_seed(run.train.seed)
    torch.set_default_dtype(getattr(torch, run.train.dtype))
    model = Model(run.model, run.train)
    arrays = to_layout(weights.load(run.weights, run.model), LAYOUTS["torch"])
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    compute = torch.compile(model) if run.train.compile else model
    optimizer = torch.optim.SGD(model.parameters(), lr=run.train.lr, fused=True)
    shape = (run.model.num_layers, run.train.batch_size, run.model.hidden_size)
    for step, lr, window in windows(run):
        if window.first:
            state = (torch.zeros(shape), torch.zeros(shape))
        x, y = (torch.from_numpy(part.T.astype("int64")) for part in (window.x, window.y))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss, state = compute(x, y.flatten(), state)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.train.clip_limit)
        optimizer.step()
        state = tuple(part.detach() for part in state)
        report(step=step, loss=loss.item())


if __name__ == "__main__":
    sys.exit(main(train))
