"""Training: one step with all that a trace sees, and the loop over steps."""

import torch

from harness import corpus, randomness, weights
from harness.errors import HarnessError
from harness.trace import TraceWriter
from pt_impl.losses import cross_entropy
from pt_impl.model import forward, zero_state
from pt_impl.optim import clip, global_norm, learning_rate, sgd


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
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    logits, new_state, points = forward(params, x, state, masks, model)
    loss = cross_entropy(logits, y, train.loss)
    watched = points if watch else {}
    flat = [t for p in watched.values() for t in (p if isinstance(p, list) else [p])]
    found = iter(torch.autograd.grad(loss, [*params.values(), *flat]))
    grads = {name: next(found) for name in params}
    point_grads = {
        name: [next(found) for _ in point] if isinstance(point, list) else next(found)
        for name, point in watched.items()
    }
    new_state = {name: s.detach() for name, s in new_state.items()}
    return loss.detach(), new_state, points, grads, point_grads


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
        logits, state, _ = forward(params, torch.tensor(window.x), state, {}, model)
        total += float(cross_entropy(logits, torch.tensor(window.y), "mean"))
    return total / batches.steps_per_epoch


def to_numpy(point):
    """A trace point as an array: a list over time is stacked to [B, T, ...]."""
    if isinstance(point, list):
        point = torch.stack(point, dim=1)
    return point.detach().cpu().numpy()


def prepare(run):
    """Make the framework deterministic, in full precision, on the run's device; its dtype."""
    torch.set_num_threads(run.threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = False
    # As TensorFlow's kernels do: numbers under 1e-38 count for nothing and cost ten times as much.
    torch.set_flush_denormal(True)
    if run.device == "gpu":
        if not torch.cuda.is_available():
            raise HarnessError("device gpu: PyTorch finds no GPU here; use --device cpu")
        torch.set_default_device("cuda")
    return getattr(torch, run.train.dtype)


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
    params = {name: torch.tensor(array) for name, array in arrays.items()}
    with TraceWriter.for_run(run, {"torch": torch.__version__}, arrays, tokens) as trace:
        for step in range(1, run.steps + 1):
            window = batches.window(step)
            if window.first:
                state = zero_state(run.model, run.train.batch_size, dtype)
            masks = randomness.dropout_masks(run.model, run.train, step)
            x, y = torch.tensor(window.x), torch.tensor(window.y)
            kept = {site: torch.tensor(mask) for site, mask in masks.items()}
            lr = learning_rate(run.train, window.epoch, plateaus)
            before = inputs_of_step(step, x, y, kept, state, params)
            params, state, loss, points = train_step(
                params, state, x, y, kept, lr, run.model, run.train, trace.wants_step(step)
            )
            valid, after = None, {}
            if window.last and valid_batches:
                valid = evaluate(params, valid_batches, run.model, run.train)
                plateaus, best = plateaus + (not valid < best), min(valid, best)
                after = {"evaluate/loss": torch.tensor(valid, dtype=dtype)}
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
