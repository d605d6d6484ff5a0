"""Trace two training scripts of your own and find where they part: no framework needed.

Both fit a line by gradient descent with momentum. One multiplies the learning rate into the
velocity, the other applies it to the velocity afterwards: the same thing, until the rate changes.

    python examples/trace_your_own.py
"""

import tempfile
from pathlib import Path

import numpy as np

import harness

STEPS = 8


def learning_rate(step):
    """The schedule of both programs."""
    return 0.1 if step <= 5 else 0.01  # the rate drops at step 6


def train(path, lr_inside_velocity):
    """Train for STEPS steps and leave a trace at `path`."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(32, 4))  # [N, features]
    y = x @ np.array([1.0, -2.0, 3.0, 0.5])  # [N]
    w, velocity = np.zeros(4), np.zeros(4)
    with harness.TraceWriter(path, label=path.stem, dtype="float64") as trace:
        for step in range(1, STEPS + 1):
            error = x @ w - y
            grad = 2 * x.T @ error / len(y)
            lr = learning_rate(step)
            if lr_inside_velocity:
                velocity = 0.9 * velocity + lr * grad
                w = w - velocity
            else:
                velocity = 0.9 * velocity + grad
                w = w - lr * velocity
            trace.write(
                step,
                {
                    "forward/loss": np.mean(error**2),
                    "grads/w": grad,
                    "params/w": w,
                },
            )


def main():
    """Run both programs and say where they part."""
    with tempfile.TemporaryDirectory() as folder:
        inside, outside = Path(folder, "inside.trace"), Path(folder, "outside.trace")
        train(inside, lr_inside_velocity=True)
        train(outside, lr_inside_velocity=False)
        found = harness.diff(inside, outside)
    first = found.first_divergence
    print(f"{found.status} at step {first.step}: {first.tensor} ({first.a:.6g} | {first.b:.6g})")
    print(f"the last tensor that agreed: {found.last_agreeing.tensor}")


if __name__ == "__main__":
    main()
