"""Showing results to people. Reads result types only; computes nothing."""
