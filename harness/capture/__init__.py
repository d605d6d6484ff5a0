"""Recording the steps of anybody's own training script, in whatever framework it is written."""

from harness.capture.record import Recorder as Recorder
from harness.capture.record import callback as callback
from harness.capture.record import record as record

__all__ = ["Recorder", "callback", "record"]
