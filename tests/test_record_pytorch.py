"""Recording scripts in PyTorch: what a trace has, that it is right, and that nothing changes."""

import dataclasses
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from recorded.stages import disagreeing, without_stage

import harness

torch = pytest.importorskip("torch")
nn, f = torch.nn, torch.nn.functional


class Convolutions(nn.Module):
    """Convolution, normalization, pooling, attention and dropout: one of each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.norm = nn.LayerNorm(96)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(96, 5)

    def forward(self, x):
        h = f.max_pool2d(f.relu(self.bn(self.conv(x))), 2)
        h = f.gelu(self.norm(h.flatten(1)))
        tokens = h.view(len(h), 16, 6)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.drop(tokens.flatten(1)))


class Tokens(nn.Module):
    """A small GPT: fused qkv, tied weights, attention written out in one block."""

    def __init__(self, width=12, by_hand=False):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, width), nn.Embedding(7, width)
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 11, bias=False)
        self.head.weight = self.tokens.weight
        self.by_hand = by_hand

    def forward(self, x):
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        b, t, d = h.shape
        q, k, v = (
            p.view(b, t, 2, d // 2).transpose(1, 2) for p in self.qkv(self.norm(h)).chunk(3, -1)
        )
        if self.by_hand:
            scores = q @ k.transpose(-2, -1) * (1.0 / (d // 2) ** 0.5)
            late = torch.triu(torch.ones(t, t, dtype=torch.bool), 1)
            mixed = torch.softmax(scores.masked_fill(late, float("-inf")), -1) @ v
        else:
            mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h + self.out(mixed.transpose(1, 2).reshape(b, t, d)))


def images(step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, 8, 8, generator=draw), torch.randint(5, (4,), generator=draw)


def tokens(step):
    draw = torch.Generator().manual_seed(step)
    text = torch.randint(11, (3, 8), generator=draw)
    return text[:, :-1], text[:, 1:]


def train(
    model, path, batches=images, steps=4, optimizer=None, clip=None, on=True, cast=False, **options
):
    """Train as a script would; with `on`, recorded."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder = harness.record(model, optimizer, out=path, **options) if on else nullcontext()
    with recorder as rec:
        for i in range(steps):
            x, y = batches(i)
            with rec.step(x=x, y=y) if on else nullcontext((x, y)) as (x, y):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
                    logits = model(x)
                    loss = f.cross_entropy(logits.flatten(0, -2), y.flatten())
                loss.backward()
                if clip == "norm":
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                elif clip == "value":
                    nn.utils.clip_grad_value_(model.parameters(), 0.01)
                optimizer.step()
                if on:
                    rec.log(loss=loss.item())
    return model


def made(kind, **fields):
    torch.manual_seed(1)
    return kind(**fields)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum, decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam, decay": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, eps=1e-6, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_stage_of_a_step_gives_what_the_trace_holds(name, tmp_path):
    model = made(Tokens, by_hand=name == "nesterov")
    train(
        model, tmp_path / "t", tokens, optimizer=OPTIMIZERS[name](model.parameters()), clip="norm"
    )
    wrong, right = disagreeing(tmp_path / "t")
    assert not wrong
    assert len(right) > 100
    assert not without_stage(tmp_path / "t")


@pytest.mark.parametrize("clip", [None, "norm", "value"])
def test_so_it_does_of_convolutions_attention_and_dropout(clip, tmp_path):
    train(made(Convolutions), tmp_path / "t", clip=clip)
    wrong, right = disagreeing(tmp_path / "t")
    assert not wrong
    assert len(right) > 200
    lost = without_stage(tmp_path / "t")
    assert lost == []
    names = {e.name for e in harness.open_trace(tmp_path / "t").entry(2).tensors}
    assert "update/global_norm" in names
    assert ("update/clipped/conv/weight" in names) == (clip is not None)
    assert {"inputs/mask/drop", "buffers/bn/running_var", "update/learning_rate"} <= names


def test_autocast_is_part_of_the_stages(tmp_path):
    train(made(Tokens), tmp_path / "t", tokens, cast=True)
    trace = harness.open_trace(tmp_path / "t")
    assert trace.step(2).find("forward/qkv").dtype == "bfloat16"
    assert "rounded" in repr(trace.graph.value("forward/qkv"))
    wrong, _ = disagreeing(tmp_path / "t")
    assert [place for place in wrong if place[1].startswith(("forward/", "params/"))] == []


