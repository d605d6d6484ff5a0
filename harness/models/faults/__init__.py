"""Faults that can be planted in a twin, as data: each row what one does and must lead to."""

from harness.models.faults.catalogue import CATALOGUE
from harness.models.faults.fault import Fault
from harness.models.faults.laboratory import BASE, MODELS

__all__ = ["BASE", "CATALOGUE", "MODELS", "Fault"]
