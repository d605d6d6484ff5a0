"""Training: one step with all that a trace sees, and the loop over steps."""

from functools import cache

import tensorflow as tf

from harness.data import corpus, randomness, weights
from harness.errors import HarnessError
from harness.spec import replace
from harness.trace import Intervention, TraceWriter, resumed
from tf_impl.faults import NO_GRAPH, planted
from tf_impl.losses import cross_entropy, cross_entropy_backward
from tf_impl.model import carry, forward, forward_backward, zero_state
from tf_impl.optim import clip, global_norm, learning_rate, plateaus, update, zero_slots
from tf_impl.points import Points, to_numpy, to_tensor, to_trace

GRAPH = 30  # steps from which on building a graph pays


def gradients(params, state, x, y, masks, model, train, points):
    """The loss over one window and its gradients, by back-propagation.

    Args:
        params: tensors by canonical name.
        state: h and c of each layer [B, H], by name; no gradient flows into it.
        x: input tokens [B, T].
        y: target tokens [B, T].
        masks: dropout masks by site.
        model: the ModelSpec.
        train: the TrainSpec.
        points: shown every stage, forwards and backwards.

    Returns:
        The loss, the new state, and the gradients of the parameters.

    """
    if train.autograd:
        return gradients_by_autograd(params, state, x, y, masks, model, train, points)
    logits, new_state = forward(params, x, state, masks, model, points)
    loss = points.see("forward/loss", cross_entropy(logits, y, train.loss))
    gradient = points.see("backward/logits", cross_entropy_backward(logits, y, train.loss))
    grads = forward_backward(params, x, state, masks, model, points, gradient)
    return loss, new_state, {name: points.see(f"grads/{name}", g) for name, g in grads.items()}


def gradients_by_autograd(params, state, x, y, masks, model, train, points):
    """As `gradients`, by the framework's own back-propagation: proves those written out by hand.

    It also differentiates a step that a fault has been planted in.
    """
    points.differentiate()
    with tf.GradientTape() as tape:
        tape.watch(params)
        logits, new_state = forward(params, x, state, masks, model, points)
        loss = cross_entropy(logits, y, train.loss)
    watched = dict(points.gone_on)
    # Zeros for what the loss does not depend on: a detached part is to be seen, not to end the run.
    nothing = tf.UnconnectedGradients.ZERO
    grads, found = tape.gradient(loss, (params, watched), unconnected_gradients=nothing)
    # The embedding's gradient comes as rows, one for each token read: add up those of one token.
    grads = {name: tf.convert_to_tensor(g) for name, g in grads.items()}
    loss = points.see("forward/loss", loss)
    points.see_gradients(found)
    return loss, new_state, {name: points.see(f"grads/{name}", g) for name, g in grads.items()}


def train_step(params, slots, state, x, y, masks, lr, step, model, train, points):
    """One optimizer step on one window.

    Args:
        params: tensors by canonical name.
        slots: what the optimizer kept, by parameter and slot.
        state: h and c of each layer [B, H], by name.
        x: input tokens [B, T].
        y: target tokens [B, T].
        masks: dropout masks by site.
        lr: the learning rate of this step, a scalar.
        step: the step, from 1.
        model: the ModelSpec.
        train: the TrainSpec.
        points: keeps the trace points; the new weights are the same bits if it keeps none.

    Returns:
        New parameters, new slots, new state, and the loss.

    """
    loss, new_state, grads = gradients(params, state, x, y, masks, model, train, points)
    norm = points.see("update/global_norm", global_norm(grads))
    clipped = clip(grads, norm, train.clip, train.clip_limit)
    clipped = {name: points.see(f"update/clipped/{name}", g) for name, g in clipped.items()}
    lr = points.see("update/learning_rate", tf.convert_to_tensor(lr, dtype=norm.dtype))
    new_params, new_slots = update(params, clipped, slots, lr, train, step, points)
    new_params = {name: points.see(f"params/{name}", p) for name, p in new_params.items()}
    new_state = {name: points.see(f"state/out/{name}", s) for name, s in new_state.items()}
    return new_params, new_slots, new_state, loss


@cache
def compiled(model, train, watch):
    """`train_step` as one compiled function, which returns the trace points as well.

    Args:
        model: the ModelSpec.
        train: the TrainSpec.
        watch: whether points are kept. What is kept is computed for its own sake, which can change
            what the compiler makes of the rest: a run that traces any step compiles this once.

    Returns:
        A function of the first arguments of `train_step`, up to the step (a float64 scalar).

    """

    def step(*args):
        points = Points(watch=watch)
        return *train_step(*args, model, train, points), points.seen

    return tf.function(step, jit_compile=train.compile, autograph=False)


def take_step(params, slots, state, x, y, masks, lr, step, model, train, points):
    """`train_step`, compiled where the TrainSpec asks for it."""
    # Not compiled it is a graph: the kernels of eager calls, so the same bits, at half their cost.
    if points.intervention:  # which is Python
        return train_step(params, slots, state, x, y, masks, lr, step, model, train, points)
    run = compiled(model, train, points.watch)
    lr, step = tf.constant(lr, dtype=getattr(tf, train.dtype)), tf.constant(step, dtype=tf.float64)
    *found, seen = run(params, slots, state, x, y, masks, lr, step)
    points.seen.update(seen)
    return found


