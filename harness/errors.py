"""The one exception that a user of the library or the command line meets."""

DEBUG = "HARNESS_DEBUG"  # in the environment: an error of our own ends the command, with its stack


class HarnessError(Exception):
    """Bad input or a failed side. The message is one line that names the value and the remedy."""
