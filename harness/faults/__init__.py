"""The catalogue of faults (harness.models.faults) as programs use it."""

from harness.faults.catalogue import first_step, home, named, planted_names, within
from harness.models.faults import BASE, CATALOGUE, MODELS, Fault

__all__ = [
    "BASE",
    "CATALOGUE",
    "MODELS",
    "Fault",
    "first_step",
    "home",
    "named",
    "planted_names",
    "within",
]