def evaluate(params, batches, model, train):
    """The mean negative log-likelihood per token of a text, in nats.

    The state is carried from its first window to its last, and nothing is dropped.

    Args:
        params: tensors by canonical name.
        batches: the text (harness.data.corpus.Batches).
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        A float; its exponential is the perplexity.

    """
    total, state = 0.0, zero_state(model, train.batch_size, params["embedding"].dtype)
    for step in range(1, batches.steps_per_epoch + 1):
        x, y = tokens_of(batches.window(step))
        logits, state = forward(params, x, state, {}, model, Points(watch=False))
        total += float(cross_entropy(logits, y, "mean"))
    return total / batches.steps_per_epoch


def tokens_of(window):
    """Input and target tokens of a window (harness.data.corpus.Window): integers [B, T] each."""
    return tf.constant(window.x), tf.constant(window.y)


def prepare(run):
    """Make the framework deterministic, in full precision, on the run's device; its dtype."""
    stages = run.follow is not None and run.follow.level == "stage"
    if run.train.compile and (run.faults or run.disturb or stages or run.train.autograd):
        raise HarnessError(
            "compile=true: a compiled step is one piece, with no place in it for a planted fault, "
            "a disturbance, stages that follow another side, or autograd; leave compile out"
        )
    tf.config.threading.set_intra_op_parallelism_threads(run.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    # A graph is to compute what its operations say, and nothing that they are rewritten to.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if run.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise HarnessError("device gpu: TensorFlow finds no GPU here; use --device cpu")
    return getattr(tf, run.train.dtype)


def train(run, report):
    """Run the steps of `run` from its weights on its tokens, tracing what it asks to trace.

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
    framework, intervention = {"tensorflow": tf.__version__}, Intervention.of(run)
    # The derivatives written out by hand are those of the step without faults.
    how = replace(run.train, autograd=run.train.autograd or bool(run.faults))
    whole = run.train.compile and run.capture.first <= run.steps  # see `compiled`
    # Some faults are Python too.
    graph = run.steps - run.start >= GRAPH and not NO_GRAPH.intersection(run.faults)
    take = take_step if graph or run.train.compile else train_step
    with (
        planted(run.faults),
        TraceWriter.for_run(run, framework, arrays, tokens, __package__) as trace,
    ):
        params, slots, state, losses = begin(run, {n: tf.constant(a) for n, a in arrays.items()})
        for step in range(run.start, run.steps + 1):
            window = batches.window(step)
            points = Points(intervention and intervention.within, trace.wants_step(step) or whole)
            masks = randomness.dropout_masks(run.model, run.train, step)
            if intervention:
                intervention.begin(step)
                params, slots, state = restart(intervention, params, slots, state, run)
            lr = learning_rate(run.train, window.epoch, plateaus(losses))
            state = carry(state, window.first, run.model, run.train)
            x, y, masks, params, state = see_inputs(step, window, masks, params, state, points)
            params, slots, state, loss = take(
                params, slots, state, x, y, masks, lr, step, run.model, how, points
            )
            valid = None
            if window.last and valid_batches:
                own = evaluate(params, valid_batches, run.model, run.train)
                valid = float(points.see("evaluate/loss", tf.constant(own, dtype=dtype)))
                losses.append(valid)
            if trace.wants_step(step):
                wanted = {name: p for name, p in points.seen.items() if trace.wants(name)}
                trace.write(step, {name: to_trace(p) for name, p in wanted.items()})
            report(step=step, epoch=window.epoch, lr=lr, loss=float(loss), valid=valid)
    weights.save({name: to_numpy(p) for name, p in params.items()}, run.final)


def begin(run, params):
    """What the first step starts from: `params`, or what the trace to resume left of its last step.

    Args:
        run: the RunSpec.
        params: the weights that it was handed, by name.

    Returns:
        Parameters, slots, state (None before the first step), and the validation losses so far.

    """
    slots = zero_slots(params, run.train)
    if run.resume is None:
        return params, slots, None, []
    names = zero_state(run.model, 1, getattr(tf, run.train.dtype))
    groups, losses = resumed(run, {"params": params, "optimizer": slots, "state/out": names})
    found = [{n: to_tensor(a) for n, a in group.items()} for group in groups.values()]
    return *found, losses


def see_inputs(step, window, masks, params, state, points):
    """What a step is given, shown to `points` (the weights at the first step alone).

    Args:
        step: the step, from 1.
        window: its tokens (harness.data.corpus.Window).
        masks: its dropout masks by site, arrays.
        params: tensors by canonical name.
        state: h and c of each layer [B, H], by name.
        points: shown all of it.

    Returns:
        Input tokens, target tokens, masks, parameters and state, as the step goes on with them.

    """
    x, y = tokens_of(window)
    x, y = points.see("inputs/x", x), points.see("inputs/y", y)
    kept = {site: to_tensor(mask) for site, mask in masks.items()}
    kept = {site: points.see(f"inputs/mask/{site}", mask) for site, mask in kept.items()}
    if step == 1:
        params = {name: points.see(f"inputs/params/{name}", p) for name, p in params.items()}
    state = {name: points.see(f"state/in/{name}", s) for name, s in state.items()}
    return x, y, kept, params, state


def restart(intervention, params, slots, state, run):
    """What a step starts from: what the side that is followed left of the step before it.

    Args:
        intervention: the Intervention, at this step.
        params: this side's own parameters by name.
        slots: its optimizer's slots.
        state: its hidden and cell states; None before the first step.
        run: the RunSpec.

    Returns:
        Parameters, slots and state; this side's own at the first step, or where it follows nobody.

    """
    names = zero_state(run.model, 1, getattr(tf, run.train.dtype))
    groups = {"params": (params, params), "optimizer": (slots, slots), "state/out": (state, names)}
    found = []
    for group, (own, names) in groups.items():
        other = intervention.restart(group, names)
        found.append(own if other is None else {n: to_tensor(a) for n, a in other.items()})
    return found
