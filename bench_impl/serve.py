"""The process protocol of the twins (pt_impl/__main__.py), for whatever computes a step."""

import json
import sys
import traceback

from harness import corpus
from harness.errors import HarnessError
from harness.spec import load_run


def report(**fields):
    """Tell the parent process what happened."""
    print(json.dumps(fields), flush=True)


def serve(train):
    """Run train(RunSpec, report) for every file that standard input names."""
    for line in sys.stdin:
        failed = None
        try:
            train(load_run(line.rstrip("\n")), report)
        except Exception as error:
            traceback.print_exc()
            failed = f"{type(error).__name__}: {error}"
        sys.stderr.flush()
        report(ended=True, failed=failed)


def windows(run):
    """Every step of a run with its learning rate and its window (harness.corpus.Window)."""
    batches = corpus.Batches(corpus.load_tokens(run.tokens), run.train, run.eos)
    for step in range(run.start, run.steps + 1):
        window = batches.window(step)
        decays = max(window.epoch - run.train.flat_epochs, 0)
        yield step, run.train.lr / run.train.lr_decay**decays, window


def check(run):
    """Refuse what the stock models do not do. Raises HarnessError."""
    train = run.train
    if train.optimizer != "sgd" or train.clip != "global_norm" or train.weight_decay:
        raise HarnessError("the stock models know sgd, clipped by global norm, without decay")
