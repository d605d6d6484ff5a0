"""One stage of two programs, alone: what was found, as a folder to attach to a bug report."""

from harness.callable_module import callable_as
from harness.repro.found import Found, read_found, write_found
from harness.repro.make import repro
from harness.repro.result import Repro, SideRepro

__all__ = ["Found", "Repro", "SideRepro", "read_found", "repro", "write_found"]

callable_as(__name__, repro)
