"""A language model in PyTorch as one was written in 2018: nn.LSTM, and gradients that are clipped.

python lstm_pt.py --steps 20
"""

import argparse

import torch
from text import CHARACTERS, batches
from torch import nn
from torch.nn import functional

import harness

WIDTH, HIDDEN, LIMIT = 16, 32, 0.2


class Model(nn.Module):
    """Embedding, one LSTM, logits."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(len(CHARACTERS), WIDTH)
        self.rnn = nn.LSTM(WIDTH, HIDDEN, bias=False, batch_first=True)
        self.decoder = nn.Linear(HIDDEN, len(CHARACTERS))

    def forward(self, x):
        out, _ = self.rnn(self.encoder(x))
        return self.decoder(out)


def main():
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clip", choices=["norm", "elements"], default="elements")
    given = parser.parse_args()
    torch.manual_seed(1)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=8.0)
    with harness.record(model, optimizer) as rec:
        for x, y in batches(given.steps):
            with rec.step(x=torch.tensor(x), y=torch.tensor(y).long()) as (x, y):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
                loss.backward()
                if given.clip == "norm":
                    nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
                else:
                    for p in model.parameters():
                        p.grad.data.clamp_(-LIMIT, LIMIT)
                optimizer.step()
                rec.log(loss=loss.item())
            print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
