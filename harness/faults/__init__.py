"""Faults that can be planted in a twin, and what must be found of each."""

from harness.faults.catalogue import BASE, CATALOGUE, first_step, named, planted_names
from harness.faults.fault import Fault

__all__ = ["BASE", "CATALOGUE", "Fault", "first_step", "named", "planted_names"]
