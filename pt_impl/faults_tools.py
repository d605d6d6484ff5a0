"""What faults are made of."""

import torch

from pt_impl.backend import swap

# What a fault remembers from one call to the next; `planted` empties it.
kept = {}


class Changed:
    """Points that are shown, in place of each value, what change(name, value) makes of it."""

    def __init__(self, points, change):
        """`points`: the Points that watch the step."""
        self.points = points
        self.change = change

    def see(self, name, value, t=None):
        """As `see` of Points."""
        return self.points.see(name, self.change(name, value), t)

    def within(self, prefix):
        """As `within` of Points."""
        return lambda name, value, t: self.see(f"{prefix}/{name}", value, t)

    def __getattr__(self, name):
        """All else is the Points' own."""
        return getattr(self.points, name)


def same(gradient):
    """A gradient as it came."""
    return gradient


def with_gradient(value, backward):
    """`value` itself, whose gradient back-propagation replaces by backward(gradient)."""
    return swap(value, value, backward)


def with_value(value, onward):
    """`onward` in place of `value`, with the gradient of `value`."""
    return swap(value, onward, same)


def remembered(name, value):
    """What was remembered under `name`, None at first; from now on it is `value`."""
    before = kept.get(name)
    kept[name] = value
    return before


def cast_and_back(value, kind):
    """`value` rounded to a narrower format, in its own dtype again."""
    return value.to(getattr(torch, kind)).to(value.dtype)


def rounded_to_tf32(value):
    """`value` (float32) rounded to TF32, which has 10 explicit bits of the 23.

    The high part of Veltkamp's splitting (Dekker 1971, Numerische Mathematik 18, section 5.6).
    """
    big = value * (2.0**13 + 1)
    return big - (big - value)
