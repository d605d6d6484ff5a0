"""Models that change while they train, numbers that are none, optimizers of other parameters."""

import pytest
from recorded.stages import disagreeing

import harness

torch = pytest.importorskip("torch")
nn, f = torch.nn, torch.nn.functional
NAN = float("nan")


class Net(nn.Module):
    """Three layers, of which one may be left out, and a fourth that may be added."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.more, self.unused, self.factor = None, None, 1.0

    def forward(self, x):
        h = f.gelu(self.a(x))
        h = torch.relu(self.b(h)) if self.b is not None else h
        return self.c(h + self.more(h) if self.more is not None else h)


def added(net, optimizer, step):
    if step == 3:
        net.more = nn.Linear(8, 8)
        optimizer.add_param_group({"params": list(net.more.parameters())})


def removed(net, optimizer, step):
    net.b = None if step >= 3 else net.b


def frozen(net, optimizer, step):
    net.b.requires_grad_(step < 3)


def toggled(net, optimizer, step):
    net.b.requires_grad_(step % 2 == 0)


def unused(net, optimizer, step):
    net.unused = net.unused or nn.Linear(2, 2)


def foreign(net, optimizer, step):
    if step == 0:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


def no_number(net, optimizer, step):
    net.factor = NAN


def no_number_once(net, optimizer, step):
    net.factor = NAN if step == 2 else 1.0


def endless(net, optimizer, step):
    net.factor = float("inf")


def train(path, change=lambda *_: None, inside=False, given=True, depth="modules"):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    things = (net, optimizer) if given else (net,)
    draw = torch.Generator().manual_seed(5)
    with harness.record(*things, out=path, label=path.name, depth=depth) as rec:
        for step in range(5):
            x, y = torch.randn(16, 6, generator=draw), torch.arange(16) % 3
            if not inside:
                change(net, optimizer, step)
            with rec.step(x=x, y=y) as (x, y):
                if inside:
                    change(net, optimizer, step)
                optimizer.zero_grad()
                loss = f.cross_entropy(net(x), y) * net.factor
                loss.backward()
                optimizer.step()
                rec.log(loss=loss)
    return path


CHANGES = {
    added: ("structure", "from step 4 on only mine has backward/"),
    removed: ("structure", "from step 4 on only theirs has backward/b:"),
    frozen: ("structure", "from step 4 on only theirs has grads/b/bias:"),
    toggled: ("structure", "from step 2 on only theirs has grads/b/bias:"),
    unused: ("structure", "trace the same names and shapes"),
    foreign: ("structure", "trace the same names and shapes"),
    no_number: ("undecided", "once more in float64"),
    no_number_once: ("undecided", "once more in float64"),
    endless: ("undecided", "once more in float64"),
}


QUICK = [(added, True), (frozen, False), (no_number, True)]
CASES = [
    case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
    for case in ((change, inside) for change in CHANGES for inside in (False, True))
]


@pytest.mark.parametrize(("change", "inside"), CASES)
def test_what_is_odd_is_recorded_is_itself_and_is_told_from_what_is_not(change, inside, tmp_path):
    depth = "ops" if inside else "modules"
    mine = train(tmp_path / "mine", change, inside, depth=depth)
    again = train(tmp_path / "again", change, inside, depth=depth)
    assert harness.diff(mine, again).status == "identical"
    theirs = train(tmp_path / "theirs", depth=depth)
    harness.align(mine, theirs)
    found = harness.explain(mine, theirs).verdict
    label, words = CHANGES[change]
    assert (found.label, found.side) == (label, "mine" if label == "undecided" else None)
    assert words in found.next
    if label == "undecided":
        assert found.where.tensor == "forward/loss"
        assert not disagreeing(mine, nan=True)[0]


@pytest.mark.parametrize("depth", ["modules", "ops"])
def test_scaled_gradients_weights_moved_by_hand_and_stand_ins_have_no_wrong_stage(depth, tmp_path):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam([*net.a.parameters(), *net.b.parameters()], 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with harness.record(net, optimizer, scaler, out=tmp_path / "t", depth=depth) as rec:
        for _ in range(3):
            with rec.step(x=torch.randn(16, 6)) as x:
                net.zero_grad()
                loss = torch.func.vmap(lambda row: row.sin().sum())(net(x)).mean()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
                with torch.no_grad():
                    net.a.weight.mul_(0.999)
                    net.c.weight -= 0.1 * net.c.weight.grad
                rec.log(loss=loss, size=net.b.weight.square().sum())  # of what it is by now
    wrong, right = disagreeing(tmp_path / "t")
    assert not wrong
    assert {"params/c/weight", "params/b/weight", "update/clipped/b/weight"} <= set(right)
    assert "params/a/weight" not in right  # moved twice: no single stage
