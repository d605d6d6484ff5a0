"""`harness bench`: how fast the twins, tracing, the diff and start-up are, against named peers.

All contestants of a part run once a round, in turn and one at a time, so that a machine that slows
down slows all of them; figures are medians over rounds with the spread (least and greatest) beside
them, and ratios are taken round by round against the peer that the table names.
"""
