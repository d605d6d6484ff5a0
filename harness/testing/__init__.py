"""Traces in tests: compared, and held against golden ones; what the pytest plugin calls."""
