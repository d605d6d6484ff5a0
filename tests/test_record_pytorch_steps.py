"""Steps of PyTorch that few scripts have: several batches, closures, layers that run twice."""

import numpy as np
import pytest
import torch
from recorded.stages import disagreeing
from test_record_pytorch import Convolutions, images, made
from torch import nn
from torch.nn import functional as f

import harness


def test_a_loss_that_is_logged_for_each_of_several_batches_is_kept_for_each(tmp_path):
    model = made(Convolutions)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with harness.record(model, optimizer, out=tmp_path / "t") as rec:
        for i in range(2):
            with rec.step():
                optimizer.zero_grad()
                for x, y in (images(i), images(i + 5)):
                    loss = f.cross_entropy(model(x), y)
                    rec.log(loss=loss)  # before what is minimised is made of it
                    (loss / 2).backward()
                optimizer.step()
    wrong, right = disagreeing(tmp_path / "t")
    assert wrong == []
    assert "forward/loss:2" in right


def test_an_optimizer_whose_closure_makes_the_gradients_is_watched(tmp_path):
    model = made(Convolutions)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    with harness.record(model, optimizer, out=tmp_path / "t") as rec:
        for i in range(2):
            x, y = images(i)
            with rec.step(x=x, y=y) as (x, y):

                def closure(x=x, y=y):
                    optimizer.zero_grad()
                    loss = f.cross_entropy(model(x), y)
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    rec.log(loss=loss)
                    return loss

                optimizer.step(closure)
    wrong, _ = disagreeing(tmp_path / "t")
    assert wrong == []
    names = {entry.name for entry in harness.open_trace(tmp_path / "t").entry(2).tensors}
    for name in model.state_dict():
        if name.endswith("weight"):
            path = name.replace(".", "/")
            assert {f"grads/{path}", f"update/clipped/{path}", f"optimizer/{path}/m"} <= names


def test_a_dropout_that_runs_twice_in_a_step_is_handed_the_mask_of_each_time(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.dense = nn.Dropout(0.5), nn.Linear(4, 4)

        def forward(self, x):
            return self.drop(self.dense(self.drop(x)))

    led = {"inputs/mask/drop": np.eye(4, dtype=bool), "inputs/mask/drop:2": np.ones((4, 4), bool)}
    model = made(Twice)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with harness.record(model, optimizer, out=tmp_path / "t") as rec:
        rec._replay.feed = lambda number: led.get
        with rec.step(x=torch.ones(4, 4)) as x:
            model(x).sum().backward()
            optimizer.step()
    step = harness.open_trace(tmp_path / "t").step(1)
    for name, mask in led.items():
        np.testing.assert_array_equal(step.read(step.find(name)), mask)


@pytest.mark.parametrize("level", ["full", "stats"])
@pytest.mark.parametrize("kind", ["bfloat16", "sparse"])
def test_gradients_that_numpy_has_no_dtype_or_layout_for_are_recorded(kind, level, tmp_path):
    torch.manual_seed(1)
    if kind == "bfloat16":
        model, x = nn.Linear(256, 256).bfloat16(), torch.randn(4, 256).bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
    else:
        model, x = nn.Embedding(300, 128, sparse=True), torch.randint(300, (5,))
        optimizer = torch.optim.SparseAdam(model.parameters(), 0.1)
    with harness.record(model, optimizer, out=tmp_path / "t", level=level) as rec:
        for _ in range(2):
            with rec.step(x=x) as given:
                optimizer.zero_grad()
                model(given).float().square().mean().backward()
                optimizer.step()
    names = [entry.name for entry in harness.open_trace(tmp_path / "t").entry(2).tensors]
    assert "grads/weight" in names
    assert not [name for name in names if name.startswith("update/clipped/")]
