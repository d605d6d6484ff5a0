"""Runs: sides as processes, the further runs that a verdict needs, zoom."""
