"""A LightningModule that is fitted; recorded where FOLDER is given.

python lightning_fit.py OUT [--record] [--accumulate N] [--rate R]: the weights go to OUT.
"""

import argparse
import logging
import warnings

import torch
from torch import nn
from torch.nn import functional

try:
    import lightning.pytorch as pl
except ImportError:
    import pytorch_lightning as pl

import harness

logging.getLogger(pl.__name__).setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Net(pl.LightningModule):
    """Two layers."""

    def __init__(self, rate):
        super().__init__()
        self.inward, self.outward, self.rate = nn.Linear(6, 8), nn.Linear(8, 3), rate

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.outward(torch.relu(self.inward(x))), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.01)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Net(given.rate)
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(48, 6, generator=draw), torch.randint(3, (48,), generator=draw)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=given.accumulate,
        gradient_clip_val=0.1,
        callbacks=[harness.callback(model, label="fit")] if given.record else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    torch.save(model.state_dict(), given.out)


if __name__ == "__main__":
    main()