@pytest.mark.parametrize("kind", [Convolutions, Tokens])
@pytest.mark.parametrize("cast", [False, True])
def test_recording_changes_no_bit(kind, cast, tmp_path):
    batches = images if kind is Convolutions else tokens
    bare, seen = (
        train(made(kind), tmp_path / "t", batches, 20, on=on, clip="norm", cast=cast)
        for on in (False, True)
    )
    for one, two in zip(bare.state_dict().values(), seen.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of its compiler's own
def test_a_compiled_model_computes_what_it_does_unwatched(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, a compiled model does not repeat itself
    try:
        models = []
        for on in (False, True):
            torch._dynamo.reset()
            model = made(Tokens)
            model.compile()
            models.append(train(model, tmp_path / "t", tokens, 5, on=on))
        for one, two in zip(*(m.state_dict().values() for m in models), strict=True):
            assert torch.equal(one, two)
    finally:
        torch.set_num_threads(threads)
    names = {e.name for e in harness.open_trace(tmp_path / "t").entry(2).tensors}
    assert {"forward/loss", "grads/qkv/weight", "params/qkv/weight"} <= names


@dataclasses.dataclass
class Result:
    """What a model may return."""

    logits: torch.Tensor
    more: dict


class Odd(nn.Module):
    """Tuples, a dataclass, a module called twice, one that works in place, one that is frozen."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.twice, self.inplace = nn.Linear(6, 6), nn.ReLU(inplace=True)
        self.frozen, self.unused = nn.Linear(6, 6).requires_grad_(False), nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h, _ = self.lstm(x)
        h = self.twice(self.inplace(self.twice(h)))
        h = self.frozen(h)
        h *= 2
        return Result(self.head(h[:, -1]), {"hidden": h})


def test_outputs_of_any_kind_have_names(tmp_path):
    torch.manual_seed(0)
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with harness.record(model, optimizer, out=tmp_path / "t") as rec:
        for _ in range(3):
            x = torch.randn(2, 5, 4)
            with rec.step(x=x) as x:
                optimizer.zero_grad()
                out = model(x)
                loss = out.logits.square().mean()
                loss.backward()
                optimizer.step()
                rec.log(loss=loss, hidden=out.more["hidden"])
    trace = harness.open_trace(tmp_path / "t")
    names = {e.name for e in trace.entry(2).tensors}
    assert {"forward/lstm/0", "forward/lstm/1/0", "forward/twice", "forward/twice:2"} <= names
    assert {"forward/inplace", "forward/head", "forward/model/more/hidden", "log/hidden"} <= names
    assert {"params/frozen/weight", "params/unused/weight"} <= names
    assert not {"grads/frozen/weight", "grads/unused/weight"} & names
    step = trace.step(2)
    before = step.read(step.find("forward/twice"))
    assert (before < 0).any()  # as it was before the ReLU worked on it in place
    wrong, _ = disagreeing(tmp_path / "t")
    assert not wrong


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_nothing_is_left_after_the_block_nor_after_an_exception(tmp_path):
    model = made(Tokens)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def script():
        with harness.record(model, optimizer, out=tmp_path / "t") as rec:
            for i in range(3):
                x, y = tokens(i)
                with rec.step(x=x, y=y):
                    f.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
                    if i == 1:
                        raise RuntimeError("of the script")
                    optimizer.step()

    with pytest.raises(RuntimeError, match="of the script"):
        script()
    assert not any(hooks_of(model))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert torch._C._len_torch_function_stack() == 0
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    trace = harness.open_trace(tmp_path / "t")
    assert (trace.steps, trace.header.complete) == ((1,), False)


def test_an_optimizer_that_fails_leaves_nothing_either(tmp_path):
    model = made(Tokens)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)

    def script():
        record = harness.record(model, optimizer, out=tmp_path / "t")
        with record as rec, rec.step(x=tokens(0)[0]) as x:
            model(x).sum().backward()
            optimizer.step(lambda: (_ for _ in ()).throw(ValueError("broken")))

    with pytest.raises(ValueError, match="broken"):
        script()
    assert torch._C._len_torch_function_stack() == 0


def test_gradients_that_are_added_up_are_those_that_the_optimizer_gets(tmp_path):
    model = made(Tokens)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with harness.record(model, optimizer, out=tmp_path / "t") as rec, rec.step(x=tokens(0)[0]):
        for i in range(2):
            x, y = tokens(i)
            (f.cross_entropy(model(x).flatten(0, 1), y.flatten()) / 2).backward()
        expected = model.qkv.weight.grad.numpy().copy()
        optimizer.step()
    trace = harness.open_trace(tmp_path / "t")
    step = trace.step(1)
    assert np.array_equal(step.read(step.find("grads/qkv/weight")), expected)
    assert "forward/objective:2" in step.names()
    assert trace.graph.value("grads/qkv/weight") is None  # of two losses it is not known how


def test_a_model_without_an_optimizer_and_an_optimizer_of_loose_parameters(tmp_path):
    model = nn.Linear(2, 1)
    with harness.record(model, out=tmp_path / "a") as rec, rec.step(x=torch.ones(3, 2)) as x:
        model(x).sum().backward()
    names = {e.name for e in harness.open_trace(tmp_path / "a").entry(1).tensors}
    assert {"grads/weight", "params/weight", "forward/objective"} <= names
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.1)
    with harness.record(optimizer, out=tmp_path / "b") as rec, rec.step() as nothing:
        assert nothing == ()
        (w * w).sum().backward()
        optimizer.step()
    wrong, right = disagreeing(tmp_path / "b")
    assert not wrong
    assert len(right) >= 2


def test_nan_is_recorded_as_it_is(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with harness.record(model, optimizer, out=tmp_path / "t") as rec:
        for _ in range(2):
            with rec.step(x=torch.full((3, 2), torch.nan)) as x:
                loss = model(x).sum()
                loss.backward()
                optimizer.step()
                rec.log(loss=loss)
    assert harness.open_trace(tmp_path / "t").step(2).find("params/weight").nan == 2


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (object(), "no model, optimizer or parameters"),
        (torch.zeros(2), "neither a module nor an optimizer"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(thing, words):
    with pytest.raises(harness.HarnessError, match=words):
        harness.record(thing)


def test_log_and_step_where_they_cannot_be(tmp_path):
    with harness.record(nn.Linear(1, 1), out=tmp_path / "t") as rec:
        with pytest.raises(harness.HarnessError, match="outside of a step"):
            rec.log(loss=1.0)
        with (
            rec.step(),
            pytest.raises(harness.HarnessError, match=r"inside of rec\.step"),
            rec.step(),
        ):
            pass


def test_tap_names_a_value_that_no_module_hands_on(tmp_path):
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.1)
    with harness.record(optimizer, out=tmp_path / "t") as rec, rec.step():
        h = rec.tap("squares", w * w)
        h.sum().backward()
        optimizer.step()
    step = harness.open_trace(tmp_path / "t").step(1)
    assert {"forward/squares", "backward/squares"} <= step.names()


def test_a_script_run_by_itself_writes_to_the_traces_folder_and_tells_the_cost(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import torch, harness\n"
        "net = torch.nn.Linear(2, 1)\n"
        "opt = torch.optim.SGD(net.parameters(), 0.1)\n"
        "with harness.record(net, opt) as rec:\n"
        "    for i in range(3):\n"
        "        with rec.step(x=torch.ones(4, 2)) as x:\n"
        "            opt.zero_grad()\n"
        "            loss = net(x).sum()\n"
        "            loss.backward()\n"
        "            opt.step()\n"
        "            rec.log(loss=loss)\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "traces/mine.trace: 3 steps; recording took" in run.stderr
    trace = harness.open_trace(tmp_path / "traces" / "mine.trace")
    assert trace.header.label == "mine"
    assert trace.sources["forward/model"].endswith("mine.py:8")
    assert trace.sources["params/weight"].endswith("mine.py:10")


def test_zeros_that_dropout_dropped_are_known_from_those_that_it_kept(tmp_path):
    def thinned():
        layers = nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 3)
        return nn.Sequential(*layers)

    def batches(step):
        return torch.randn(8, 6), torch.randint(3, (8,))

    bare, seen = (train(made(thinned), tmp_path / "t", batches, 3, on=on) for on in (False, True))
    assert all(map(torch.equal, bare.parameters(), seen.parameters()))  # draws are not moved
    assert not disagreeing(tmp_path / "t")[0]


def test_what_a_trace_cannot_say_is_left_out_and_the_trace_can_be_read(tmp_path):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(140)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with (
        harness.record(model, optimizer, out=tmp_path / "a.trace") as rec,
        rec.step(x=torch.ones(3, 2)) as x,
    ):
        loss = model(x).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # a norm of 280 gradients
        optimizer.step()
        rec.log(loss=loss, endless=model(x) * float("inf"), huge=x * 10**12, plain=x * 10)
    stages = {e.name: e.op for e in harness.open_trace(tmp_path / "a.trace").entry(1).tensors}
    assert (stages["log/endless"], stages["log/huge"]) == (None, None)
    assert stages["log/plain"] is not None


@pytest.mark.parametrize("foreach", [True, False])
def test_clipping_by_value_has_a_stage(foreach, tmp_path):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with (
        harness.record(model, optimizer, out=tmp_path / "a.trace") as rec,
        rec.step(x=torch.ones(3, 2)) as x,
    ):
        model(x).square().sum().backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.25, foreach=foreach)
        optimizer.step()
    stages = harness.open_trace(tmp_path / "a.trace").graph.stages
    said = str(stages["update/clipped/weight"].value)
    assert said.startswith("clip_elements(grads/weight")
    wrong, right = disagreeing(tmp_path / "a.trace")
    assert wrong == []
    assert "update/clipped/bias" in right


@pytest.mark.parametrize("clip", ["norm", "value", None])
def test_what_is_described_at_once_is_what_a_copy_would_have_been(clip, tmp_path):
    for level in ("full", "stats", "hash"):
        model = made(Tokens, width=144)  # weights of 250 kB are described where they lie
        train(model, tmp_path / level, tokens, 3, clip=clip, level=level)
    traces = {level: harness.open_trace(tmp_path / level) for level in ("full", "stats", "hash")}
    for number in (1, 2, 3):
        full, stats, hashed = (t.entry(number).tensors for t in traces.values())
        assert [e.identity for e in stats] == [e.identity for e in full]
        assert [e.identity for e in hashed] == [e.identity for e in full]
        assert [e.name for e in stats] == [e.name for e in full]
        assert [e.op for e in stats] == [e.op for e in full]
        assert max(e.size for e in full) * 4 > 1 << 16
