"""Depth "ops": functional operations between modules as points, and that nothing changes."""

import pytest
from recorded.stages import disagreeing

import harness
from harness.cli.main import main

torch = pytest.importorskip("torch")
nn, f = torch.nn, torch.nn.functional


class Mixed(nn.Module):
    """Operations in place, on parts, of several results; attention by hand; a residual stream."""

    def __init__(self):
        super().__init__()
        self.inward, self.lstm = nn.Linear(5, 6), nn.LSTM(6, 6, batch_first=True)
        self.norm, self.outward = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.inward(x)
        h = h * 1.5
        h *= 2
        g = h.clone()
        g[:, 0] = 0
        g.view(-1)[:4].mul_(3)
        a, b = (g + h).chunk(2, -1)
        h = torch.cat([torch.sigmoid(a), b.tanh()], -1)
        scores = h @ h.transpose(1, 2) / 6**0.5
        late = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
        h = h + scores.masked_fill(late, float("-inf")).softmax(-1) @ h
        h = h + self.lstm(self.norm(h))[0]
        return self.outward(f.gelu(h.max(1).values))


def train(path=None, depth="ops", steps=4):
    torch.manual_seed(3)
    model = Mixed()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    draw = torch.Generator().manual_seed(1)
    with harness.record(model, optimizer, out=path, depth=depth) as rec:
        for _ in range(steps):
            x, y = torch.randn(2, 4, 5, generator=draw), torch.tensor([0, 2])
            with rec.step(x=x, y=y) as (x, y):
                optimizer.zero_grad()
                logits = model(x)
                loss = f.cross_entropy(logits, y)
                (loss * 4).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rec.log(loss=loss, right=(logits.argmax(-1) == y).float().mean())
    return model


def bare(steps=4):
    torch.manual_seed(3)
    model = Mixed()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(2, 4, 5, generator=draw), torch.tensor([0, 2])
        optimizer.zero_grad()
        (f.cross_entropy(model(x), y) * 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def names(path, number=2):
    return {e.name for e in harness.open_trace(path).entry(number).tensors}


def test_operations_are_points_with_stages_lines_and_gradients_and_no_bit_changes(tmp_path):
    seen = train(tmp_path / "ops")
    assert all(map(torch.equal, seen.parameters(), bare().parameters()))
    train(tmp_path / "modules", "modules")
    ops, modules = names(tmp_path / "ops"), names(tmp_path / "modules")
    assert modules <= ops
    found = {n for n in ops - modules if n.startswith("forward/")}
    assert ops >= {
        *("forward/model/scale", "forward/model/scale:2", "forward/model/setitem"),
        *("forward/model/cut", "forward/model/cut:2", "forward/model/concat"),
        *("forward/model/sigmoid", "forward/model/softmax", "forward/model/gelu"),
    }
    assert "forward/model/causal_mask" not in ops  # what it fills in is no number
    backs = {n.replace("forward/", "backward/", 1) for n in found}
    written = {"backward/model/reshape", "backward/model/reshape:2", "backward/model/scale:3"}
    assert backs - ops == written  # parts of a tensor that is written: PyTorch makes others
    wrong, right = disagreeing(tmp_path / "ops")
    assert not wrong
    assert len(right) > 200
    trace = harness.open_trace(tmp_path / "ops")
    assert "test_depth.py:" in trace.sources["forward/model/tanh"]


SCRIPT = """
import torch, harness
from torch import nn
from torch.nn import functional as f

torch.manual_seed(0)
one, two = nn.Linear(6, 8), nn.Linear(8, 3)
model = nn.ModuleList([one, two])
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with harness.record(model, optimizer) as rec:
    for step in range(4):
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        with rec.step(x=x, y=y) as (x, y):
            optimizer.zero_grad()
            h = f.gelu(one(x){gelu}).reshape(2, 8, 8)
            h = h * h.square().mean(-1, keepdim=True).add(1e-3).rsqrt()
            h = h.sigmoid_().flatten(0, 1){more}
            loss = f.cross_entropy(two(h), y)
            loss.backward()
            optimizer.step()
            rec.log(loss=loss)
"""


def script(folder, name, **changes):
    path = folder / f"{name}.py"
    path.write_text(SCRIPT.format(**{"gelu": "", "more": "", **changes}))
    return str(path)


def run(folder, *sides, **options):
    out = folder / "out"
    return harness.run_sides(sides=sides, trace=3, out=out, depth="ops", **options)


@pytest.mark.slow
def test_an_operation_between_modules_is_placed_and_its_line_is_said(tmp_path):
    mine = script(tmp_path, "mine", gelu=", approximate='tanh'")
    found = run(tmp_path, mine, script(tmp_path, "theirs")).verdict
    assert (found.label, found.where.tensor) == ("bug", "forward/model/gelu")
    assert "the GELU by tanh for the exact GELU" in found.causes[0].sentence
    assert "mine.py:15" in found.next


@pytest.mark.slow
def test_every_operation_is_fed_where_stages_follow(tmp_path):
    mine = script(tmp_path, "mine", gelu=", approximate='tanh'")
    theirs = script(tmp_path, "theirs")
    found = run(tmp_path, mine, theirs, follow="stage", verdict=False).diff.divergences
    assert {d.tensor for d in found} == {"forward/model/gelu", "backward/0"}


def test_an_operation_that_only_one_side_has_is_listed_and_accuses_nobody(tmp_path):
    mine = script(tmp_path, "mine", more=".clone()[:]")
    found = run(tmp_path, mine, script(tmp_path, "theirs")).diff
    assert found.status == "identical"
    assert found.alignment.only_a == ("forward/model/add", "forward/model/reshape:4")


def test_a_depth_that_there_is_not_is_refused(tmp_path, capsys):
    with pytest.raises(harness.HarnessError, match="depth='layers': Invalid enum value"):
        harness.record(nn.Linear(1, 1), depth="layers")
    with pytest.raises(SystemExit) as ended:
        main(["run", "--side", "np", "--depth", "ops", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--depth ops: no side is a script" in capsys.readouterr().err.replace("\n", " ")
