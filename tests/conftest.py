"""Twins in processes of their own: the two frameworks never share one, here neither."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import twin_calls

DTYPES = ("float32", "float64")


class Worker:
    """A process that has imported one framework and answers calls of tests/twin_calls.py."""

    def __init__(self, twin):
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        context = multiprocessing.get_context("spawn")
        self.twin = twin
        self.pool = ProcessPoolExecutor(1, mp_context=context)

    def __call__(self, function, *args, **kwargs):
        return self.pool.submit(getattr(twin_calls, function), self.twin, *args, **kwargs).result()


def _worker(twin):
    worker = Worker(twin)
    yield worker
    worker.pool.shutdown()


@pytest.fixture(scope="session")
def pt():
    yield from _worker("pt")


@pytest.fixture(scope="session")
def tf():
    yield from _worker("tf")


@pytest.fixture(params=["pt", "tf"])
def twin(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param
