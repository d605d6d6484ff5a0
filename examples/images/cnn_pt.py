"""A small CNN with batch normalization in PyTorch; images are [B, C, H, W].

python cnn_pt.py --steps 20
"""

import argparse

import torch
from images import CLASSES, SIZE, batches
from torch import nn
from torch.nn import functional

import harness


class Net(nn.Module):
    """Two of convolution, batch normalization, ReLU and pooling; then classes."""

    def __init__(self, epsilon, momentum):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8, eps=epsilon, momentum=momentum)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(12, eps=epsilon, momentum=momentum)
        self.head = nn.Linear(12 * (SIZE // 4) ** 2, CLASSES)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.bn2(self.conv2(x))), 2)
        return self.head(x.permute(0, 2, 3, 1).flatten(1))


def main():
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=1e-3, help="of batch normalization")
    parser.add_argument("--momentum", type=float, default=0.01, help="of batch normalization")
    parser.add_argument("--adam", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(1)
    model = Net(given.epsilon, given.momentum)
    if given.adam:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with harness.record(model, optimizer) as rec:
        for x, y in batches(given.steps):
            x, y = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y).long()
            with rec.step(x=x, y=y) as (x, y):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                rec.log(loss=loss)
            print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
