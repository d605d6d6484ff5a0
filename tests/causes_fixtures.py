"""A small training run in NumPy, in which any trace point can be made wrong on one side.

It computes in float64 from what it stored, adds about one eps of noise to every point and stores it
in the run's dtype, so that two runs differ as two frameworks do. A fault replaces the value of one
point, from everything that the point is made of.
"""

from fnmatch import fnmatchcase
from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from harness.explain.case import Case
from harness.explain.evidence import same_stage
from harness.spec import ModelSpec, TrainSpec
from harness.trace.graph import graph_of_spec

SETTINGS = dict(
    vocab_size=29,
    embed_size=7,
    hidden_size=11,
    num_layers=2,
    dropout=0.0,
    batch_size=3,
    bptt=5,
    lr=0.3,
    lr_decay=1.7,
    clip="global_norm",
    clip_limit=0.25,
    loss="sum",
    optimizer="sgd",
    momentum=0.9,
    beta1=0.9,
    beta2=0.999,
    rho=0.99,
    epsilon=1e-4,
    weight_decay=0.0,
    decoupled=False,
)
STEPS = 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Run:
    """Points of some steps by (step, name), in execution order."""

    def __init__(self, settings, dtype, faults=None, seed=0, steps=STEPS):
        self.s = SimpleNamespace(**settings)
        self.dtype, self.faults = np.dtype(dtype), faults or {}
        self.noise = np.random.default_rng(seed)
        self.points, self.step = {}, 0
        # What every run starts from is the same to the bit.
        self.given = np.random.default_rng(7)
        self.params = {name: self.draw(shape) for name, shape in self.shapes().items()}
        self.slots, self.state = {}, None
        for _ in range(steps):
            self.train_step()

    def shapes(self):
        s = self.s
        shapes = {"embedding": (s.vocab_size, s.embed_size)}
        for k in range(s.num_layers):
            width = s.hidden_size if k else s.embed_size
            four = 4 * s.hidden_size
            shapes |= {f"layer{k}/w_i": (width, four), f"layer{k}/w_h": (s.hidden_size, four)}
            shapes |= {f"layer{k}/b_i": (four,), f"layer{k}/b_h": (four,)}
        return shapes | {
            "softmax_w": (s.hidden_size, s.vocab_size),
            "softmax_b": (s.vocab_size,),
        }

    def draw(self, shape):
        return self.given.uniform(-0.7, 0.7, shape).astype(self.dtype)

    def rounding(self, value):
        eps = np.finfo(self.dtype).eps
        return value * (1 + eps * self.noise.standard_normal(np.shape(value)))

    def made(self, name, value, **of):
        """One point: its value, its fault if it has one, noise, and the dtype of the run."""
        fault = next((f for glob, f in self.faults.items() if fnmatchcase(name, glob)), None)
        value = np.asarray(value)
        if value.dtype.kind != "f":
            return value if fault is None else np.asarray(fault(value, self.seen(name, of)))
        value = self.rounding(value)
        exact = getattr(fault, "exact", False)
        if exact:
            value = value.astype(self.dtype)
        if fault is not None:
            value = np.asarray(fault(value, self.seen(name, of)))
        return (value if exact else self.rounding(value)).astype(self.dtype)

    def seen(self, name, of):
        return SimpleNamespace(run=self, s=self.s, name=name, get=self.get, **of)

    def get(self, name, back=0):
        value = self.points.get((self.step - back, name))
        return value if value is None or value.dtype.kind != "f" else value.astype(np.float64)

    def before(self, name):
        return self.params[name].astype(np.float64)

    def see(self, name, value, **of):
        self.points[self.step, name] = self.made(name, value, **of)
        return self.get(name)

    def see_times(self, name, values):
        """A point that a loop over time has made already."""
        self.points[self.step, name] = np.stack(values, axis=1)

    def train_step(self):
        self.step += 1
        s = self.s
        shape = (s.batch_size, s.bptt)
        # Few tokens, so that some occur more than once.
        tokens = self.given.integers(0, s.vocab_size // 2, (s.batch_size, s.bptt + 1))
        x = self.see("inputs/x", tokens[:, :-1].astype(np.int32), tokens=tokens)
        y = self.see("inputs/y", tokens[:, 1:].astype(np.int32), tokens=tokens)
        self.masks = {}
        if s.dropout:
            widths = [s.embed_size] + [s.hidden_size] * s.num_layers
            sites = ["embedding"] + [f"layer{k}" for k in range(s.num_layers)]
            for site, width in zip(sites, widths, strict=True):
                mask = self.given.random((*shape, width)) >= s.dropout
                self.masks[site] = self.see(f"inputs/mask/{site}", mask)
        if self.step == 1:
            for name, p in self.params.items():
                self.points[1, f"inputs/params/{name}"] = p
        zero = np.zeros((s.batch_size, s.hidden_size))
        state = self.state or {
            f"layer{k}/{part}": zero for k in range(s.num_layers) for part in "hc"
        }
        # A state is handed over to the bit.
        state = {
            name: self.handed(f"state/in/{name}", value.astype(self.dtype))
            for name, value in state.items()
        }
        self.forward(x, state)
        self.backward(x, y, state)
        self.update()
        self.state = {
            f"layer{k}/{part}": self.see(
                f"state/out/layer{k}/{part}", self.get(f"forward/layer{k}/{part}")[:, -1]
            )
            for k in range(s.num_layers)
            for part in "hc"
        }

    def handed(self, name, value):
        fault = self.faults.get(name)
        value = value if fault is None else fault(value, self.seen(name, {})).astype(self.dtype)
        self.points[self.step, name] = value
        return value.astype(np.float64)

    def dropped(self, site, x):
        """Dropout, computed in the dtype of the run as a framework does."""
        if not self.masks:
            return x
        fault = self.faults.get(f"dropout/{site}")
        keep = self.dtype.type(1 - self.s.dropout)
        if fault is not None:
            return fault(x, self.seen(site, dict(mask=self.masks[site], keep=1 - self.s.dropout)))
        return (x.astype(self.dtype) * self.masks[site] / keep).astype(np.float64)

    def forward(self, x, state):
        s = self.s
        inputs = self.see(
            "forward/embedding", self.before("embedding")[x], x=x, table=self.before("embedding")
        )
        inputs = self.dropped("embedding", inputs)
        for k in range(s.num_layers):
            w_i, w_h, b_i, b_h = (
                self.before(f"layer{k}/{n}") for n in ("w_i", "w_h", "b_i", "b_h")
            )
            h, c = state[f"layer{k}/h"], state[f"layer{k}/c"]
            made = {"gates": [], "c": [], "h": []}
            for t in range(s.bptt):
                of = dict(t=t, k=k, x=inputs[:, t], h=h, w_i=w_i, w_h=w_h, b_i=b_i, b_h=b_h)
                of |= dict(h_before=h, c_before=c)
                z = inputs[:, t] @ w_i + b_i + h @ w_h + b_h
                made["gates"].append(self.made(f"forward/layer{k}/gates", z, **of))
                i, f, g, o = np.split(made["gates"][-1].astype(np.float64), 4, axis=-1)
                of |= dict(i=i, f=f, g=g, o=o)
                new = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                made["c"].append(self.made(f"forward/layer{k}/c", new, **of))
                c = made["c"][-1].astype(np.float64)
                of |= dict(c=c)
                made["h"].append(self.made(f"forward/layer{k}/h", sigmoid(o) * np.tanh(c), **of))
                h = made["h"][-1].astype(np.float64)
            for part, values in made.items():
                self.see_times(f"forward/layer{k}/{part}", values)
            inputs = self.dropped(f"layer{k}", self.get(f"forward/layer{k}/h"))
        w, b = self.before("softmax_w"), self.before("softmax_b")
        self.see("forward/logits", inputs @ w + b, x=inputs, w=w, b=b)

    def backward(self, x, y, state):
        s = self.s
        logits = self.get("forward/logits")
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        losses = -np.log(np.take_along_axis(p, y[..., None].astype(int), -1))[..., 0]
        norm = s.batch_size * (1 if s.loss == "sum" else s.bptt)
        self.see("forward/loss", losses.sum() / norm, losses=losses, norm=norm, p=p, y=y, x=x)
        target = np.zeros_like(p)
        np.put_along_axis(target, y[..., None].astype(int), 1.0, -1)
        of = dict(p=p, target=target, norm=norm, x=x, y=y)
        above = self.see("backward/logits", (p - target) / norm, **of)
        grads = {}
        w, site = self.before("softmax_w"), f"layer{s.num_layers - 1}"
        grads["softmax_b"] = above.sum((0, 1))
        for k in reversed(range(s.num_layers)):
            h_in = self.dropped(site, self.get(f"forward/layer{k}/h"))
            name = f"layer{k + 1}/w_i" if k + 1 < s.num_layers else "softmax_w"
            grads[name] = np.tensordot(h_in, above, ((0, 1), (0, 1)))
            from_above = self.dropped(site, above @ w.T)
            above, more = self.backward_layer(k, from_above, state)
            grads |= more
            w, site = self.before(f"layer{k}/w_i"), f"layer{k - 1}" if k else "embedding"
        dx = self.see("backward/embedding", self.dropped("embedding", above @ w.T))
        inputs = self.dropped("embedding", self.get("forward/embedding"))
        grads["layer0/w_i"] = np.tensordot(inputs, above, ((0, 1), (0, 1)))
        grads["embedding"] = np.zeros((s.vocab_size, s.embed_size))
        np.add.at(grads["embedding"], x, dx)
        for name in self.params:
            self.see(f"grads/{name}", grads[name], dx=dx, x=x, p=self.before(name))

    def backward_layer(self, k, from_above, state):
        s, name = self.s, f"layer{k}"
        z, c = self.get(f"forward/{name}/gates"), self.get(f"forward/{name}/c")
        h = self.get(f"forward/{name}/h")
        before = np.concatenate([state[f"{name}/c"][:, None], c[:, :-1]], axis=1)
        h_before = np.concatenate([state[f"{name}/h"][:, None], h[:, :-1]], axis=1)
        w_h = self.before(f"{name}/w_h")
        made = {"h": [], "c": [], "gates": []}
        dz_next, dc_next = np.zeros((s.batch_size, 4 * s.hidden_size)), 0.0
        for t in reversed(range(s.bptt)):
            i, f, g, o = np.split(z[:, t], 4, axis=-1)
            i, f, g, o, th = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o), np.tanh(c[:, t])
            of = dict(t=t, k=k, above=from_above[:, t], dz_next=dz_next, w_h=w_h)
            made["h"].append(
                self.made(f"backward/{name}/h", from_above[:, t] + dz_next @ w_h.T, **of)
            )
            dh = made["h"][-1].astype(np.float64)
            direct = dh * o * (1 - th**2)
            of |= dict(direct=direct, dc_next=dc_next, i=i, f=f, g=g, o=o, dh=dh)
            made["c"].append(self.made(f"backward/{name}/c", direct + dc_next, **of))
            dc = made["c"][-1].astype(np.float64)
            parts = [dc * g * i * (1 - i), dc * before[:, t] * f * (1 - f)]
            parts += [dc * i * (1 - g**2), dh * th * o * (1 - o)]
            dz = self.made(f"backward/{name}/gates", np.concatenate(parts, -1), parts=parts, **of)
            made["gates"].append(dz)
            dz_next, dc_next = dz.astype(np.float64), dc * f
        for part, values in made.items():
            self.see_times(f"backward/{name}/{part}", values[::-1])
        dz = self.get(f"backward/{name}/gates")
        grads = {f"{name}/w_h": np.tensordot(h_before, dz, ((0, 1), (0, 1)))}
        grads |= {f"{name}/{b}": dz.sum((0, 1)) for b in ("b_i", "b_h")}
        return dz, grads

    def update(self):
        s = self.s
        grads = {name: self.get(f"grads/{name}") for name in self.params}
        squares = {name: (g**2).sum() for name, g in grads.items()}
        norm = self.see(
            "update/global_norm",
            np.sqrt(sum(squares.values())),
            squares=squares,
            grads=grads,
            dx=self.get("backward/embedding"),
        )
        scale = s.clip_limit / max(norm, s.clip_limit) if s.clip == "global_norm" else 1.0
        for name, g in grads.items():
            value = np.clip(g, -s.clip_limit, s.clip_limit) if s.clip == "elementwise" else g
            self.see(f"update/clipped/{name}", scale * value, g=g, norm=norm, p=self.before(name))
        lr = float(self.see("update/learning_rate", np.float64(s.lr)))
        rules = dict(sgd=(), momentum=("velocity",), adam=("m", "v"), rmsprop=("square",)) | dict(
            adagrad=("accumulator",)
        )
        new = {}
        for name in self.params:
            p, g = self.before(name), self.get(f"update/clipped/{name}")
            fed = g + s.weight_decay * p if not s.decoupled else g
            slots = {}
            for slot in rules[s.optimizer]:
                old = self.slots.get((name, slot), np.zeros(p.shape))
                value = self.new_slot(slot, old, fed)
                full = f"optimizer/{name}/{slot}"
                slots[slot] = self.see(full, value, old=old, g=g, fed=fed, p=p, lr=lr)
                slots[f"old_{slot}"] = old
                self.slots[name, slot] = slots[slot]
            moved = p - lr * self.direction(fed, slots)
            if s.decoupled:
                moved = moved - lr * s.weight_decay * p
            of = dict(p=p, g=g, raw=grads[name], lr=lr, slots=slots, step=self.step, fed=fed)
            new[name] = self.see(f"params/{name}", moved, **of)
        self.params = {n: self.points[self.step, f"params/{n}"] for n in new}

    def new_slot(self, slot, old, g):
        s = self.s
        return {
            "velocity": lambda: s.momentum * old + g,
            "m": lambda: s.beta1 * old + (1 - s.beta1) * g,
            "v": lambda: s.beta2 * old + (1 - s.beta2) * g**2,
            "square": lambda: s.rho * old + (1 - s.rho) * g**2,
            "accumulator": lambda: old + g**2,
        }[slot]()

    def direction(self, g, slots):
        s, t = self.s, self.step
        if s.optimizer == "sgd":
            return g
        if s.optimizer == "momentum":
            return slots["velocity"]
        if s.optimizer == "adam":
            m, v = slots["m"] / (1 - s.beta1**t), slots["v"] / (1 - s.beta2**t)
            return m / (np.sqrt(v) + s.epsilon)
        kept = slots["square"] if s.optimizer == "rmsprop" else slots["accumulator"]
        return g / (np.sqrt(kept) + s.epsilon)


