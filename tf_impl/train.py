"""Training: one step with all that a trace sees, and the loop over steps."""

import tensorflow as tf

from harness import corpus, randomness, weights
from harness.errors import HarnessError
from harness.trace import TraceWriter
from tf_impl.losses import cross_entropy
from tf_impl.model import forward, zero_state
from tf_impl.optim import clip, global_norm, learning_rate, sgd


def gradients(params, state, x, y, masks, model, train, watch):
    """The loss over one window and its gradients, by the framework's back-propagation.

    Args:
        params: tensors by canonical name.
        state: h and c of each layer [B, H], by name; no gradient flows into it.
        x: input tokens [B, T].
        y: target tokens [B, T].
        masks: dropout masks by site.
        model: the ModelSpec.
        train: the TrainSpec.
        watch: whether to find the gradients of the points too.

    Returns:
        The loss; the new state; the points of the forward pass; the gradients of the parameters;
        and those of the points (empty unless watched), with the names and structure of the points.

    """
    with tf.GradientTape() as tape:
        tape.watch(params)
        logits, new_state, points = forward(params, x, state, masks, model)
        loss = cross_entropy(logits, y, train.loss)
    watched = points if watch else {}
    grads, point_grads = tape.gradient(loss, (params, watched))
    # The embedding's gradient comes as rows, one for each token read: add up those of one token.
    grads = {name: tf.convert_to_tensor(g) for name, g in grads.items()}
    return loss, new_state, points, grads, point_grads


def train_step(params, state, x, y, masks, lr, model, train, watch):
    """One optimizer step on one window.

    Args:
        params: tensors by canonical name.
        state: h and c of each layer [B, H], by name.
        x: input tokens [B, T].
        y: target tokens [B, T].
        masks: dropout masks by site.
        lr: the learning rate of this step.
        model: the ModelSpec.
        train: the TrainSpec.
        watch: whether to keep the trace points; the new weights are the same bits either way.

    Returns:
        New parameters, new state, the loss, and the trace points in execution order by name
        (empty unless watched).

    """
    loss, new_state, points, grads, point_grads = gradients(
        params, state, x, y, masks, model, train, watch
    )
    norm = global_norm(grads)
    clipped = clip(grads, norm, train.clip, train.clip_limit)
    new_params = sgd(params, clipped, lr)
    if not watch:
        return new_params, new_state, loss, {}
    trace = {f"forward/{name}": point for name, point in points.items()} | {"forward/loss": loss}
    trace |= {f"backward/{name}": point_grads[name] for name in reversed(points)}
    trace |= {f"grads/{name}": g for name, g in grads.items()} | {"update/global_norm": norm}
    trace |= {f"update/clipped/{name}": g for name, g in clipped.items()}
    trace |= {f"params/{name}": p for name, p in new_params.items()}
    trace |= {f"state/out/{name}": s for name, s in new_state.items()}
    return new_params, new_state, loss, trace


def evaluate(params, batches, model, train):
    """The mean negative log-likelihood per token of a text, in nats.

    The state is carried from its first window to its last, and nothing is dropped.

    Args:
        params: tensors by canonical name.
        batches: the text (harness.corpus.Batches).
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        A float; its exponential is the perplexity.

    """
    total, state = 0.0, zero_state(model, train.batch_size, params["embedding"].dtype)
    for step in range(1, batches.steps_per_epoch + 1):
        window = batches.window(step)
        logits, state, _ = forward(params, tf.constant(window.x), state, {}, model)
        total += float(cross_entropy(logits, tf.constant(window.y), "mean"))
    return total / batches.steps_per_epoch


def to_numpy(point):
    """A trace point as an array: a list over time is stacked to [B, T, ...]."""
    if isinstance(point, list):
        point = tf.stack(point, axis=1)
    return point.numpy()


def prepare(run):
    """Make the framework deterministic, in full precision, on the run's device; its dtype."""
    tf.config.threading.set_intra_op_parallelism_threads(run.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if run.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise HarnessError("device gpu: TensorFlow finds no GPU here; use --device cpu")
    return getattr(tf, run.train.dtype)


def train(run, report):
    """Run `run.steps` steps from the run's weights on its tokens, tracing what it asks to trace.

    Args:
        run: the RunSpec.
        report: called after every step with step, epoch, lr and loss, and at the end of an epoch
            with the validation loss (None otherwise).

    """
    dtype = prepare(run)
    arrays = weights.load(run.weights, run.model, dtype=run.train.dtype)
    tokens = corpus.load_tokens(run.tokens)
    batches = corpus.Batches(tokens, run.train, run.eos)
    valid_batches = corpus.evaluation_batches(corpus.load_tokens(run.valid), run.train)
    plateaus, best = 0, float("inf")
    params = {name: tf.constant(array) for name, array in arrays.items()}
    with TraceWriter.for_run(run, {"tensorflow": tf.__version__}, arrays, tokens) as trace:
        for step in range(1, run.steps + 1):
            window = batches.window(step)
            if window.first:
                state = zero_state(run.model, run.train.batch_size, dtype)
            masks = randomness.dropout_masks(run.model, run.train, step)
            x, y = tf.constant(window.x), tf.constant(window.y)
            kept = {site: tf.constant(mask) for site, mask in masks.items()}
            lr = learning_rate(run.train, window.epoch, plateaus)
            before = inputs_of_step(step, x, y, kept, state, params)
            params, state, loss, points = train_step(
                params, state, x, y, kept, lr, run.model, run.train, trace.wants_step(step)
            )
            valid, after = None, {}
            if window.last and valid_batches:
                valid = evaluate(params, valid_batches, run.model, run.train)
                plateaus, best = plateaus + (not valid < best), min(valid, best)
                after = {"evaluate/loss": tf.constant(valid, dtype=dtype)}
            if points:
                wanted = {n: p for n, p in (before | points | after).items() if trace.wants(n)}
                trace.write(step, {name: to_numpy(p) for name, p in wanted.items()})
            report(step=step, epoch=window.epoch, lr=lr, loss=float(loss), valid=valid)
    weights.save({name: to_numpy(p) for name, p in params.items()}, run.final)


def inputs_of_step(step, x, y, masks, state, params):
    """The trace points of what a step is given; the weights themselves only at the first."""
    points = {"inputs/x": x, "inputs/y": y}
    points |= {f"inputs/mask/{site}": mask for site, mask in masks.items()}
    if step == 1:
        points |= {f"inputs/params/{name}": p for name, p in params.items()}
    return points | {f"state/in/{name}": s for name, s in state.items()}
