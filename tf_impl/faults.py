"""Faults to plant."""

from contextlib import contextmanager


@contextmanager
def planted(names):
    """Plant the faults of these names."""
    yield
