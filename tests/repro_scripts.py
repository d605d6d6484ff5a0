"""A training script of PyTorch and mistakes that can be made in it: traces, in one process.

Called as a program with a folder: it leaves NAME.trace of every variant there.
"""

import sys

VARIANTS = {
    "right": {},
    "layer_norm": {"ln_eps": 1e-3},
    "batch_norm": {"bn_eps": 1e-3},
    "gelu": {"gelu": "tanh"},
    "loss": {"reduction": "sum"},
    "mask": {"causal": False},
    "dropout": {"twice": True},
    "decay": {"bias_decay": 0.1},
    "epsilon": {"eps": 1e-3},
    "momentum": {"bn_momentum": 0.3},
    "sgd": {"optimizer": "SGD"},
    "sgd_nesterov": {"optimizer": "SGD", "nesterov": True},
    "rmsprop": {"optimizer": "RMSprop"},
    "rmsprop_rho": {"optimizer": "RMSprop", "alpha": 0.9},
    "adagrad": {"optimizer": "Adagrad"},
    "adagrad_start": {"optimizer": "Adagrad", "initial_accumulator_value": 0.1},
}


def train(
    path,
    *,
    ln_eps=1e-5,
    bn_eps=1e-5,
    bn_momentum=0.1,
    gelu="none",
    reduction="mean",
    causal=True,
    twice=False,
    bias_decay=0.0,
    optimizer="Adam",
    **args,
):
    import torch
    import torch.nn.functional as f
    from torch import nn

    import harness

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
            self.bn = nn.BatchNorm2d(6, bn_eps, bn_momentum)
            self.ln = nn.LayerNorm(6, ln_eps)
            self.table = nn.Embedding(7, 6, padding_idx=0)
            self.drop = nn.Dropout(0.25)
            self.act = nn.GELU(gelu)
            self.head = nn.Linear(6, 5)

        def forward(self, x, tokens):
            h = f.relu(self.bn(self.conv(x))).flatten(2).transpose(1, 2)  # [B, T, 6]
            h = self.ln(h + self.table(tokens))
            h = h + f.scaled_dot_product_attention(h, h, h, is_causal=causal)
            h = self.drop(self.act(h))
            h = h / 0.75 if twice else h
            return self.head(h.mean(1))

    torch.manual_seed(3)
    net = Net()
    torch.nn.init.normal_(net.conv.bias)
    biases = [p for n, p in net.named_parameters() if n.endswith("bias")]
    others = [p for n, p in net.named_parameters() if not n.endswith("bias")]
    args = {"lr": 0.01, **args}
    if optimizer == "Adam":
        args = {"eps": 1e-8, **args}
    if optimizer == "SGD":
        args = {"momentum": 0.9, **args}
    groups = [
        {"params": others, "weight_decay": 0.1},
        {"params": biases, "weight_decay": bias_decay},
    ]
    chosen = getattr(torch.optim, optimizer)(groups, **args)
    label = path.rpartition("/")[2].removesuffix(".trace")
    with harness.record(net, chosen, out=path, label=label) as rec:
        for _ in range(3):
            x, y = torch.randn(4, 3, 6, 6), torch.randint(5, (4,))
            tokens = torch.randint(7, (4, 9))
            with rec.step(x=x, tokens=tokens, y=y) as (x, tokens, y):
                chosen.zero_grad()
                loss = f.cross_entropy(net(x, tokens), y, reduction=reduction)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                chosen.step()
                rec.log(loss=loss)


if __name__ == "__main__":
    for name, changes in VARIANTS.items():
        train(f"{sys.argv[1]}/{name}.trace", **changes)
