"""The one exception that a user of the library or the command line meets."""


class HarnessError(Exception):
    """Bad input or a failed side. The message is one line that names the value and the remedy."""