@lru_cache(maxsize=64)
def clean(settings, dtype, seed):
    """A run without faults; runs of the same settings are made once."""
    return Run(dict(settings), dtype, seed=seed)


def case_of(a, b, step, tensor, settings=None, labels=("pt", "tf"), level=64.0):
    """The case of one tensor of two runs."""
    points = {"a": a.points, "b": b.points}
    level = 16.0 if tensor in ("forward/loss", "update/global_norm") else level
    return Case(
        step,
        tensor,
        a.points[step, tensor],
        b.points[step, tensor],
        lambda side, at, name: points[side].get((at, name)),
        labels,
        settings or {},
        settings or {},
        level,
        graph=graph_of_settings(tuple((settings or {}).items())),
        shapes={name: x.shape for (at, name), x in b.points.items() if at == step},
    )


@lru_cache(maxsize=64)
def graph_of_settings(settings):
    """The stages of a run with these settings; None for a run of no model."""
    fields = dict(settings)
    if not fields:
        return None
    spec = {
        name: {k: fields[k] for k in kind.__struct_fields__ if k in fields}
        for name, kind in (("model", ModelSpec), ("train", TrainSpec))
    }
    return graph_of_spec(spec)


def first_case(a, b, settings, first=1):
    """The case of the first tensor, from step `first` on, that differs by more than rounding."""
    for step, tensor in b.points:
        if (step, tensor) not in a.points or step < first:
            continue
        if a.points[step, tensor].dtype.kind != "f":
            if not np.array_equal(a.points[step, tensor], b.points[step, tensor]):
                return case_of(a, b, step, tensor, settings)
            continue
        case = case_of(a, b, step, tensor, settings)
        if not case.gap() <= case.level:
            return case
    return None


