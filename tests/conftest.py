"""Twins in processes of their own: the two frameworks never share one, here neither."""

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
import twin_calls

from harness.errors import DEBUG

DTYPES = ("float32", "float64")

os.environ[DEBUG] = "1"  # an error in the search for causes ends the test

# Whoever starts the tests in the background may have them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Worker:
    """A process that has imported one framework and answers calls of tests/twin_calls.py."""

    def __init__(self, twin):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        context = multiprocessing.get_context("spawn")
        self.twin = twin
        self.pool = ProcessPoolExecutor(1, mp_context=context)

    def start(self, function, *args, **kwargs):
        """Begin a call; its result() waits, so that two workers can be busy at once."""
        return self.pool.submit(getattr(twin_calls, function), self.twin, *args, **kwargs)

    def __call__(self, function, *args, **kwargs):
        return self.start(function, *args, **kwargs).result()

    def close(self):
        self.pool.shutdown()


class Here:
    """The same for NumPy, which the tests have imported already; its warnings are errors here."""

    twin = "np"

    def start(self, function, *args, **kwargs):
        done = Future()
        done.set_result(self(function, *args, **kwargs))
        return done

    def __call__(self, function, *args, **kwargs):
        return getattr(twin_calls, function)(self.twin, *args, **kwargs)


def _worker(twin):
    worker = Worker(twin)
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def pt():
    yield from _worker("pt")


@pytest.fixture(scope="session")
def tf():
    yield from _worker("tf")


@pytest.fixture(scope="session")
def referee():
    return Here()


@pytest.fixture(params=["pt", "tf"])
def side(request):
    """A twin that is judged by the referee."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["pt", "tf", "referee"], ids=["pt", "tf", "np"])
def twin(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param
