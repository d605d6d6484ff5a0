"""Recording JAX: what a trace holds, that every stage is right, that watching changes no bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recorded.stages import disagreeing

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402
from jax._src import api, core, pjit  # noqa: E402

import harness  # noqa: E402
from harness.capture import jax_marks  # noqa: E402
from harness.errors import HarnessError  # noqa: E402

SCRIPTS = Path(__file__).parent / "recorded"
X = np.random.default_rng(0).normal(size=(4, 3)).astype("f")
Y = np.random.default_rng(1).normal(size=(4, 2)).astype("f")


def params():
    return {"w": jnp.arange(6.0).reshape(3, 2) / 10, "b": jnp.full(2, 0.1)}


def loss_fn(p, x, y):
    return ((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2).mean()


def step_of(tx, loss=loss_fn, **options):
    def step(p, state, x, y):
        value, grads = jax.value_and_grad(loss)(p, x, y)
        updates, state = tx.update(grads, state, p)
        return optax.apply_updates(p, updates), state, value

    return jax.jit(step, **options)


def train(step, tx, recorder=None, steps=3, p=None):
    """The weights, slots and loss after some steps; recorded where there is a recorder."""
    p = params() if p is None else p
    state = tx.init(p)
    if recorder is None:
        for _ in range(steps):
            p, state, loss = step(p, state, X, Y)
        return p, state, loss
    with recorder as rec:
        for _ in range(steps):
            with rec.step(x=X, y=Y, params=p, opt_state=state) as (x, y, p, state):
                p, state, loss = step(p, state, x, y)
                rec.log(loss=loss, params=p, opt_state=state)
    return p, state, loss


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def names(path, number=2):
    return {e.name for e in harness.open_trace(path).step(number).entries}


def stages(path):
    return {n: str(s.value) for n, s in harness.open_trace(path).graph.stages.items()}


def run(script, *args):
    command = [sys.executable, SCRIPTS / script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


# A gradient that is zero but for rounding: a bias before a batch normalisation, and of keys.
ZEROS = ("conv/bias", "key/bias")


@pytest.mark.parametrize("script", ["jax_gpt.py", "jax_nnx.py"])
@pytest.mark.slow
def test_a_recorded_script_computes_the_same_bits_and_every_stage_is_right(script, tmp_path):
    path = tmp_path / "a.trace"
    assert run(script, path) == run(script)
    wrong, right = disagreeing(path, without=ZEROS)
    assert wrong == []
    assert len(right) > 300
    assert "forward/loss" in names(path)
    made = stages(path)
    undeclared = [n for n in names(path) if n.startswith(("forward/", "params/")) and n not in made]
    assert undeclared == []


def test_what_xla_is_given_is_the_same_program_with_marks(tmp_path):
    tx = optax.adamw(1e-2)
    plain = step_of(tx).lower(params(), tx.init(params()), X, Y).as_text()
    with harness.record(params(), tx, out=tmp_path / "a.trace"):
        marked = step_of(tx).lower(params(), tx.init(params()), X, Y).as_text()
    assert plain == marked


UPDATES = [
    (optax.sgd(0.1), "descend("),
    (optax.sgd(0.1, momentum=0.9), "along_velocity("),
    (optax.adamw(1e-2, weight_decay=0.1), "decay_weights(adam("),
    (optax.rmsprop(1e-2), "over_root_inside("),
    (optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)), "descend("),
    (optax.adam(optax.linear_schedule(1e-2, 1e-3, 5)), "adam("),
]
OTHERS = [
    (optax.sgd(0.1, momentum=0.9, nesterov=True), "nesterov("),
    (optax.adam(1e-2), "adam("),
    (optax.rmsprop(1e-2, eps_in_sqrt=False), "over_root("),
    (optax.adagrad(1e-2), "over_root_inside("),
    (optax.chain(optax.clip(0.01), optax.sgd(0.1)), "descend("),
    (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), "descend("),
    (optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), "descend("),
]


@pytest.mark.parametrize(
    ("tx", "op"), [*UPDATES, *(pytest.param(*u, marks=pytest.mark.slow) for u in OTHERS)]
)
def test_an_update_is_recognised_by_its_formula(tx, op, tmp_path):
    path = tmp_path / "a.trace"
    plain = bits(train(step_of(tx), tx))
    assert bits(train(step_of(tx), tx, harness.record(params(), tx, out=path))) == plain
    assert stages(path)["params/w"].startswith(op)
    assert disagreeing(path)[0] == []


def test_gradients_clipped_ones_slots_and_the_rate_are_named(tmp_path):
    path = tmp_path / "a.trace"
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))
    train(step_of(tx), tx, harness.record(params(), tx, out=path))
    assert names(path) == {
        *("inputs/x", "inputs/y", "forward/loss_fn/linear", "forward/loss"),
        *("backward/loss_fn/linear", "grads/w", "grads/b", "update/global_norm"),
        *("update/clipped/w", "update/clipped/b", "update/learning_rate"),
        *("optimizer/w/m", "optimizer/w/v", "optimizer/b/m", "optimizer/b/v"),
        *("params/w", "params/b"),
    }
    assert {"inputs/params/w", "inputs/params/b"} <= names(path, 1)


def test_nothing_is_left_behind_after_the_block_also_after_an_error(tmp_path):
    def state():
        found = core.Primitive.bind, core.EvalTrace.process_primitive, api.vjp
        return *found, pjit._run_python_pjit, pjit._get_fastpath_data

    before, tx = state(), optax.sgd(0.1)
    train(step_of(tx), tx, harness.record(params(), tx, out=tmp_path / "a.trace"))
    assert state() == before

    def fails():
        with harness.record(params(), tx, out=tmp_path / "b.trace") as rec, rec.step(x=X) as x:
            step_of(tx)(params(), tx.init(params()), x, Y)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert state() == before
    text = str(jax.make_jaxpr(step_of(tx))(params(), tx.init(params()), X, Y))
    assert jax_marks.mark_p.name not in text


def test_arguments_that_a_step_gives_away_and_a_step_compiled_before_the_block(tmp_path):
    path, tx = tmp_path / "a.trace", optax.adam(1e-2)
    step = step_of(tx, donate_argnums=(0, 1))
    plain = bits(train(step, tx))
    assert bits(train(step, tx, harness.record(params(), tx, out=path))) == plain
    assert disagreeing(path)[0] == []
    assert "backward/loss_fn/linear" in names(path)


def test_a_step_that_is_not_compiled(tmp_path):
    path, tx = tmp_path / "a.trace", optax.adam(1e-2)
    with jax.disable_jit(False):
        step = step_of(tx).__wrapped__
    plain = bits(train(step, tx))
    assert bits(train(step, tx, harness.record(params(), tx, out=path))) == plain
    assert disagreeing(path)[0] == []
    assert {"grads/w", "backward/loss_fn/linear", "params/w"} <= names(path)


def test_a_state_that_is_neither_handed_nor_logged_is_found_by_its_formula(tmp_path):
    path, tx = tmp_path / "a.trace", optax.adam(1e-2)
    step, p = step_of(tx), params()
    state = tx.init(p)
    with harness.record(p, state, out=path) as rec:
        for _ in range(3):
            with rec.step(x=X, y=Y) as (x, y):
                p, state, loss = step(p, state, x, y)
                rec.log(loss=float(loss))
    assert {"params/w", "optimizer/w/m", "forward/loss"} <= names(path)
    assert disagreeing(path)[0] == []


def test_a_state_of_other_arrays_than_those_that_were_recorded_has_no_wrong_stage(tmp_path):
    path, tx = tmp_path / "a.trace", optax.adam(1e-2)
    step, p, state = step_of(tx), params(), tx.init(params())
    with harness.record(params(), tx.init(params()), out=path) as rec:
        for _ in range(3):
            with rec.step(x=X, y=Y) as (x, y):
                p, state, loss = step(p, state, x, y)
                rec.log(loss=loss, params=p, opt_state=state)
    assert disagreeing(path)[0] == []
    assert {"grads/w", "params/w", "optimizer/w/m"} <= names(path)


def test_a_tap_is_named_as_the_script_says_and_has_its_gradient(tmp_path):
    tx = optax.sgd(0.1)
    recorder = harness.record(params(), tx, out=tmp_path / "a.trace")

    def loss(p, x, y):
        hidden = recorder.tap("hidden", jnp.tanh(x @ p["w"]))
        return ((hidden + p["b"] - y) ** 2).mean()

    train(step_of(tx, loss), tx, recorder)
    assert {"forward/hidden", "backward/hidden"} <= names(tmp_path / "a.trace")
    assert disagreeing(tmp_path / "a.trace")[0] == []


def test_equinox_modules_under_vmap(tmp_path):
    eqx = pytest.importorskip("equinox")
    path, tx = tmp_path / "a.trace", optax.adam(1e-2)
    model = eqx.nn.MLP(3, 2, 8, 2, activation=jax.nn.silu, key=jax.random.key(0))

    @eqx.filter_jit
    def step(model, state, x, y):
        def loss(model):
            return ((jax.vmap(model)(x) - y) ** 2).mean()

        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, value

    first = tx.init(eqx.filter(model, eqx.is_array))

    def go(recorder=None):
        now, state = model, first
        for _ in range(3):
            if recorder is None:
                now, state, loss = step(now, state, X, Y)
                continue
            with recorder.step(x=X, y=Y) as (x, y):
                now, state, loss = step(now, state, x, y)
                recorder.log(loss=loss, params=now, opt_state=state)
        return bits(eqx.filter((now, state), eqx.is_array))

    plain = go()
    with harness.record(model, first, out=path) as rec:
        assert go(rec) == plain
    assert {"forward/layers/0", "backward/layers/0", "forward/model"} & names(path)
    assert disagreeing(path)[0] == []


def test_a_state_of_another_run_is_handed_through_the_step(tmp_path):
    tx = optax.adam(1e-2)
    recorder = harness.record(params(), tx, out=tmp_path / "a.trace")
    with recorder as rec:
        given = {"params/w": np.ones((3, 2), "f"), "optimizer/w/m": np.full((3, 2), 2, "f")}
        rec._adapter.load(given, 7)
        p, state = params(), tx.init(params())
        with rec.step(x=X, params=p, opt_state=state) as (_, p, state):
            assert (np.asarray(p["w"]) == 1).all()
            assert (np.asarray(p["b"]) == np.float32(0.1)).all()
            assert (np.asarray(state[0].mu["w"]) == 2).all()
            assert int(state[0].count) == 7
        rec._adapter.load(given, 7)
        with pytest.raises(HarnessError, match="through the step"), rec.step(x=X):
            pass


def test_what_holds_no_arrays_is_refused():
    with pytest.raises(HarnessError, match="holds no arrays"):
        harness.record(params(), 3)


def test_float64_that_jax_is_not_told_of_is_said(tmp_path, capsys):
    recorder = harness.record(params(), out=tmp_path / "a.trace")
    recorder._adapter.begin("float64")
    recorder._adapter.end()
    assert "JAX_ENABLE_X64" in capsys.readouterr().err
    assert set(recorder._adapter.narrower()) == {"params/w", "params/b"}


def mixed_loss(p, x, y):
    """Operations that have a rule and some that have none, a norm by hand, dropout."""
    h = x @ p["w"] + p["b"]
    kept = jax.random.bernoulli(jax.random.key(3), 0.75, h.shape)
    h = jnp.where(kept, jax.nn.gelu(h) / 0.75, 0.0)
    h = jnp.sin(h) + jnp.cumsum(h, 0)
    centred = h - h.mean(-1, keepdims=True)
    h = centred / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5) * p["b"] + p["b"]
    return ((jax.nn.softmax(h) * h - y) ** 2).mean()


@pytest.mark.slow
def test_at_depth_ops_what_the_script_computes_are_points_and_no_bit_changes(tmp_path):
    tx, path = optax.adam(1e-2), tmp_path / "a.trace"
    plain = bits(train(step_of(tx, mixed_loss), tx))
    recorder = harness.record(params(), tx, out=path, depth="ops")
    assert bits(train(step_of(tx, mixed_loss), tx, recorder)) == plain
    assert disagreeing(path)[0] == []
    own = {"linear", "gelu_tanh", "dropout", "sin", "cumsum", "add", "layer_norm", "softmax"}
    own |= {"multiply"}
    found = {n.rpartition("/")[2] for n in names(path) if n.startswith("forward/mixed_loss/")}
    assert found >= own
    assert not found & {"exp", "root", "mean_over", "div"}  # parts of what was recognised
    assert {f"backward/mixed_loss/{op}" for op in own} <= names(path)
    made = stages(path)
    assert "forward/mixed_loss/sin" in made["forward/mixed_loss/add"]
    train(step_of(tx, mixed_loss), tx, harness.record(params(), tx, out=tmp_path / "b.trace"))
    found = names(tmp_path / "b.trace")
    own -= {"multiply"}  # the others are points at any depth
    assert {f"{way}/mixed_loss/{op}" for op in own for way in ("forward", "backward")} <= found
    assert "forward/mixed_loss/multiply" not in found


def test_at_depth_ops_an_operation_of_a_plain_function_is_a_point(tmp_path):
    tx, found = optax.sgd(0.1), {}
    for depth in ("modules", "ops"):
        path = tmp_path / depth
        train(step_of(tx), tx, harness.record(params(), tx, out=path, depth=depth), 2)
        assert disagreeing(path)[0] == []
        found[depth] = {n for n in names(path) if n.startswith(("forward/", "backward/"))}
    more = {"forward/loss_fn/tanh", "backward/loss_fn/tanh"}
    assert found["modules"] >= {"forward/loss_fn/linear", "backward/loss_fn/linear"}
    assert found["ops"] - found["modules"] >= more


def test_the_program_with_operations_marked_is_the_same(tmp_path):
    tx = optax.adamw(1e-2)
    plain = step_of(tx, mixed_loss).lower(params(), tx.init(params()), X, Y).as_text()
    with harness.record(params(), tx, out=tmp_path / "a.trace"):
        marked = step_of(tx, mixed_loss).lower(params(), tx.init(params()), X, Y).as_text()
    assert plain == marked