def planted(settings, faults, side="a", dtype="float64"):
    """The first case of a run with faults on one side against a clean one."""
    return planted_places(settings, faults, side, dtype)[0]


def planted_places(settings, faults, side="a", dtype="float64"):
    """That case, and the others of its stage: at other steps, of other layers or parameters."""
    settings = SETTINGS | dict(settings)
    bad = Run(settings, dtype, faults, seed=1)
    good = clean(tuple(settings.items()), dtype, 2)
    pair = (bad, good) if side == "a" else (good, bad)
    case = next(
        (found for step in range(1, STEPS + 1) if (found := first_case(*pair, settings, step))),
        None,
    )
    if case is None:
        return None, []
    places = [(step, case.tensor) for step in range(1, STEPS + 1) if step != case.step]
    names = [n for at, n in good.points if at == case.step and n != case.tensor]
    places += [(case.step, name) for name in names if same_stage(name, case.tensor)]
    return case, [case_of(*pair, *place, settings) for place in places]


def lone_case(a, b, tensor="mystery/tensor", points=(), step=1, settings=None, level=64.0):
    """A case of two arrays; `points` are what else is traced: (side, step, name) to array."""
    points = dict(points)
    for side, value in (("a", a), ("b", b)):
        points[side, step, tensor] = value
    found = settings or {}
    lookup = lambda side, at, name: points.get((side, at, name))  # noqa: E731
    return Case(step, tensor, a, b, lookup, ("pt", "tf"), found, found, level)
